"""Scale op: a linear map's output, or its input, multiplied by a vector (IA3 and DoRA's magnitude lower to it)."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from graftwork.backbones import SiteKind
from graftwork.ops import routing
from graftwork.ops.op import Forward, Op, Place


@dataclass(frozen=True, kw_only=True)
class Scale(Op):
    """y = v ⊙ f(x), or y = f(v ⊙ x) at the input (Liu et al. 2022, section 3.3).

    Shapes: v (out), or (in) at the input, with a leading slot dimension in a slab.

    Attributes:
        at: whether the output is scaled, the bias with it, or the input.
    """

    v: Float[Tensor, "*S d"]
    at: Literal["output", "input"] = "output"

    kinds: ClassVar[frozenset[SiteKind]] = frozenset({"linear"})

    def around(self, forward: Forward, place: Place) -> Forward:
        def scaled(x: Tensor) -> Tensor:
            if self.at == "input":
                y: Tensor = forward(routing.scale(x, self.v))
                return y
            return routing.scale(forward(x), self.v)

        return scaled

    def neutral(self, frozen: Mapping[str, Tensor]) -> "Scale":
        return replace(self, v=torch.ones_like(self.v[:1]))

    def into(self, frozen: Mapping[str, Tensor]) -> dict[str, Tensor]:
        v, weight = self.v.double(), frozen["weight"].double()
        if self.at == "input":
            return {**frozen, "weight": (weight * v).to(frozen["weight"])}
        return {n: (t.double() * (v if t.dim() == 1 else v[:, None])).to(t) for n, t in frozen.items()}
