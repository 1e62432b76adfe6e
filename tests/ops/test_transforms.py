"""Every op under the transforms of `torch.func`: mapped over its parameters, forward-mode, and derived twice.

The references are one call after another, central differences in float64, and torch's own `gradcheck`.
"""

from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
import torch.nn as nn
from closeness import close
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck
from torch.func import grad, jvp, vmap
from torch.nn.attention import SDPBackend, sdpa_kernel

import graftwork.ops
from graftwork.backbones.attention import attention
from graftwork.ops import (
    Added,
    Bias,
    Bottleneck,
    Dense,
    Fused,
    Gated,
    Grid,
    KeyValue,
    LowRank,
    Norm,
    Op,
    PartGates,
    Prompt,
    PromptedEncoder,
    Remember,
    Route,
    Scale,
    Shared,
    SharedLowRank,
)
from graftwork.ops.lowrank import Joint

B, T, D, OUT, R = 4, 2, 4, 3, 2
HEADS, WIDE = 2, 2
pytestmark = pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated:DeprecationWarning")
"""By torch itself, where it first derives in forward mode."""

COPIES = 3
"""Of an op's parameters that one call is mapped over."""

ROUTES = {
    "alone": None,
    "even": Route((0, 0, 1, 1), 2),
    "rows": Route((1, 0, 1, 1), 2),
    "blocks": Route((0, 1, 1, 1), 2),
}

DIFFERENCED = 2**20
"""Units of a central difference in steps of 1e-4 in float64, which divides roundings by the step: 2^16 units were seen.
These are 2e-10 of the largest number, and what is missing makes 0.01 of it."""


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def linear(out: int = OUT) -> nn.Linear:
    made = nn.Linear(D, out).double().requires_grad_(False)
    made.weight.copy_(random(out, D, seed=1))
    made.bias.copy_(random(out, seed=2))
    return made


def norm(kind: Callable[[int], nn.Module]) -> nn.Module:
    made = kind(D).double().requires_grad_(False)
    for i, parameter in enumerate(made.parameters()):
        parameter.copy_(random(D, seed=3 + i))
    return made


class RootMeanSquare(nn.Module):
    """A norm that is written out in Python, as many families have, but in the precision of what enters."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        return self.weight * (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-3))


class Table(nn.Embedding):
    """Has its rows scaled, as BART has."""

    def forward(self, ids: Tensor) -> Tensor:
        return super().forward(ids) * 1.5


class Attending(nn.Module):
    """Attention over given rows and its own keys and values, all of them linear in x."""

    is_causal = False

    def __init__(self) -> None:
        super().__init__()
        self.maps = [random(D, D, seed=i) for i in (5, 6, 7)]

    def forward(self, x: Tensor, rows=None) -> Tensor:
        split = [(x @ W).unflatten(-1, (HEADS, WIDE)).transpose(1, 2) for W in self.maps]
        return attention(self, *split, None, rows=rows)[0].flatten(-2)


class Stack(nn.Module):
    """Takes embeddings as a stack does, and mixes their positions."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(9, D).double().requires_grad_(False)
        self.table.weight.copy_(random(9, D, seed=8))

    def get_input_embeddings(self) -> nn.Module:
        return self.table

    def forward(self, input_ids=None, inputs_embeds=None, attention_mask=None, encoder_attention_mask=None):
        states = self.table(input_ids) if inputs_embeds is None else inputs_embeds
        if attention_mask is not None:
            states = states * attention_mask[..., None]
        mixed = torch.tanh(states.cumsum(dim=1))
        if encoder_attention_mask is not None:
            mixed = mixed * encoder_attention_mask.sum(dim=1)[:, None, None]
        return Output(last_hidden_state=mixed)


class Output(dict):
    """A ModelOutput as far as ops look at it."""

    def __getattr__(self, name):
        return self[name]

    def __setattr__(self, name, value):
        self[name] = value


@dataclass(frozen=True)
class Case:
    """An op at a place.

    Attributes:
        op: makes it of its tensors.
        shapes: of the tensors, of one adapter.
        inner: makes the module at the place.
        x: what enters; numbers are derived by, too.
        call: how the place is called, and what of its output is looked at.
        routed: by which routes.
    """

    op: Callable[..., Op]
    shapes: dict[str, tuple[int, ...]]
    inner: Callable[[], nn.Module] = linear
    x: Callable[[], Tensor] = lambda: random(B, T, D, seed=9)
    call: Callable = lambda forward, x: forward(x)
    routed: tuple[str, ...] = tuple(ROUTES)


