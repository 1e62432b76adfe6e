"""LoRA with dropout as parts of compositions: each has its own in training; without it there is one wide product."""

import pytest
import torch
from closeness import PASS, close
from tiny import WIDTH, inputs_for, make_adapter, make_backbone

from graftwork.adapters.declared import lower
from graftwork.methods import Average, Fuse, Gate, LoRA
from graftwork.model import AdaptedModel
from graftwork.ops import Fused, LowRank, routing

SITE = "layers.0.ffn.up"
RATES = (0.3, 0.0, 0.5)

METHODS = {
    "gate": lambda own: Gate(parts=own, normalise="softmax"),
    "fuse": lambda own: Fuse(parts=own, attention_dropout=0.0),
    "average": lambda own: Average(parts=own),
}


class Lone:
    """A site without a model: what it computes is given."""

    def __init__(self, training):
        self.module, self.training, self.memory = torch.nn.Identity(), training, {}


def parts():
    return [LoRA(rank=2 + n, targets="ffn.up", dropout=p) for n, p in enumerate(RATES)]


def dropped(x):
    """x as each part has it, whose masks are drawn in the order of the parts."""
    return [torch.nn.functional.dropout(x, p) if p else x for p in RATES]


def combined(method, tensors, h, u):
    """What the parts' outputs u (N, B, T, d) become, as the composition's documents write it."""
    if isinstance(method, Average):
        return u.mean(0)
    if isinstance(method, Gate):
        g = (h @ tensors[f"gate.{SITE}.weight"].T + tensors[f"gate.{SITE}.bias"]).softmax(-1)
    else:
        Q, b_q, K, b_k, V = (tensors[f"fusion.{SITE}.{n}"] for n in ("query", "query_bias", "key", "key_bias", "value"))
        g = ((h @ Q.T + b_q) * (u @ K.T + b_k)).sum(-1).softmax(0).movedim(0, -1)
        u = u @ V.T
    return torch.einsum("btn,nbtd->btd", g, u)


