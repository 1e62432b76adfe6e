"""Gated op: other ops whose effect together is multiplied, at each token, by a gate that reads the hidden state."""

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from graftwork.backbones import SiteKind
from graftwork.ops import routing
from graftwork.ops.op import Forward, Op, Place


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
