"""What holds for every method on every family.

Everything is checked of every method on one model of each family, and a step of training with every op on every other
model type.
Where a method cannot act, it says so: those pairs are listed, and nothing else may be refused.
"""

from contextlib import contextmanager
from dataclasses import replace

import pytest
import torch
from closeness import PASS, close
from matrix import (
    CHANGED_AT_START,
    ELSEWHERE,
    MATRIX,
    OF_OPS,
    REFUSED,
    adapter_of,
    backbone_of,
    example_for,
    inputs_of,
    near_nothing,
)
from tiny import LAYERS, SAMPLES, bits, make_adapter, make_backbone
from torch import Tensor

from graftwork.adapters import Adapter
from graftwork.adapters.declared import counts, declare
from graftwork.errors import GraftworkError
from graftwork.methods import METHODS, HeadOnly
from graftwork.methods.parameters import ParameterTree
from graftwork.model import AdaptedModel

every_method_and_family = pytest.mark.parametrize(("name", "kind"), MATRIX)
every_op_and_family = pytest.mark.parametrize(("name", "kind"), OF_OPS)


def make_trainable(backbone, method, **options) -> AdaptedModel:
    model = AdaptedModel(backbone)
    model.add("a", adapter_of(backbone, method, **options), trainable=True)
    return model.train()


@contextmanager
def resident(backbone, adapter):
    """A model with the adapter for the length of a block, without gradients."""
    model = AdaptedModel(backbone, {"a": adapter})
    with torch.no_grad():
        yield model
    model.detach()


def trained(model) -> dict[str, Tensor]:
    return dict(model.residents["a"].parameters_by_name.named_parameters())


def head_of(tensors) -> list[str]:
    return [name for name in tensors if name.startswith("head.")]


def backward(model, batch) -> None:
    """A pass back; of a method that draws, as many as it takes for everything to be drawn."""
    torch.manual_seed(0)
    method = model.adapter("a").method
    draws = method.passes > 1 or getattr(method, "robust_drop", False)
    for _ in range(16 if draws else 1):
        model(**batch).loss.backward()


def test_every_registered_method_is_among_the_samples():
    assert {method.name for method in SAMPLES.values()} == set(METHODS)
    assert {name for name, _ in MATRIX} == set(SAMPLES)


@pytest.mark.parametrize(("name", "kind"), REFUSED)
def test_a_method_that_cannot_act_says_so(name, kind):
    with pytest.raises(GraftworkError) as caught:
        adapter_of(backbone_of(kind), SAMPLES[name])
    assert len(caught.value.problem) > 20
    assert caught.value.expected or caught.value.change


@pytest.mark.parametrize(("name", "kind"), [row for row in MATRIX if row[0] not in CHANGED_AT_START])
def test_a_new_adapter_changes_nothing(name, kind):
    """Exactly for methods that start at no difference; for others as their initialisation goes to zero."""
    method, bound = near_nothing(SAMPLES[name])
    backbone = backbone_of(kind, dtype=torch.float64)
    adapter = adapter_of(backbone, method)
    batch = inputs_of(backbone, adapter.head, 7, 4)
    head = {name: tensor for name, tensor in adapter.tensors.items() if name.startswith("head.")}
    lone = replace(adapter, method=HeadOnly(), sites=(), tensors=head, fixed=())
    with resident(backbone, lone) as model:
        before = model(**batch).logits
    with resident(backbone, adapter) as model:
        after = model(**batch).logits
    if bound:
        torch.testing.assert_close(after, before, rtol=0, atol=bound)
    else:
        assert torch.equal(after, before)


@pytest.mark.parametrize(
    ("name", "kind", "dtype"),
    [
        *((name, kind, torch.float32) for name, kind in [*MATRIX, *ELSEWHERE]),
        *((name, kind, torch.bfloat16) for name, kind in OF_OPS if kind in ("bert", "llama", "t5")),
    ],
)
def test_an_optimizer_step_changes_the_outputs_and_nothing_of_the_backbone(name, kind, dtype):
    backbone = backbone_of(kind, dtype=dtype)
    frozen = bits(backbone.model)
    model = make_trainable(backbone, SAMPLES[name])
    batch = example_for(backbone, model.adapter("a").head)
    torch.manual_seed(0)
    before = model(**batch)
    assert before.logits.dtype == torch.float32
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.05)
    before.loss.backward()
    optimizer.step()
    after = model(**batch)
    assert torch.isfinite(after.logits).all()
    assert not torch.equal(after.logits, before.logits)
    assert all(p.grad is None and not p.requires_grad for p in backbone.model.parameters())
    model.detach()
    assert bits(backbone.model) == frozen


@every_method_and_family
def test_gradients_reach_exactly_what_is_declared(name, kind):
    method = SAMPLES[name]
    backbone = backbone_of(kind, dtype=torch.float64)
    model = make_trainable(backbone, method, trained=True)
    adapter = model.adapter("a")
    backward(model, example_for(backbone, adapter.head))
    declared = declare(backbone, method, adapter.head)
    assert set(declared) == set(adapter.tensors)
    assert set(trained(model)) == {name for name, parameter in declared.items() if parameter.trained}
    trainable = {id(p) for p in model.parameters() if p.requires_grad}
    assert trainable == {id(p) for p in trained(model).values()}
    for parameter_name, parameter in trained(model).items():
        if parameter_name.startswith("fusion.") and parameter_name.endswith(".key_bias"):
            continue  # a shift of all scores of a softmax: it has a gradient where scores have dropout
        assert parameter.grad is not None, parameter_name
        largest = parameter.grad.abs().max()
        if parameter_name.endswith("attention.key.bias") and not parameter_name.startswith("gate."):
            # A shift of all scores of a query leaves its softmax as it is: what is left is rounding.
            assert largest < 1e-8, parameter_name
        else:
            assert largest > 1e-9, parameter_name


