"""Added op: rows beyond an embedding table, of tokens that the backbone's tokenizer does not know.

Notation: B batch, T tokens, n added tokens, V rows of the frozen table, d width of the embeddings.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
import torch.nn as nn
from jaxtyping import Float, Int
from torch import Tensor

from graftwork.backbones import SiteKind
from graftwork.ops import routing
from graftwork.ops.op import Forward, Op, Place
from graftwork.ops.routing import Route
from graftwork.ops.substitution import with_parameters


@dataclass(frozen=True, kw_only=True)
class Added(Op):
    """E(i) for tokens i < V of the frozen table, and row i - V of these for the others. What the module does to its own
    rows (BART and Gemma scale them) it does to these.

    An index for which there is no row is out of range, as it is of the table alone.

    Shapes: rows (n, d). In a slab (S, n, d), with the counts (S) of the tokens that each slot has; the slots of a
    batch's rows (B), where the batch does not stand in groups of equal size in the order of the slots.
    """

    rows: Float[Tensor, "*S n d"]
    counts: Int[Tensor, " S"] | None = None
    slots: Int[Tensor, " B"] | None = None

    kinds: ClassVar[frozenset[SiteKind]] = frozenset({"embedding"})
    unmergeable: ClassVar[str] = "the embedding table has no rows for added tokens"

    def around(self, forward: Forward, place: Place) -> Forward:
        def embed(ids: Int[Tensor, "*B T"]) -> Float[Tensor, "*B T d"]:
            inner: Any = place.module
            own = ids - len(inner.weight)
            added = own >= 0
            known: Tensor = forward(ids.masked_fill(added, 0))
            table = _like(inner, self.rows.reshape(-1, self.rows.shape[-1]))
            rows: Tensor = table.forward(self._places(own).masked_fill(~added, 0))
            return torch.where(added[..., None], rows, known)

        return embed

    def _places(self, own: Int[Tensor, "*B T"]) -> Int[Tensor, "*B T"]:
        """Where the added tokens of these numbers stand among all slots' rows; behind the last where there are none."""
        if self.counts is None:
            return own
        slots = torch.arange(len(self.counts), device=own.device) if self.slots is None else self.slots
        slot = routing.each(slots, len(own))[:, None]
        last = self.rows.shape[0] * self.rows.shape[1]
        return torch.where(own < self.counts.to(own.device)[slot], slot * self.rows.shape[1] + own, last)

    def slab(self, slots: int) -> "Added":
        return replace(self, counts=torch.full((slots,), self.rows.shape[-2], device=self.rows.device))

    def spread(self, route: Route) -> "Added":
        """The slab as it is, and the slot of each row: rows are looked up, and need not be copied."""
        return replace(self, slots=torch.tensor(route.slots, device=self.rows.device))

    def neutral(self, frozen: Mapping[str, Tensor]) -> "Added":
        none = self.rows.new_zeros((1, 0, self.rows.shape[-1]))
        return replace(self, rows=none, counts=torch.zeros(1, dtype=torch.long, device=none.device))


def _like(module: nn.Module, weight: Float[Tensor, "n d"]) -> Any:
    """A module that does what this one does, with another table."""
    other: Any = with_parameters(module, {"weight": weight})
    other.padding_idx = None
    return other
