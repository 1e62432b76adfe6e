"""What holds for every method on every model type."""

from contextlib import contextmanager

import pytest
import torch
from tiny import LAYERS, MATRIX, SAMPLES, batch_for, bits, make_adapter, make_backbone

from graftwork.adapters import Adapter
from graftwork.adapters.adapter import counts, declare
from graftwork.methods import METHODS, Houlsby
from graftwork.methods.parameters import ParameterTree
from graftwork.model import AdaptedModel

every_method_and_model = pytest.mark.parametrize(("name", "kind"), MATRIX)
LABELS = torch.tensor([0, 2, 1])


def make_trainable(backbone, method, **options) -> AdaptedModel:
    model = AdaptedModel(backbone)
    model.add("a", make_adapter(backbone, method, **options), trainable=True)
    return model.train()


@contextmanager
def resident(backbone, adapter):
    """A model with the adapter for the length of a block, without gradients."""
    model = AdaptedModel(backbone, {"a": adapter})
    with torch.no_grad():
        yield model
    model.detach()


def named(model) -> dict[str, torch.nn.Parameter]:
    return dict(model.residents["a"].parameters_by_name.named_parameters())


def test_every_registered_method_is_among_the_samples():
    assert {method.name for method in SAMPLES.values()} == set(METHODS)


@every_method_and_model
def test_a_new_adapter_changes_nothing(name, kind):
    """Exactly for methods that start at no difference; for bottlenecks as their initialisation goes to zero."""
    method = SAMPLES[name]
    if isinstance(method, Houlsby):
        method = method.model_copy(update={"init_std": 1e-6})
    backbone = make_backbone(kind, dtype=torch.float64)
    batch = batch_for(backbone, 7, 4)
    with torch.no_grad():
        expected = backbone.model(**batch, output_hidden_states=True).hidden_states
        model = AdaptedModel(backbone, {"a": make_adapter(backbone, method)})
        found = model(**batch, output_hidden_states=True).hidden_states
    assert len(found) == LAYERS + 1
    for one, other in zip(found, expected, strict=True):
        if isinstance(method, Houlsby):
            # Up and down are of order 1e-6 and their sums run over 32 and 6 terms: 1e-12 · 192 · |h|, and the norms'
            # float32 copies of float64 gains and biases are off by 2^-25 of their size.
            torch.testing.assert_close(one, other, rtol=0, atol=1e-5 if method.norms != "none" else 1e-8)
        else:
            assert torch.equal(one, other)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@every_method_and_model
def test_an_optimizer_step_changes_the_outputs_and_nothing_of_the_backbone(name, kind, dtype):
    method = SAMPLES[name]
    backbone = make_backbone(kind, dtype=dtype)
    batch = batch_for(backbone, 7, 4, 5)
    frozen = bits(backbone.model)
    model = make_trainable(backbone, method)
    before = model(**batch, labels=LABELS)
    assert before.logits.dtype == torch.float32
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.05)
    before.loss.backward()
    optimizer.step()
    after = model(**batch, labels=LABELS)
    assert torch.isfinite(after.logits).all()
    assert (after.logits - before.logits).abs().min() > 0
    assert all(p.grad is None and not p.requires_grad for p in backbone.model.parameters())
    model.detach()
    assert bits(backbone.model) == frozen


@every_method_and_model
def test_gradients_reach_exactly_what_is_declared(name, kind):
    method = SAMPLES[name]
    backbone = make_backbone(kind, dtype=torch.float64)
    model = make_trainable(backbone, method, trained=True)
    model(**batch_for(backbone, 7, 4, 5), labels=LABELS).loss.backward()
    adapter = model.adapter("a")
    assert set(named(model)) == set(declare(backbone, method, adapter.head)) == set(adapter.tensors)
    trainable = {id(p) for p in model.parameters() if p.requires_grad}
    assert trainable == {id(p) for p in named(model).values()}
    for parameter_name, parameter in named(model).items():
        assert parameter.grad is not None, parameter_name
        largest = parameter.grad.abs().max()
        if parameter_name.endswith("attention.key.bias"):
            # A shift of all scores of a query leaves its softmax as it is: what is left is rounding.
            assert largest < 1e-8, parameter_name
        else:
            assert largest > 1e-7, parameter_name


