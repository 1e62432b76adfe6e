"""Norm op: a layer norm's gain and bias, replaced by trained ones."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor
from torch.func import functional_call

from graftwork.backbones import SiteKind
from graftwork.ops import routing
from graftwork.ops.op import Forward, Op, Place


@dataclass(frozen=True, kw_only=True)
class Norm(Op):
    """y = normalised(x) ⊙ γ + β with γ, β in place of the frozen ones.

    Shapes: gain and bias (d), each with a leading slot dimension in a bank, where slot 0 holds the frozen values.
    """

    gain: Float[Tensor, "*S d"]
    bias: Float[Tensor, "*S d"]

    kinds: ClassVar[frozenset[SiteKind]] = frozenset({"norm"})
    replaces: ClassVar[bool] = True

    def around(self, forward: Forward, place: Place) -> Forward:
        def norm(x: Tensor) -> Tensor:
            if self.gain.dim() == 1:
                y: Tensor = functional_call(place.inner, {"weight": self.gain, "bias": self.bias}, (x,))
                return y
            width = self.gain.shape[-1]
            plain = {"weight": torch.ones(width).to(x), "bias": torch.zeros(width).to(x)}
            normalised = functional_call(place.inner, plain, (x,))
            return routing.scale(normalised, self.gain, place.route) + routing.per_row(self.bias, place.route, x.dim())

        return norm