LOW_RANK = {"A": (R, D), "B": (OUT, R)}
BOTTLENECK = {"down": (R, D), "down_bias": (R,), "up": (D, R), "up_bias": (D,)}
DEEP = {"hidden": (1, R, R), "hidden_bias": (1, R), "norm_gain": (D,), "norm_bias": (D,)}
ROWS = {"keys": (HEADS, 2, WIDE), "values": (HEADS, 2, WIDE)}
IDS = torch.tensor([[1, 9], [10, 0], [4, 10], [8, 7]])
SHARED = Shared(random(R, D, seed=40)), Shared(random(OUT, R, seed=41))
MASK = torch.tensor([[1, 1], [1, 1], [0, 1], [1, 0]])


def gated(weight: Tensor, bias: Tensor, A: Tensor, B: Tensor) -> Op:
    return Gated(ops=(LowRank(A=A, B=B),), weight=weight, bias=bias)


def fused(members: Tensor, score: Tensor, score_bias: Tensor, outside: Tensor, **own: Tensor) -> Op:
    """A fusion of two parts, and a unit that is of neither."""
    present = members.new_ones(members.shape[:-1])
    gate = PartGates(members=members, present=present, score=score, score_bias=score_bias, outside=outside)
    return Fused(**own, gates=(gate,), activations=("gelu",))


def routed(members: Tensor, router: Tensor, router_bias: Tensor, selects: Tensor, **own: Tensor) -> Op:
    """Gates on low-rank parts and tanh units."""
    present = router.new_ones(router.shape[:-1])
    gate = PartGates(members=members, present=present, router=router, router_bias=router_bias, normalise="sigmoid")
    return Fused(**own, selects=selects, gates=(gate,), activations=("identity", "tanh"), at="linear")


def joint(A: Tensor, B: Tensor) -> Op:
    return LowRank(A=A, B=B, joint=Joint("both", 1))


def shared_low_rank(d: Tensor, b: Tensor) -> Op:
    return SharedLowRank(A=SHARED[0], B=SHARED[1], d=d, b=b)


def twice(forward, x: Tensor) -> Tensor:
    return forward(forward(x))


def prompted(forward, ids: Tensor) -> Tensor:
    return forward(input_ids=ids % 9, attention_mask=MASK).last_hidden_state


