"""Gated op: other ops whose effect together is multiplied, at each token, by a gate that reads the hidden state."""

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from graftwork.backbones import SiteKind
from graftwork.ops import routing
from graftwork.ops.op import Copy, Forward, Op, Place, join_slabs
from graftwork.ops.routing import Route
from graftwork.ops.shared import Shared


@dataclass(frozen=True, kw_only=True)
class Gated(Op):
    """y = f(x) + σ(w z + b) · (g(x) − f(x)), with g the ops one around the other and around f, for one gate a token
    (Mao et al. 2022, section 3).

    Shapes: weight (1, width of z), bias (1).

    Attributes:
        ops: the first of them innermost.
        reads: whether z is x or, at a sub-layer's result, f(x): what enters the module there need not be as wide as the
            residual stream.
    """

    ops: tuple[Op, ...]
    weight: Float[Tensor, "*S 1 in"]
    bias: Float[Tensor, "*S 1"]
    reads: Literal["input", "output"] = "input"

    kinds: ClassVar[frozenset[SiteKind]] = frozenset({"linear", "result", "norm"})
    unmergeable: ClassVar[str] = "a gate depends on the input"

    def around(self, forward: Forward, place: Place) -> Forward:
        def gated(x: Tensor) -> Tensor:
            y: Tensor = forward(x)
            # What the ops ask of the frozen module is at hand, unless they ask it of something else.
            changed: Forward = lambda other: y if other is x else forward(other)  # noqa: E731
            for op in self.ops:
                changed = op.around(changed, place)
            read = y if self.reads == "output" else x
            gate = torch.sigmoid(routing.linear(read, self.weight, self.bias))
            result: Tensor = y + gate * (changed(x) - y)
            return result

        return gated

    def for_inference(self) -> "Gated":
        return replace(self, ops=tuple(op.for_inference() for op in self.ops))

    def mapped(self, change: Callable[[Tensor], Tensor]) -> "Op":
        ops = tuple(op.mapped(change) for op in self.ops)
        return replace(self, ops=ops, weight=change(self.weight), bias=change(self.bias))

    def shared(self) -> list[Shared]:
        return [shared for op in self.ops for shared in op.shared()]

    def with_shared(self, change: Callable[[Shared], Shared]) -> "Op":
        return replace(self, ops=tuple(op.with_shared(change) for op in self.ops))

    def numbers(self) -> list[Tensor]:
        return [self.weight, self.bias, *(tensor for op in self.ops for tensor in op.numbers())]

    def alike(self) -> Hashable:
        return (Gated, tuple(op.alike() for op in self.ops), self.reads)

    def slab(self, slots: int) -> "Op":
        return replace(self, ops=tuple(op.slab(slots) for op in self.ops))

    def spread(self, route: Route) -> "Op":
        ops = tuple(op.spread(route) for op in self.ops)
        return replace(self, ops=ops, weight=route.spread(self.weight), bias=route.spread(self.bias))

    def laid_out(self, copy: Copy) -> "Op":
        ops = tuple(op.laid_out(copy) for op in self.ops)
        return replace(self, ops=ops, weight=copy(self.weight), bias=copy(self.bias))

    def neutral(self, frozen: Mapping[str, Tensor]) -> "Op":
        nothing = torch.zeros_like(self.weight[:1]), torch.zeros_like(self.bias[:1])
        ops = tuple(op.neutral(frozen) for op in self.ops)
        return replace(self, ops=ops, weight=nothing[0], bias=nothing[1])

    def joined(self, parts: Sequence[Op]) -> "Op":
        gated = [part for part in parts if isinstance(part, Gated)]
        weight, bias = (join_slabs(own) for own in ([g.weight for g in gated], [g.bias for g in gated]))
        ops = tuple(first.joined([part.ops[place] for part in gated]) for place, first in enumerate(self.ops))
        return replace(self, ops=ops, weight=weight, bias=bias)
