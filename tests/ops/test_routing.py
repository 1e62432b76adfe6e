"""Routes and primitives: a slab is a loop over rows, and one adapter costs no gather."""

import pytest
import torch
import torch.nn.functional as F
from closeness import close

from graftwork.ops import Bottleneck, KeyValue, LowRank, Norm, Route, routing

SLOTS, IN, OUT = 3, 6, 4
ROWS = (2, 0, 2, 1)
ROUTE = Route(ROWS, SLOTS)


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("tokens", [(), (5,), (2, 5)])
@pytest.mark.parametrize("with_bias", [False, True])
def test_linear_with_a_slab_is_a_loop_over_rows(tokens, with_bias):
    x, W = random(len(ROWS), *tokens, IN, seed=1), random(SLOTS, OUT, IN, seed=2)
    b = random(SLOTS, OUT, seed=3) if with_bias else None
    expected = torch.stack([F.linear(x[i], W[s], None if b is None else b[s]) for i, s in enumerate(ROWS)])
    found = routing.linear(x, ROUTE.spread(W), None if b is None else ROUTE.spread(b))
    assert found.shape == (len(ROWS), *tokens, OUT)
    close(found, expected)


@pytest.mark.parametrize("tokens", [(), (5,), (2, 5)])
def test_scale_with_a_slab_is_a_loop_over_rows(tokens):
    x, v = random(len(ROWS), *tokens, OUT, seed=1), random(SLOTS, OUT, seed=2)
    expected = torch.stack([x[i] * v[s] for i, s in enumerate(ROWS)])
    assert torch.equal(routing.scale(x, ROUTE.spread(v)), expected)


def test_gradients_of_a_slab_are_those_of_the_loop():
    x, W, b = random(len(ROWS), 5, IN, seed=1), random(SLOTS, OUT, IN, seed=2), random(SLOTS, OUT, seed=3)
    grads = []
    for compute in (
        lambda W, b: routing.linear(x, ROUTE.spread(W), ROUTE.spread(b)),
        lambda W, b: torch.stack([F.linear(x[i], W[s], b[s]) for i, s in enumerate(ROWS)]),
    ):
        leaves = W.clone().requires_grad_(), b.clone().requires_grad_()
        compute(*leaves).square().sum().backward()
        grads.append([leaf.grad for leaf in leaves])
    for found, expected in zip(*grads, strict=True):
        close(found, expected)


@pytest.fixture
def no_gather(monkeypatch):
    def refuse(*args, **kwargs):
        raise AssertionError("a gather")

    for name in ("index_select", "gather", "__getitem__"):
        monkeypatch.setattr(torch.Tensor, name, refuse)


def test_one_adapter_makes_no_gather(no_gather):
    x, W, v, b = random(4, 5, IN), random(OUT, IN), random(IN), random(OUT)
    assert torch.equal(routing.linear(x, W, b), F.linear(x, W, b))
    assert torch.equal(routing.scale(x, v), x * v)
    assert routing.per_row(v, x) is v


def test_ops_of_one_adapter_make_no_gather(no_gather, make_place):
    x = random(4, 5, IN)
    acting = [
        (LowRank(A=random(2, IN), B=random(OUT, 2)), torch.nn.Linear(IN, OUT).double()),
        (
            Bottleneck(
                down=random(2, IN), down_bias=random(2), up=random(IN, 2), up_bias=random(IN), activation="gelu"
            ),
            torch.nn.Identity(),
        ),
        (Norm(gain=random(IN), bias=random(IN)), torch.nn.LayerNorm(IN).double()),
    ]
    for op, inner in acting:
        assert op.around(inner, make_place(inner))(x).shape[:2] == (4, 5)
    op = KeyValue(keys=random(2, 3, 8), values=random(2, 3, 8))
    rows = op.around(lambda x, rows: rows, make_place())(x)
    assert rows.keys is op.keys
    assert rows.values is op.values
    assert rows.seen is None


@pytest.mark.parametrize(
    ("slots", "even"),
    [((0, 1, 2), True), ((0, 0, 1, 1, 2, 2), True), ((0, 1, 2, 0, 1, 2), False), ((0, 0, 1, 2), False)],
)
def test_even_groups_take_a_slab_as_it_is(slots, even):
    route, slab = Route(slots, SLOTS), random(SLOTS, 2)
    assert route.even is even
    spread = route.spread(slab)
    assert (spread is slab) is even
    assert torch.equal(routing.each(spread, len(slots)), torch.stack([slab[slot] for slot in slots]))


