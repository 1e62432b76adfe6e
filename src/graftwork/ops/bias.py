"""Bias op: a vector added to the output of a linear map or norm (BitFit lowers to it)."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from jaxtyping import Float
from torch import Tensor

from graftwork.backbones import SiteKind
from graftwork.errors import SiteError
from graftwork.ops import routing
from graftwork.ops.op import Forward, Op, Place


@dataclass(frozen=True, kw_only=True)
class Bias(Op):
    """y = f(x) + b.

    Shapes: b (out), with a leading slot dimension in a slab.
    """

    b: Float[Tensor, "*S out"]

    kinds: ClassVar[frozenset[SiteKind]] = frozenset({"linear", "norm"})

    def around(self, forward: Forward, place: Place) -> Forward:
        def biased(x: Tensor) -> Tensor:
            y: Tensor = forward(x)
            return y + routing.per_row(self.b, y)

        return biased

    def into(self, frozen: Mapping[str, Tensor]) -> dict[str, Tensor]:
        if "bias" not in frozen:
            raise SiteError("Bias cannot be merged: the module has no bias")
        return {**frozen, "bias": (frozen["bias"].double() + self.b.double()).to(frozen["bias"])}
