"""Shared low-rank op: y + b ⊙ B(d ⊙ (A x)) at a linear site, with A and B that many sites and adapters share (VeRA)."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from graftwork.backbones import SiteKind
from graftwork.ops import routing
from graftwork.ops.op import Forward, Op, Place
from graftwork.ops.shared import Shared


@dataclass(frozen=True, kw_only=True)
class SharedLowRank(Op):
    """y = W x + c + b ⊙ B (d ⊙ (A dropout(x))) (Kopiczko et al. 2023, eq. 2).

    All rows of a batch go through A and B in one product each, whatever adapters they have.

    Shapes: A (r, in), B (out, r), never trained and in no slab; d (r), b (out), each with a leading slot dimension in a
    slab.

    Attributes:
        dropout: of the input to A, in training.
    """

    A: Shared
    B: Shared
    d: Float[Tensor, "*S r"]
    b: Float[Tensor, "*S out"]
    dropout: float = 0.0

    kinds: ClassVar[frozenset[SiteKind]] = frozenset({"linear"})

    def around(self, forward: Forward, place: Place) -> Forward:
        def low_rank(x: Tensor) -> Tensor:
            narrow = routing.scale(self._shrunk(x, place), self.d)
            y: Tensor = forward(x)
            return y + routing.scale(F.linear(narrow, self.B.tensor.to(narrow.dtype)), self.b)

        return low_rank

    def into(self, frozen: Mapping[str, Tensor]) -> dict[str, Tensor]:
        inner = self.d.double()[:, None] * self.A.tensor.double()
        difference = self.b.double()[:, None] * (self.B.tensor.double() @ inner)
        return {**frozen, "weight": (frozen["weight"].double() + difference).to(frozen["weight"])}

    def to(self, dtype: torch.dtype) -> Op:
        own = super().to(dtype)
        return replace(own, A=self.A.to(dtype), B=self.B.to(dtype))  # type: ignore[call-arg] # it is one of these

    def for_inference(self) -> "SharedLowRank":
        return replace(self, dropout=0.0) if self.dropout else self

    def shared(self) -> list[Shared]:
        return [self.A, self.B]

    def _shrunk(self, x: Tensor, place: Place) -> Tensor:
        """A dropout(x), which sites with one input compute once."""
        A = self.A.tensor.to(x.dtype)
        if self.dropout and place.training:
            return F.linear(F.dropout(x, self.dropout), A)
        given, of, product = place.memory.get("shared low rank", (None, None, None))
        if given is not x or of is not self.A.tensor or product is None:
            product = F.linear(x, A)
            place.memory["shared low rank"] = (x, self.A.tensor, product)
        found: Tensor = product
        return found