@pytest.mark.parametrize(
    ("slots", "blocks"),
    [
        ((0, 0, 0, 1, 1, 2), (3, 2, 1)),
        ((0, 0, 1, 1, 2, 2), None),  # even: one product of all
        ((0, 0, 1, 2, 0, 0), None),  # apart
        ((0, 0, 0, 1, 2), None),  # nearly as many slots as rows
    ],
)
def test_rows_stand_in_blocks_where_that_spares_a_gather(slots, blocks):
    assert Route(slots, SLOTS).blocks == blocks
    assert Route(slots, SLOTS, in_blocks=False).blocks is None


@pytest.fixture
def linear():
    inner = torch.nn.Linear(IN, OUT).double().requires_grad_(False)
    inner.weight.copy_(random(OUT, IN, seed=10))
    return inner


BLOCKS = Route((0, 0, 0, 1, 2, 2), SLOTS)


@pytest.mark.parametrize("choices", [1, 2])
@pytest.mark.parametrize("tokens", [(), (5,)])
@pytest.mark.parametrize("primitive", ["linear", "linear with a bias", "add_linear", "linear_and"])
def test_products_of_blocks_and_their_gradients_are_those_of_a_loop_over_rows(primitive, tokens, choices, linear):
    rows = [slot for slot in BLOCKS.slots for _ in range(choices)]
    given = {
        "x": random(len(rows), *tokens, IN, seed=1),
        "s": random(len(rows), *tokens, 2, seed=2),
        "W": random(SLOTS, OUT, IN, seed=3),
        "U": random(SLOTS, OUT, 2, seed=4),
        "b": random(SLOTS, OUT, seed=5),
    }

    def compute(x, s, W, U, b, *blocks):
        if primitive == "linear_and":
            return routing.linear_and(x, linear.weight, linear.bias, s, U, *blocks)
        if primitive == "add_linear":
            return routing.add_linear(linear(x), s, U, *blocks)
        return routing.linear(x, W, b if "bias" in primitive else None, *blocks)

    def by_rows(x, s, W, U, b):
        slabs = [torch.stack([slab[slot] for slot in rows]) for slab in (W, U, b)]
        return compute(x, s, *slabs)

    found, expected = [], []
    for function, into in ((lambda **own: compute(*own.values(), BLOCKS.blocks), found), (by_rows, expected)):
        leaves = {name: tensor.clone().requires_grad_() for name, tensor in given.items()}
        y = function(**leaves)
        y.square().sum().backward()
        into += [y.detach(), *(leaf.grad for leaf in leaves.values())]
    assert [own is None for own in found] == [own is None for own in expected]
    for own, other in zip(found, expected, strict=True):
        if own is not None:
            close(own, other)


@pytest.mark.parametrize("blocks", [None, BLOCKS.blocks], ids=["even", "blocks"])
def test_gradients_of_a_slab_lie_as_it_lies_also_under_autocast(blocks, linear):
    x, W, b = (t.float().requires_grad_() for t in (random(6, 5, IN), random(SLOTS, OUT, IN), random(SLOTS, OUT)))
    s, U = (t.float().requires_grad_() for t in (random(6, 5, 2), random(SLOTS, OUT, 2)))
    found = {}
    for lower in (False, True):
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=lower):
            y = routing.linear(x, W, b, blocks)
        assert y.dtype == (torch.bfloat16 if lower else torch.float32)
        found[lower] = torch.autograd.grad(y.sum(), (x, W, b))
    for own, exact in zip(found[True], found[False], strict=True):
        assert own.dtype == torch.float32
        close(own, exact, 4, precision=torch.bfloat16)
    y = routing.linear_and(x, linear.weight.float(), linear.bias.float(), s, U, blocks)
    for gradient in (*found[False], *torch.autograd.grad(y.sum(), (s, U))):
        assert gradient.is_contiguous()


def test_blocks_make_no_gather(no_gather):
    x, W = random(6, 5, IN), random(SLOTS, OUT, IN)
    found = routing.linear(x, W, None, BLOCKS.blocks)
    assert torch.equal(found, torch.cat([F.linear(own, w) for own, w in zip(x.split((3, 1, 2)), W, strict=True)]))


def test_each_row_of_a_pass_uses_the_slot_of_the_row_it_comes_from():
    """Choices and beams are rows running."""
    x, W, v = random(2 * len(ROWS), 5, IN, seed=1), random(SLOTS, OUT, IN, seed=2), random(SLOTS, IN, seed=3)
    slots = [slot for slot in ROWS for _ in range(2)]
    expected = torch.stack([x[i] @ W[s].T for i, s in enumerate(slots)])
    close(routing.linear(x, ROUTE.spread(W)), expected)
    expected = torch.stack([x[i] * v[s] for i, s in enumerate(slots)])
    assert torch.equal(routing.scale(x, ROUTE.spread(v)), expected)
