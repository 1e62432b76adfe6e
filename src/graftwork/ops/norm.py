"""Norm op: a layer norm's gain and bias, replaced by trained ones."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
import torch.nn as nn
from jaxtyping import Float
from torch import Tensor

from graftwork.backbones import SiteKind
from graftwork.ops import routing
from graftwork.ops.op import Forward, Op, Place
from graftwork.ops.substitution import run_with


@dataclass(frozen=True, kw_only=True)
class Norm(Op):
    """y = normalised(x) ⊙ γ + β with γ, β in place of the frozen ones.

    Shapes: gain and bias (d), the bias None where the norm has none, each with a leading slot dimension in a slab,
    where an adapter without this op has the frozen values.
    """

    gain: Float[Tensor, "*S d"]
    bias: Float[Tensor, "*S d"] | None = None

    kinds: ClassVar[frozenset[SiteKind]] = frozenset({"norm"})
    replaces: ClassVar[bool] = True

    def around(self, forward: Forward, place: Place) -> Forward:
        def norm(x: Tensor) -> Tensor:
            if self.gain.dim() == 1:
                return self._normalise(place, x, self.gain, self.bias)
            if not isinstance(place.module, nn.LayerNorm | nn.RMSNorm):
                # Written out in Python (and not as y = n ⊙ γ in all families), so that gains broadcast.
                bias = None if self.bias is None else routing.per_row(self.bias, x)
                return self._normalise(place, x, routing.per_row(self.gain, x), bias)
            ones = torch.ones_like(self.gain[0])
            normalised = self._normalise(place, x, ones, None if self.bias is None else torch.zeros_like(ones))
            scaled = routing.scale(normalised, self.gain)
            return scaled if self.bias is None else scaled + routing.per_row(self.bias, x)

        return norm

    def neutral(self, frozen: Mapping[str, Tensor]) -> "Norm":
        like = {name: frozen[name].to(self.gain)[None] for name in ("weight", "bias") if name in frozen}
        return replace(self, gain=like["weight"], bias=None if self.bias is None else like["bias"])

    def into(self, frozen: Mapping[str, Tensor]) -> dict[str, Tensor]:
        bias = {} if self.bias is None else {"bias": self.bias.to(frozen["bias"])}
        return {**frozen, "weight": self.gain.to(frozen["weight"]), **bias}

    @staticmethod
    def _normalise(place: Place, x: Tensor, gain: Tensor, bias: Tensor | None) -> Tensor:
        like = place.module.get_parameter("weight")
        affine = {"weight": gain.to(like.dtype)} | ({} if bias is None else {"bias": bias.to(like.dtype)})
        y: Tensor = run_with(place.module, affine, x)
        return y
