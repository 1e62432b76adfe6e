"""Key-value op: rows prepended to an attention's keys and values (prefix tuning lowers to it)."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from graftwork.backbones import SiteKind
from graftwork.backbones.attention import Rows
from graftwork.ops import routing
from graftwork.ops.op import Forward, Op, Place


@dataclass(frozen=True, kw_only=True)
class KeyValue(Op):
    """Attention over [P_K; K] and [P_V; V] (Li & Liang 2021, section 4). Positions of real tokens do not shift.

    Shapes: keys and values (g, l, e) for g key-value heads, with a leading slot dimension in a slab, where `seen` (S,
    l) masks the padding of shorter prefixes.
    """

    keys: Float[Tensor, "*S g l e"]
    values: Float[Tensor, "*S g l e"]
    seen: Bool[Tensor, "S l"] | None = None

    kinds: ClassVar[frozenset[SiteKind]] = frozenset({"attention"})
    unmergeable: ClassVar[str] = "an attention layer has no weight for keys and values that do not depend on its input"

    def around(self, forward: Forward, place: Place) -> Forward:
        def attend(*args: Any, rows: Rows | None = None, **kwargs: Any) -> Any:
            own = self._rows(next(len(given) for given in (*args, *kwargs.values()) if isinstance(given, Tensor)))
            return forward(*args, rows=own if rows is None else own.before(rows), **kwargs)

        return attend

    def slab(self, slots: int) -> "KeyValue":
        seen = torch.ones(slots, self.keys.shape[-2], dtype=torch.bool, device=self.keys.device)
        return replace(self, seen=seen)

    def neutral(self, frozen: Mapping[str, Tensor]) -> "KeyValue":
        none = torch.zeros_like(self.keys[:1, ..., :0, :])
        return replace(self, keys=none, values=none, seen=none.new_zeros((1, 0), dtype=torch.bool))

    def _rows(self, batch: int) -> Rows:
        """The rows for a pass of so many batch rows."""
        if self.keys.dim() == 3:
            return Rows(self.keys, self.values)
        seen = None if self.seen is None else routing.each(self.seen, batch)
        return Rows(routing.each(self.keys, batch), routing.each(self.values, batch), seen)