@pytest.mark.parametrize("name", [*METHODS])
@pytest.mark.parametrize("training", [True, False])
def test_each_part_has_its_own_dropout_and_gradients_are_those_of_the_formula(name, training):
    backbone = make_backbone("bert", dtype=torch.float64)
    adapter = make_adapter(backbone, METHODS[name](parts()), trained=True)
    tensors = {n: t.double().requires_grad_() for n, t in adapter.tensors.items()}
    [op] = lower(backbone, adapter.method, adapter.head, tensors)[SITE]
    assert isinstance(op, LowRank if name == "average" else Fused)
    x = torch.randn(2, 5, WIDTH, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    frozen = torch.nn.Linear(WIDTH, 64, dtype=torch.float64).requires_grad_(False)
    torch.manual_seed(5)
    found = (op if training else op.for_inference()).around(frozen, Lone(training))(x)
    torch.manual_seed(5)
    given = dropped(x) if training else [x] * len(RATES)
    u = torch.stack(
        [
            own @ tensors[f"parts.{p.name}.{SITE}.A"].T @ tensors[f"parts.{p.name}.{SITE}.B"].T * p.method.scale
            for own, p in zip(given, adapter.method.parts, strict=True)
        ]
    )
    h = frozen(x)
    expected = h + combined(adapter.method, tensors, h, u)
    close(found, expected)
    direction = torch.randn(found.shape, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    own = [n for n in tensors if n.startswith("parts.") and SITE in n]
    both = [torch.autograd.grad((y * direction).sum(), [tensors[n] for n in own]) for y in (found, expected)]
    assert len(own) == 2 * len(RATES)
    for n, mine, theirs in zip(own, *both, strict=True):
        close(mine, theirs, what=n)


@pytest.mark.parametrize("name", [*METHODS])
def test_without_training_there_is_one_wide_product(name, monkeypatch):
    backbone = make_backbone("bert")
    adapter = make_adapter(backbone, METHODS[name](parts()), trained=True)
    model, seen, plain = AdaptedModel(backbone, {"a": adapter}), [], routing.linear

    def noted(x, weight, *rest, **more):
        seen.append(tuple(weight.shape))
        return plain(x, weight, *rest, **more)

    try:
        [op] = model.residents["a"].ops()[SITE]
        with monkeypatch.context() as patch, torch.no_grad():
            patch.setattr(routing, "linear", noted)
            op.around(torch.nn.Linear(WIDTH, 64), Lone(training=False))(torch.randn(2, 5, WIDTH))
        assert [shape for shape in seen if shape[-1] == WIDTH] == [(2 + 3 + 4, WIDTH)]
        if name == "average":
            batch = inputs_for(backbone.model, 7, 4)
            apart = model(**batch).logits
            model.merge("a")
            close(model(**batch).logits, apart, PASS)
    finally:
        model.detach()


@pytest.mark.parametrize("name", [*METHODS])
@pytest.mark.parametrize("train", [False, True])
def test_adapters_with_dropout_are_parts_that_can_be_trained(name, train):
    backbone = make_backbone("bert")
    alone = [make_adapter(backbone, method, trained=True, seed=n) for n, method in enumerate(parts())]
    batch = inputs_for(backbone.model, 7, 4)
    method = METHODS[name](alone).model_copy(update={"train_parts": train})
    model = AdaptedModel(backbone)
    model.add("a", make_adapter(backbone, method), trainable=True)
    try:
        model.train()
        with torch.no_grad():
            first, second = (model(**batch, output_hidden_states=True).hidden_states[-1] for _ in range(2))
        assert torch.equal(first, second) != train
        model(**batch, labels=torch.tensor([0, 1])).loss.backward()
        A = model.in_training("a").tensors()[f"parts.{method.parts[0].name}.{SITE}.A"]
        assert (A.grad is not None) == train
    finally:
        model.detach()


@pytest.mark.parametrize("ranks", [(2, 3), (4, 5)], ids=str)
def test_several_in_training_are_each_as_alone(ranks, monkeypatch):
    """Rows of two compositions share a pass. Dropout is here a factor, so that passes can be compared."""
    monkeypatch.setattr(torch.nn.functional, "dropout", lambda x, p, training=True, *_: x * (1 - p) if training else x)
    backbone = make_backbone("bert")
    model = AdaptedModel(backbone)
    for seed, (name, own) in enumerate((("a", (2, 3)), ("b", ranks))):
        method = Gate(parts=[LoRA(rank=r, dropout=p) for r, p in zip(own, (0.5, 0.2), strict=True)])
        model.add(name, make_adapter(backbone, method, trained=True, seed=seed), trainable=True)
    batch = inputs_for(backbone.model, 7, 4)
    try:
        both = model.train()(**batch, adapters=["a", "b"]).rows
        for i, name in enumerate(("a", "b")):
            row = {key: value[i : i + 1] for key, value in batch.items()}
            alone, resting = (model.train(on)(**row, adapters=name).logits[0] for on in (True, False))
            close(both[i], alone, PASS)
            assert (alone - resting).abs().max() > 1e-4
    finally:
        model.detach()


def test_a_composition_within_another_keeps_the_dropout_of_its_parts():
    backbone = make_backbone("bert", dtype=torch.float64)
    inner = Average(parts=[LoRA(rank=2, targets="ffn.up", dropout=p) for p in (0.3, 0.5)])
    adapter = make_adapter(backbone, Gate(parts=[LoRA(rank=3, targets="ffn.up"), inner]), trained=True)
    [op] = lower(backbone, adapter.method, adapter.head, {n: t.double() for n, t in adapter.tensors.items()})[SITE]
    assert [(own.start, own.stop, own.p) for own in op.dropouts] == [(3, 5, 0.3), (5, 7, 0.5)]
    assert op.for_inference().dropouts == ()
