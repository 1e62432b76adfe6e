"""Low-rank op: y + B(A x) at a linear site (LoRA and its relatives lower to it)."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from graftwork.backbones import SiteKind
from graftwork.ops import routing
from graftwork.ops.op import Forward, Op, Place


@dataclass(frozen=True, kw_only=True)
class LowRank(Op):
    """y = W x + b + B A dropout(x) (Hu et al. 2021, eq. 3, with any scale inside B).

    Shapes: A (r, in), B (out, r), each with a leading slot dimension in a slab. Padding the rank with zeros is exact.
    """

    A: Float[Tensor, "*S r in"]
    B: Float[Tensor, "*S out r"]
    dropout: float = 0.0

    kinds: ClassVar[frozenset[SiteKind]] = frozenset({"linear"})

    def around(self, forward: Forward, place: Place) -> Forward:
        def low_rank(x: Tensor) -> Tensor:
            shrunk = routing.linear(F.dropout(x, self.dropout, place.training), self.A)
            return routing.add_linear(forward(x), shrunk, self.B)

        return low_rank

    def into(self, frozen: Mapping[str, Tensor]) -> dict[str, Tensor]:
        difference = self.B.double() @ self.A.double()
        return {**frozen, "weight": (frozen["weight"].double() + difference).to(frozen["weight"])}