CASES = {
    "added": Case(Added, {"rows": (2, D)}, lambda: Table(9, D).double(), lambda: IDS),
    "bias": Case(Bias, {"b": (OUT,)}),
    "bottleneck": Case(lambda **t: Bottleneck(**t, activation="gelu"), BOTTLENECK, nn.Identity),
    "bottleneck-multiplying": Case(
        lambda **t: Bottleneck(**t, activation="tanh", multiply=True), BOTTLENECK, nn.Identity
    ),
    "bottleneck-deep-at-norm": Case(
        lambda **t: Bottleneck(**t, activation="silu", at="norm", norm_at="output"),
        {**BOTTLENECK, **DEEP},
        lambda: norm(nn.LayerNorm),
    ),
    "dense": Case(
        lambda weight, bias: Dense(differences={"weight": weight, "bias": bias}),
        {"weight": (OUT, D), "bias": (OUT,)},
        routed=("alone",),
    ),
    "dense-at-norm": Case(
        lambda weight: Dense(differences={"weight": weight}),
        {"weight": (D,)},
        lambda: norm(RootMeanSquare),
        routed=("alone",),
    ),
    "dense-at-table": Case(
        lambda weight: Dense(differences={"weight": weight}),
        {"weight": (9, D)},
        lambda: Table(9, D).double().requires_grad_(False),
        lambda: IDS % 9,
        routed=("alone",),
    ),
    "dense-at-convolution": Case(
        lambda weight: Dense(differences={"weight": weight}),
        {"weight": (3, 2, 2, 2)},
        lambda: nn.Conv2d(2, 3, 2).double().requires_grad_(False),
        lambda: random(B, 2, 3, 3),
        routed=("alone",),
    ),
    "fused": Case(
        fused,
        {"down": (3, D), "down_bias": (3,), "up": (D, 3), "members": (2, 3), "outside": (3,)}
        | {"score": (3, D), "score_bias": (3,)},
        nn.Identity,
    ),
    "fused-low-rank": Case(
        routed,
        {"down": (4, D), "down_bias": (4,), "up": (OUT, 4), "selects": (2, 4)}
        | {"members": (2, 4), "router": (2, OUT), "router_bias": (2,)},
    ),
    "gated": Case(gated, {"weight": (1, D), "bias": (1,), **LOW_RANK}),
    "grid": Case(lambda change: Grid(change=change, size=(1, 2)), {"change": (1, 2)}),
    "key-value": Case(KeyValue, ROWS, Attending, routed=("alone", "even", "rows")),
    "low-rank": Case(LowRank, LOW_RANK),
    "low-rank-beside-a-module": Case(LowRank, LOW_RANK, lambda: nn.Sequential(linear())),
    "low-rank-without-tokens": Case(LowRank, LOW_RANK, x=lambda: random(B, D)),
    "low-rank-joint": Case(joint, {"A": (2, R, D), "B": (D, R)}, lambda: linear(D), call=twice),
    "norm": Case(Norm, {"gain": (D,), "bias": (D,)}, lambda: norm(nn.LayerNorm)),
    "norm-root-mean-square": Case(Norm, {"gain": (D,)}, lambda: norm(nn.RMSNorm)),
    "norm-in-python": Case(Norm, {"gain": (D,)}, lambda: norm(RootMeanSquare)),
    "prompt": Case(Prompt, {"vectors": (2, D)}, Stack, lambda: IDS, prompted, ("alone", "even", "rows")),
    "shared-low-rank": Case(shared_low_rank, {"d": (R,), "b": (OUT,)}),
    "scale": Case(Scale, {"v": (OUT,)}),
    "scale-at-input": Case(lambda v: Scale(v=v, at="input"), {"v": (D,)}),
}

UNTRAINED = {
    "remember": (lambda: Remember(key="x"), linear),
    "prompted-encoder": (lambda: PromptedEncoder(length=2), Stack),
}
"""Ops without parameters: what they do is derived by what enters alone."""

ALL = [(case, route) for case in CASES for route in CASES[case].routed]


def test_every_op_is_here():
    ops = {getattr(graftwork.ops, name) for name in graftwork.ops.__all__}
    ops = {op for op in ops if isinstance(op, type) and issubclass(op, Op) and op is not Op}
    here = {type(case.op(**{n: random(*s) for n, s in case.shapes.items()})) for case in CASES.values()}
    assert here | {type(make()) for make, _ in UNTRAINED.values()} == ops


class Computed:
    """What a place computes with an op there, as a function of x and the op's tensors, and values to call it with."""

    def __init__(self, case: str, route: str, make_place) -> None:
        self.case, self.route, self.make_place = CASES[case], ROUTES[route], make_place
        self.inner = self.case.inner()
        slots = () if self.route is None else (self.route.count,)
        self.x = self.case.x()
        self.tensors = tuple(0.5 * random(*slots, *s, seed=20 + i) for i, s in enumerate(self.case.shapes.values()))
        self.by_x = self.x.is_floating_point()
        self.given = (self.x, *self.tensors) if self.by_x else self.tensors

    def __call__(self, *given: Tensor) -> Tensor:
        x, *tensors = given if self.by_x else (self.x, *given)
        op = self.case.op(**dict(zip(self.case.shapes, tensors, strict=True)))
        if self.route is not None:
            op = op.slab(self.route.count).spread(self.route)
        return self.case.call(op.around(self.inner, self.make_place(self.inner)), x)

    def loss(self, *given: Tensor) -> Tensor:
        return (self(*given) ** 2).sum()

    def others(self, seed: int) -> tuple[Tensor, ...]:
        """Values of the same shapes."""
        return tuple(random(*t.shape, seed=seed + i) for i, t in enumerate(self.given))


@pytest.fixture(autouse=True)
def products():
    """No fused kernel of torch's attention is derived twice, and the processor's is mapped slowly, with a warning."""
    with sdpa_kernel(SDPBackend.MATH):
        yield


