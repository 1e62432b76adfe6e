"""Each op against the same computation written out by hand in float64."""

import pytest
import torch
import torch.nn as nn
import torch.nn.functional as F
from closeness import close
from tiny import make_backbone

from graftwork.errors import SiteError
from graftwork.ops import Bottleneck, Dense, KeyValue, LowRank, Norm, Route
from graftwork.ops.op import check, ordered

B, T, D, OUT, R, SLOTS = 4, 5, 6, 3, 2, 3
ROWS = (2, 0, 2, 1)
ROUTE = Route(ROWS, SLOTS)
ROUTES = [ROUTE, Route((0, 0, 0, 1, 2, 2), SLOTS)]


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def make_linear(seed: int = 10) -> nn.Linear:
    linear = nn.Linear(D, OUT).double()
    linear.weight.data, linear.bias.data = random(OUT, D, seed=seed), random(OUT, seed=seed + 1)
    return linear.requires_grad_(False)


def make_norm() -> nn.LayerNorm:
    norm = nn.LayerNorm(D, eps=1e-3).double()
    norm.weight.data, norm.bias.data = random(D, seed=20), random(D, seed=21)
    return norm.requires_grad_(False)


def low_rank(seed: int) -> dict[str, torch.Tensor]:
    return {"A": random(R, D, seed=seed), "B": random(OUT, R, seed=seed + 50)}


def bottleneck(seed: int) -> dict[str, torch.Tensor]:
    shapes = {"down": (R, D), "down_bias": (R,), "up": (D, R), "up_bias": (D,)}
    return {name: random(*shape, seed=seed + 60 + i) for i, (name, shape) in enumerate(shapes.items())}


def norm(seed: int) -> dict[str, torch.Tensor]:
    return {"gain": random(D, seed=seed), "bias": random(D, seed=seed + 70)}


def low_rank_by_hand(x, A, B):
    W, b = make_linear().weight, make_linear().bias
    return x @ W.T + b + (x @ A.T) @ B.T


def bottleneck_by_hand(x, down, down_bias, up, up_bias):
    z = x @ down.T + down_bias
    gelu = z * 0.5 * (1 + torch.erf(z / 2**0.5))
    return x + gelu @ up.T + up_bias


def norm_by_hand(x, gain, bias):
    centred = x - x.mean(-1, keepdim=True)
    return centred / (centred.square().mean(-1, keepdim=True) + 1e-3).sqrt() * gain + bias


