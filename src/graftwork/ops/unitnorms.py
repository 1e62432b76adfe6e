"""Layer norms behind bottlenecks whose units stand side by side."""

from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor

from graftwork.ops import routing
from graftwork.ops.bottleneck import NORM_EPS
from graftwork.ops.routing import Blocks, Route
from graftwork.ops.tensortree import TensorTree


@dataclass(frozen=True, kw_only=True)
class UnitNorms(TensorTree):
    """Layer norms over what each part's units add up to, v = U z with the d numbers of a token. With Ũ = U less its
    mean over the d rows, v less its mean is Ũ z, and its variance is zᵀ G z with G = ŨᵀŨ / d, so that
        LN_{γ,β}(v) = (γ ⊙ Ũ) (z / √(zᵀ G z + ε)) + β:
    the units of a part are divided by one number a token, and what they add up to stays linear in them.

    Shapes: gram (M, M), G of each part in a block of its own; members (N, M), 1 where a unit is of the part of a norm;
    outside (M), 1 of units that are of none and are left as they are. Each with a leading slot dimension in a slab;
    padding with zeros is exact.
    """

    gram: Float[Tensor, "*S M M"]
    members: Float[Tensor, "*S N M"]
    outside: Float[Tensor, "*rows M"]

    def spread(self, route: Route) -> "UnitNorms":
        if route.blocks is None:
            return super().spread(route)
        return replace(self, outside=route.spread(self.outside))

    def __call__(self, z: Float[Tensor, "B *T M"], blocks: Blocks | None) -> Float[Tensor, "B *T M"]:
        """The units, divided. Where no gradients flow, what they become is written over them."""
        squares = routing.times(routing.linear(z, self.gram, None, blocks), z)
        variance = routing.linear(squares, self.members, None, blocks)
        # Rounding can leave a variance of nearly 0 below it.
        factors = torch.rsqrt(variance.clamp(min=0) + NORM_EPS)
        of_units = routing.linear(factors, self.members.mT, None, blocks)
        return routing.times(z, of_units + routing.per_row(self.outside, z))