@pytest.fixture
def computed(make_place):
    return lambda case, route: Computed(case, route, make_place)


def along(function, at: tuple[Tensor, ...], direction: tuple[Tensor, ...], step: float = 1e-4) -> Tensor:
    """The derivative of a function in a direction, by central differences of the fourth order."""
    by = lambda n: function(*(t + n * step * d for t, d in zip(at, direction, strict=True)))  # noqa: E731
    return (8 * (by(1) - by(-1)) - (by(2) - by(-2))) / (12 * step)


@pytest.mark.parametrize(("case", "route"), ALL)
def test_mapped_over_its_parameters(case, route, computed):
    function = computed(case, route)
    each = [function.others(50 * i) for i in range(COPIES)]
    stacked = [torch.stack(own) for own in zip(*each, strict=True)]
    expected = torch.stack([function(*own) for own in each])
    close(vmap(function)(*stacked), expected)
    # Over one of them at a time, too: the others are the same for all.
    for i in range(len(function.given)):
        mixed = [stacked[j] if j == i else each[0][j] for j in range(len(stacked))]
        dims = tuple(0 if j == i else None for j in range(len(stacked)))
        expected = torch.stack([function(*(own[i] if j == i else each[0][j] for j in range(len(own)))) for own in each])
        close(vmap(function, dims)(*mixed), expected)


@pytest.mark.parametrize(("case", "route"), ALL)
def test_forward_mode(case, route, computed):
    function = computed(case, route)
    direction = function.others(70)
    value, tangent = jvp(function, function.given, direction)
    close(value, function(*function.given))
    close(tangent, along(function, function.given, direction), DIFFERENCED)
    # By one of them at a time: the others have no tangents.
    for i in range(len(function.given)):
        alone = lambda t: function(*function.given[:i], t, *function.given[i + 1 :])  # noqa: B023, E731
        _, tangent = jvp(alone, (function.given[i],), (direction[i],))
        close(tangent, along(alone, (function.given[i],), (direction[i],)), DIFFERENCED)


@pytest.mark.parametrize(("case", "route"), ALL)
def test_derived_twice(case, route, computed):
    function = computed(case, route)
    given = [t.clone().requires_grad_() for t in function.given]
    assert gradcheck(function, given, check_forward_ad=True, check_batched_grad=True, fast_mode=True)
    assert gradgradcheck(function, given, fast_mode=True)


@pytest.mark.parametrize(("case", "route"), ALL)
def test_transforms_of_transforms(case, route, computed):
    """A gradient for each copy at once, and the change of a gradient in a direction (a product with the Hessian)."""
    function = computed(case, route)
    by_all = tuple(range(len(function.given)))
    each = [function.others(50 * i) for i in range(COPIES)]
    stacked = [torch.stack(own) for own in zip(*each, strict=True)]
    for found, *own in zip(
        vmap(grad(function.loss, by_all))(*stacked), *(grad(function.loss, by_all)(*own) for own in each), strict=True
    ):
        close(found, torch.stack(own))
    direction = function.others(70)
    gradient = grad(function.loss, by_all)
    _, changes = jvp(gradient, function.given, direction)
    for i, change in enumerate(changes):
        close(change, along(lambda *given: gradient(*given)[i], function.given, direction), DIFFERENCED)  # noqa: B023


@pytest.mark.parametrize("name", UNTRAINED)
def test_an_op_without_parameters_stands_in_no_ones_way(name, make_place):
    """What enters a `Remember` stays what it is under a transform; a decoder is told of the rows of a prompt."""
    make, make_inner = UNTRAINED[name]
    inner = make_inner()
    place = make_place(inner)
    forward = make().around(inner, place)

    def function(x: Tensor) -> Tensor:
        if name == "remember":
            return forward(x) + place.memory["x"].sum()
        return forward(inputs_embeds=x, encoder_attention_mask=MASK).last_hidden_state

    x = random(COPIES, B, T, D, seed=1)
    close(vmap(function)(x), torch.stack([function(own) for own in x]))
    _, tangent = jvp(function, (x[0],), (x[1],))
    close(tangent, along(function, (x[0],), (x[1],)), DIFFERENCED)
    assert gradgradcheck(function, x[0].clone().requires_grad_(), fast_mode=True)
