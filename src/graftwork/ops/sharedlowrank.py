"""Shared low-rank op: y + b ⊙ B(d ⊙ (A x)) at a linear site, with A and B that many sites and adapters share (VeRA)."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import ClassVar

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from graftwork.backbones import SiteKind
from graftwork.ops import routing
from graftwork.ops.op import Forward, Op, Place
from graftwork.ops.shared import Shared


@dataclass(frozen=True)
class JointProduct:
    """One product for several sites.

    Attributes:
        name: of the product, in the sub-layer.
        sites: how many use it.
    """

    name: str
    sites: int


@dataclass(frozen=True, kw_only=True)
class SharedLowRank(Op):
    """y = W x + c + b ⊙ B (d ⊙ (A dropout(x))) (Kopiczko et al. 2023, eq. 2).

    All rows of a batch go through A and B in one product each, whatever adapters they have.

    Shapes: A (r, in), B (out, r), never trained and in no slab; d (r), b (out), each with a leading slot dimension in a
    slab.

    Attributes:
        dropout: of the input to A, in training.
        joint: under which name the product with A is left for the other sites with the same input; None: it is not.
    """

    A: Shared
    B: Shared
    d: Float[Tensor, "*S r"]
    b: Float[Tensor, "*S out"]
    dropout: float = 0.0
    joint: JointProduct | None = None

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

    def for_inference(self) -> "SharedLowRank":
        return replace(self, dropout=0.0) if self.dropout else self

    def _shrunk(self, x: Tensor, place: Place) -> Tensor:
        """A dropout(x), which the first of the sites with one input computes, and the last forgets."""
        A = self.A.tensor.to(x.dtype)
        if self.joint is None or (self.dropout and place.training):
            return F.linear(F.dropout(x, self.dropout, place.training), A)
        given, product, uses = place.memory.pop(self.joint.name, (None, None, 0))
        if given is not x or product is None:
            product, uses = F.linear(x, A), 0
        if uses + 1 < self.joint.sites:
            place.memory[self.joint.name] = (x, product, uses + 1)
        found: Tensor = product
        return found