@every_method_and_model
def test_padding_changes_no_row(name, kind):
    backbone = make_backbone(kind, dtype=torch.float64)
    batch = batch_for(backbone, 9, 4)
    pooling = "mean" if kind in ("bert", "electra") else backbone.pooling
    with resident(backbone, make_adapter(backbone, SAMPLES[name], trained=True, pooling=pooling)) as model:
        padded = model(**batch).logits[1:]
        alone = model(**{key: value[1:, :4] for key, value in batch.items()}).logits
    # The head computes in float32, from vectors that agree to float64's rounding: some units of its last place.
    torch.testing.assert_close(padded, alone, rtol=0, atol=4e-6)


@every_method_and_model
def test_saved_and_loaded_it_says_the_same_to_the_bit(name, kind, tmp_path):
    backbone = make_backbone(kind)
    batch = batch_for(backbone, 7, 4)
    adapter = make_adapter(backbone, SAMPLES[name], trained=True)
    with resident(backbone, adapter) as model:
        expected = model(**batch).logits
    adapter.save(tmp_path / "a")
    with resident(make_backbone(kind), Adapter.load(tmp_path / "a")) as model:
        assert torch.equal(model(**batch).logits, expected)


@every_method_and_model
def test_trainable_and_resident_adapters_compute_the_same(name, kind):
    backbone = make_backbone(kind)
    batch = batch_for(backbone, 7, 4)
    model = make_trainable(backbone, SAMPLES[name], trained=True)
    with torch.no_grad():
        trained = model.eval()(**batch).logits
    adapter = model.adapter("a")
    model.detach()
    with resident(backbone, adapter) as model:
        assert torch.equal(model(**batch).logits, trained)


@pytest.mark.parametrize("kind", ["bert", "distilbert"])
@pytest.mark.parametrize("name", SAMPLES)
def test_gradient_checkpointing_recomputes_and_gives_the_same_gradients(name, kind):
    backbone = make_backbone(kind)
    batch = batch_for(backbone, 7, 4, 5)
    layers = backbone.model.get_submodule("transformer.layer" if kind == "distilbert" else "encoder.layer")
    gradients, passes = [], []
    for checkpointing in (False, True):
        model = make_trainable(backbone, SAMPLES[name], trained=True)
        if checkpointing:
            model.gradient_checkpointing_enable()
        count = []
        # The feed-forward's module is inside the part that is recomputed.
        inside = [layer.get_submodule("ffn" if kind == "distilbert" else "intermediate") for layer in layers]
        hooks = [module.register_forward_hook(lambda *_, count=count: count.append(1)) for module in inside]
        model(**batch, labels=LABELS).loss.backward()
        for hook in hooks:
            hook.remove()
        gradients.append({n: p.grad for n, p in named(model).items()})
        passes.append(len(count))
        model.detach()
    assert gradients[0].keys() == gradients[1].keys()
    for parameter_name, gradient in gradients[0].items():
        assert torch.equal(gradient, gradients[1][parameter_name]), parameter_name
    assert passes == [LAYERS, 2 * LAYERS]


@every_method_and_model
def test_a_seed_is_one_adapter(name, kind):
    backbone = make_backbone(kind)
    torch.manual_seed(1)
    first = make_adapter(backbone, SAMPLES[name], seed=3)
    torch.manual_seed(2)
    again = make_adapter(backbone, SAMPLES[name], seed=3)
    other = make_adapter(backbone, SAMPLES[name], seed=4)
    assert all(torch.equal(tensor, again.tensors[key]) for key, tensor in first.tensors.items())
    assert not torch.equal(first.tensors["head.classifier.weight"], other.tensors["head.classifier.weight"])
    assert all(t.dtype == torch.float32 and t.device.type == "cpu" for t in first.tensors.values())
    assert first.num_parameters == sum(counts(declare(backbone, SAMPLES[name], first.head)).values())


def test_parameters_stand_under_their_dotted_names():
    tensors = {"layers.0.a.weight": torch.ones(2), "layers.0.a.bias": torch.zeros(1), "layers.10.b": torch.ones(3)}
    tree = ParameterTree(tensors)
    assert list(tree.state_dict()) == list(tensors)
    assert all(torch.equal(tree.get_parameter(name), tensor) for name, tensor in tensors.items())
