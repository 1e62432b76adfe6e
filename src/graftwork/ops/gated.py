"""Gated op: another op whose effect is multiplied, at each token, by a gate that reads the hidden state there."""

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from graftwork.backbones import SiteKind
from graftwork.ops import routing
from graftwork.ops.op import Forward, Op, Place, join_slabs


@dataclass(frozen=True, kw_only=True)
class Gated(Op):
    """y = f(x) + σ(w z + b) · (op(f)(x) − f(x)), for one gate a token (Mao et al. 2022, section 3).

    Shapes: weight (1, width of z), bias (1).

    Attributes:
        reads: whether z is x or, at a sub-layer's result, f(x): what enters the module there need not be as wide as the
            residual stream.
    """

    op: Op
    weight: Float[Tensor, "*S 1 in"]
    bias: Float[Tensor, "*S 1"]
    reads: Literal["input", "output"] = "input"

    kinds: ClassVar[frozenset[SiteKind]] = frozenset({"linear", "result", "norm"})
    unmergeable: ClassVar[str] = "a gate depends on the text"

    def around(self, forward: Forward, place: Place) -> Forward:
        def gated(x: Tensor) -> Tensor:
            y: Tensor = forward(x)
            # What the op asks of the frozen module is at hand, unless it asks it of something else.
            changed = self.op.around(lambda other: y if other is x else forward(other), place)(x)
            read = y if self.reads == "output" else x
            gate = torch.sigmoid(routing.linear(read, self.weight, self.bias))
            result: Tensor = y + gate * (changed - y)
            return result

        return gated

    def at_rest(self) -> "Gated":
        return replace(self, op=self.op.at_rest())

    def mapped(self, change: Callable[[Tensor], Tensor]) -> "Op":
        return replace(self, op=self.op.mapped(change), weight=change(self.weight), bias=change(self.bias))

    def numbers(self) -> list[Tensor]:
        return [*super().numbers(), *self.op.numbers()]

    def alike(self) -> Hashable:
        return (Gated, self.op.alike(), self.reads)

    def slab(self, slots: int) -> "Op":
        return replace(self, op=self.op.slab(slots))

    def neutral(self, frozen: Mapping[str, Tensor]) -> "Op":
        nothing = torch.zeros_like(self.weight[:1]), torch.zeros_like(self.bias[:1])
        return replace(self, op=self.op.neutral(frozen), weight=nothing[0], bias=nothing[1])

    def joined(self, parts: Sequence[Op]) -> "Op":
        gated = [part for part in parts if isinstance(part, Gated)]
        weight, bias = (join_slabs(own) for own in ([g.weight for g in gated], [g.bias for g in gated]))
        return replace(self, op=self.op.joined([part.op for part in gated]), weight=weight, bias=bias)
