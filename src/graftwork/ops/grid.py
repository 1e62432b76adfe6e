"""Grid op: a linear map whose weight is multiplied block by block (HyperGrid lowers to it)."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from graftwork.backbones import SiteKind
from graftwork.ops import routing
from graftwork.ops.op import Forward, Op, Place
from graftwork.ops.substitution import run_with


@dataclass(frozen=True, kw_only=True)
class Grid(Op):
    """y = (W ⊙ (1 + ψ(C))) x + b, with ψ(C) of the shape of W: the entry of block (r, c) is C_rc (Tay et al. 2021,
    "HyperGrid Transformers", arXiv:2007.05891).

    One adapter for all rows has its weight made, with no further product. Where rows have their own, the frozen product
    is made as it is, and for each of the c columns another one over the inputs of that column: together two products
    of W's size.

    Shapes: C (r, c), with a leading slot dimension in a slab; r divides out, c divides in.

    Attributes:
        size: (r, c). Grids of several sizes cannot share a slab.
        transposed: whether the module holds W as (in, out).
    """

    change: Float[Tensor, "*S r c"]
    size: tuple[int, int]
    transposed: bool = False

    kinds: ClassVar[frozenset[SiteKind]] = frozenset({"linear"})
    replaces: ClassVar[bool] = True

    def around(self, forward: Forward, place: Place) -> Forward:
        def gated(x: Tensor) -> Tensor:
            held = place.module.get_parameter("weight")
            weight = held.T if self.transposed else held
            if self.change.dim() > 2:
                y: Tensor = forward(x) + self._apart(x, weight)
                return y
            changed = weight + weight * self._blown_up(weight)
            own: Tensor = run_with(place.module, {"weight": changed.T if self.transposed else changed}, x)
            return own

        return gated

    def into(self, frozen: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The gated weight. Here `frozen` has the parameters as the module holds them."""
        held = frozen["weight"]
        weight = (held.T if self.transposed else held).double()
        changed = (weight * (1 + self._blown_up(weight))).to(held)
        return {**frozen, "weight": changed.T.contiguous() if self.transposed else changed}

    def _blown_up(self, weight: Float[Tensor, "out in"]) -> Float[Tensor, "out in"]:
        """ψ(C)."""
        rows, columns = (whole // own for whole, own in zip(weight.shape, self.size, strict=True))
        return self.change.to(weight).repeat_interleave(rows, dim=0).repeat_interleave(columns, dim=1)

    def _apart(self, x: Float[Tensor, "B *T in"], weight: Float[Tensor, "out in"]) -> Any:
        """What each row's own grid adds."""
        width, repeats = weight.shape[1] // self.size[1], weight.shape[0] // self.size[0]
        change = self.change.to(weight).repeat_interleave(repeats, dim=-2)
        inputs, blocks = torch.split(x, width, dim=-1), torch.split(weight, width, dim=1)
        parts = zip(inputs, blocks, change.unbind(-1), strict=True)
        return sum(routing.scale(F.linear(own, block), factors) for own, block, factors in parts)