CASES = {
    "low-rank": (LowRank, low_rank, low_rank_by_hand, make_linear, {}),
    "bottleneck": (Bottleneck, bottleneck, bottleneck_by_hand, nn.Identity, {"activation": "gelu"}),
    "norm": (Norm, norm, norm_by_hand, make_norm, {}),
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("tokens", [(), (T,)])
def test_one_adapter(case, tokens, make_place):
    op, make, by_hand, inner, options = CASES[case]
    x, tensors, inner = random(B, *tokens, D), make(1), inner()
    found = op(**tensors, **options).around(inner, make_place(inner))(x)
    close(found, by_hand(x, **tensors))


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("tokens", [(), (T,)])
@pytest.mark.parametrize("route", ROUTES, ids=["rows", "blocks"])
def test_a_slab_gives_each_row_its_own_adapter(case, tokens, route, make_place):
    op, make, by_hand, inner, options = CASES[case]
    x, each, inner = random(len(route.slots), *tokens, D), [make(seed) for seed in (1, 2, 3)], inner()
    slab = {name: torch.stack([tensors[name] for tensors in each]) for name in each[0]}
    found = op(**slab, **options).spread(route).around(inner, make_place(inner))(x)
    expected = torch.stack([by_hand(x[i], **each[s]) for i, s in enumerate(route.slots)])
    close(found, expected)


@pytest.mark.parametrize("activation", ["gelu", "relu", "tanh", "silu", "gelu_tanh", "sigmoid"])
def test_padding_a_bottleneck_with_zeros_is_exact(activation, make_place):
    x, tensors = random(B, T, D), bottleneck(1)
    wide = {
        "down": F.pad(tensors["down"], (0, 0, 0, 2)),
        "down_bias": F.pad(tensors["down_bias"], (0, 2)),
        "up": F.pad(tensors["up"], (0, 2)),
        "up_bias": tensors["up_bias"],
    }
    narrow, padded = (
        Bottleneck(**t, activation=activation).around(nn.Identity(), make_place())(x) for t in (tensors, wide)
    )
    close(padded, narrow)


def test_low_rank_dropout_acts_on_the_input_of_a_and_only_in_training(make_place):
    x, tensors, inner = random(B, T, D), low_rank(1), make_linear()
    op = LowRank(**tensors, dropout=0.5)
    resting = op.around(inner, make_place(inner))(x)
    close(resting, low_rank_by_hand(x, **tensors))
    torch.manual_seed(3)
    found = op.around(inner, make_place(inner, training=True))(x)
    torch.manual_seed(3)
    dropped = F.dropout(x, 0.5)
    assert int((dropped == 0).sum()) > 0
    expected = inner(x) + (dropped @ tensors["A"].T) @ tensors["B"].T
    close(found, expected)


@pytest.mark.parametrize("names", [("weight",), ("bias",), ("weight", "bias")])
def test_dense_adds_to_the_frozen_parameters(names, make_place):
    x, inner = random(B, T, D), make_linear()
    deltas = {"weight": random(OUT, D, seed=1), "bias": random(OUT, seed=2)}
    before = inner.weight.clone(), inner.bias.clone()
    found = Dense(differences={name: deltas[name] for name in names}).around(inner, make_place(inner))(x)
    W = inner.weight + (deltas["weight"] if "weight" in names else 0)
    b = inner.bias + (deltas["bias"] if "bias" in names else 0)
    close(found, x @ W.T + b)
    assert torch.equal(inner.weight, before[0])
    assert torch.equal(inner.bias, before[1])


def test_dense_at_a_norm_and_at_an_embedding(make_place):
    x, inner = random(B, T, D), make_norm()
    gain, bias = random(D, seed=1), random(D, seed=2)
    found = Dense(differences={"weight": gain, "bias": bias}).around(inner, make_place(inner))(x)
    close(found, norm_by_hand(x, inner.weight + gain, inner.bias + bias))
    table = nn.Embedding(9, D).double().requires_grad_(False)
    ids, delta = torch.tensor([[1, 8], [0, 3]]), random(9, D, seed=3)
    found = Dense(differences={"weight": delta}).around(table, make_place(table))(ids)
    assert torch.equal(found, (table.weight + delta)[ids])


def test_dense_sums_in_the_differences_precision(make_place):
    """A difference below half a unit of the weight's last place must not be lost before it has grown."""
    inner = nn.Linear(D, OUT).bfloat16().requires_grad_(False)
    x = torch.ones(1, D, dtype=torch.bfloat16)
    op = Dense(differences={"weight": torch.full((OUT, D), 1e-6)}).to(torch.bfloat16)
    assert op.differences["weight"].dtype == torch.float32
    expected = F.linear(x, (inner.weight.float() + 1e-6).bfloat16(), inner.bias)
    assert torch.equal(op.around(inner, make_place(inner))(x), expected)


def test_dense_refuses_a_difference_of_another_shape(make_place):
    inner = make_linear()
    with pytest.raises(SiteError, match=r"a difference of shape \(3, 3, 6\) does not fit a weight of shape \(3, 6\)"):
        Dense(differences={"weight": random(SLOTS, OUT, D)}).around(inner, make_place(inner))


def test_key_value_gives_each_row_its_own_rows(make_place):
    keys, values = random(SLOTS, 2, 3, 8, seed=1), random(SLOTS, 2, 3, 8, seed=2)
    seen = torch.tensor([[False] * 3, [True] * 3, [True, False, False]])
    given = {}

    def attend(*args, **kwargs):
        given.update(kwargs, args=args)
        return "output"

    op, x = KeyValue(keys=keys, values=values, seen=seen).spread(ROUTE), random(B, T, D)
    assert op.around(attend, make_place())(x, mask="m") == "output"
    assert (given["args"], given["mask"]) == ((x,), "m")
    rows = given["rows"]
    for i, s in enumerate(ROWS):
        assert torch.equal(rows.keys[i], keys[s])
        assert torch.equal(rows.values[i], values[s])
        assert torch.equal(rows.seen[i], seen[s])
    # Of two beams a row, both have the row's own.
    op.around(attend, make_place())(hidden_states=random(2 * B, T, D))
    assert torch.equal(given["rows"].keys[4:6], torch.stack([keys[2]] * 2))


def test_ops_that_cannot_act_where_they_should_are_refused():
    sites = make_backbone("bert").sites
    replacing = Norm(**norm(1)), Dense(differences={"weight": random(D)})
    with pytest.raises(SiteError, match=r"Norm and Dense both replace what site 'embeddings\.norm' computes"):
        check({"embeddings.norm": replacing}, sites)
    with pytest.raises(SiteError, match=r"Norm cannot act at site 'pooler'.* linear\n  expected: a site of kind norm"):
        check({"pooler": replacing[:1]}, sites)
    with pytest.raises(SiteError, match="no site is named 'poler'"):
        check({"poler": replacing[:1]}, sites)
    check({"embeddings.norm": replacing[:1], "pooler": [LowRank(**low_rank(1))]}, sites)


def test_the_replacing_op_stands_innermost(make_place):
    low, dense = LowRank(**low_rank(1)), Dense(differences={"weight": random(OUT, D, seed=2)})
    for given in ((low, dense), (dense, low)):
        acting = ordered({"s": given})["s"]
        assert list(acting) == [dense, low]
        forward = inner = make_linear()
        for op in acting:
            forward = op.around(forward, make_place(inner))
        x = random(B, T, D)
        expected = low_rank_by_hand(x, **low_rank(1)) + x @ dense.differences["weight"].T
        close(forward(x), expected)


@pytest.mark.parametrize("case", CASES)
def test_to_casts_and_gradients_flow_through(case):
    op, make, _, _, options = CASES[case]
    tensors = {name: t.float().requires_grad_() for name, t in make(1).items()}
    cast = op(**tensors, **options).to(torch.bfloat16)
    assert isinstance(cast, op)
    for name, tensor in tensors.items():
        assert torch.equal(getattr(cast, name), tensor.bfloat16())
        getattr(cast, name).sum().backward()
        assert torch.equal(tensor.grad, torch.ones_like(tensor))
    assert all(getattr(cast, name) == value for name, value in options.items())


def test_to_leaves_masks_and_settings_alone():
    seen = torch.ones(SLOTS, 3, dtype=torch.bool)
    op = KeyValue(keys=random(SLOTS, 2, 3, 8), values=random(SLOTS, 2, 3, 8), seen=seen).to(torch.float32)
    assert op.seen is seen
    assert op.keys.dtype == torch.float32
    assert LowRank(**low_rank(1), dropout=0.25).to(torch.float32).dropout == 0.25