@pytest.mark.parametrize(("name", "kind"), [row for row in MATRIX if row[1] not in ("vit", "resnet")])
def test_padding_changes_no_row(name, kind):
    backbone = backbone_of(kind, dtype=torch.float64)
    pooling = "mean" if kind in ("bert", "llama") else backbone.pooling
    adapter = adapter_of(backbone, SAMPLES[name], trained=True, pooling=pooling)
    batch = inputs_of(backbone, adapter.head, 9, 4)
    with resident(backbone, adapter) as model:
        padded = model(**batch).logits[1:]
        alone = model(**{key: value[1:, :4] for key, value in batch.items()}).logits
    # The head computes in float32, from vectors that agree to float64's rounding; its sums may nearly cancel.
    close(padded, alone, PASS)


@every_op_and_family
def test_saved_and_loaded_it_says_the_same_to_the_bit(name, kind, tmp_path):
    backbone = backbone_of(kind)
    model = make_trainable(backbone, SAMPLES[name], trained=True).eval()
    batch = inputs_of(backbone, model.adapter("a").head, 7, 4)
    with torch.no_grad():
        while_training = model(**batch).logits
    adapter = model.adapter("a")
    model.detach()
    with resident(backbone, adapter) as model:
        expected = model(**batch).logits
    assert torch.equal(while_training, expected)
    adapter.save(tmp_path / "a")
    loaded = Adapter.load(tmp_path / "a")
    assert set(loaded.tensors) == set(declare(backbone, adapter.method, adapter.head))
    with resident(backbone, loaded) as model:
        assert torch.equal(model(**batch).logits, expected)


@every_op_and_family
def test_gradient_checkpointing_recomputes_and_gives_the_same_gradients(name, kind):
    if kind == "resnet":
        pytest.skip("transformers does not recompute ResNet's layers")
    backbone = backbone_of(kind, dtype=torch.float64)
    batch = example_for(backbone, adapter_of(backbone, SAMPLES[name]).head)
    inside = [backbone.modules[site.path] for site in backbone.sites.values() if site.name.endswith("attention.key")]
    gradients, passes = [], []
    for checkpointing in (False, True):
        model = make_trainable(backbone, SAMPLES[name], trained=True)
        if checkpointing:
            model.gradient_checkpointing_enable()
        count = []
        hooks = [module.register_forward_hook(lambda *_, count=count: count.append(1)) for module in inside]
        torch.manual_seed(0)
        model(**batch).loss.backward()
        for hook in hooks:
            hook.remove()
        gradients.append({n: p.grad for n, p in trained(model).items()})
        passes.append(len(count))
        model.detach()
    assert gradients[0].keys() == gradients[1].keys()
    for parameter_name, gradient in gradients[0].items():
        other = gradients[1][parameter_name]
        assert (gradient is None) == (other is None), parameter_name
        if gradient is not None:
            # To the bit, but for T5, whose positions then need gradients and so take another kernel.
            close(gradient, other, PASS if kind == "t5" else 0)
    assert passes[1] > passes[0] or not set(gradients[0]) - {*head_of(gradients[0])}


@pytest.mark.parametrize(("name", "kind"), [row for row in MATRIX if row[1] == "bert"])
def test_a_seed_is_one_adapter(name, kind):
    backbone = backbone_of(kind)
    torch.manual_seed(1)
    first = adapter_of(backbone, SAMPLES[name], seed=3)
    torch.manual_seed(2)
    again = adapter_of(backbone, SAMPLES[name], seed=3)
    assert all(torch.equal(tensor, again.tensors[key]) for key, tensor in first.tensors.items())
    assert all(t.dtype == torch.float32 and t.device.type == "cpu" for t in first.tensors.values())
    assert first.num_parameters == sum(counts(declare(backbone, SAMPLES[name], first.head)).values())


def test_another_seed_is_another_adapter():
    backbone = make_backbone("bert")
    first, other = (make_adapter(backbone, SAMPLES["houlsby"], seed=seed) for seed in (3, 4))
    assert not torch.equal(first.tensors["head.classifier.weight"], other.tensors["head.classifier.weight"])
    assert not torch.equal(first.tensors["layers.0.ffn.result.down"], other.tensors["layers.0.ffn.result.down"])
    assert backbone.sites.num_layers == LAYERS


def test_parameters_stand_under_their_dotted_names():
    tensors = {"layers.0.a.weight": torch.ones(2), "layers.0.a.bias": torch.zeros(1), "layers.10.b": torch.ones(3)}
    tree = ParameterTree(tensors, fixed=["layers.10.b"])
    assert set(tree.state_dict()) == set(tensors)
    assert all(torch.equal(tree.by_name()[name], tensor) for name, tensor in tensors.items())
    assert {name for name, _ in tree.named_parameters()} == {"layers.0.a.weight", "layers.0.a.bias"}
