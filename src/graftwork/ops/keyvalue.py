"""Key-value op: rows prepended to an attention's keys and values (prefix tuning lowers to it)."""

from dataclasses import dataclass
from typing import Any, ClassVar

from jaxtyping import Bool, Float
from torch import Tensor

from graftwork.backbones import SiteKind
from graftwork.backbones.attention import Rows
from graftwork.ops.op import Forward, Op, Place


@dataclass(frozen=True, kw_only=True)
class KeyValue(Op):
    """Attention over [P_K; K] and [P_V; V] (Li & Liang 2021, section 4). Positions of real tokens do not shift.

    Shapes: keys and values (g, l, e) for g key-value heads, with a leading slot dimension in a bank, where `seen` (S,
    l) masks the padding of shorter prefixes.
    """

    keys: Float[Tensor, "*S g l e"]
    values: Float[Tensor, "*S g l e"]
    seen: Bool[Tensor, "S l"] | None = None

    kinds: ClassVar[frozenset[SiteKind]] = frozenset({"attention"})
    unmergeable: ClassVar[str] = "an attention has no weights for keys and values that do not come from its input"

    def around(self, forward: Forward, place: Place) -> Forward:
        def attend(*args: Any, rows: Rows | None = None, **kwargs: Any) -> Any:
            own = self._rows(place)
            return forward(*args, rows=own if rows is None else own.before(rows), **kwargs)

        return attend

    def _rows(self, place: Place) -> Rows:
        if self.keys.dim() == 3:
            return Rows(self.keys, self.values)
        slots = place.route.require_rows()
        seen = None if self.seen is None else self.seen.index_select(0, slots)
        return Rows(self.keys.index_select(0, slots), self.values.index_select(0, slots), seen)
