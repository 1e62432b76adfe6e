"""What rows of a batch share a pass of the backbone, and what each of them is given and asked."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from graftwork.backbones import Backbone
from graftwork.bank import Bank, Resident
from graftwork.heads import IGNORED, Items
from graftwork.ops import Route
from graftwork.ops.op import Ops
from graftwork.ops.slabs import Part, join, stacked

Section = Literal["root", "base", "encoder"]
"""What of the backbone runs: with its language-model head, without it, or an encoder-decoder's encoder alone."""


@dataclass(frozen=True)
class Supervision:
    """Labels and targets: of all rows, or by the name of the adapter whose rows they are of; and by the adapter's name
    what its loss is a mean over, where that is more than these rows. Of all rows, what teachers say of them."""

    labels: Tensor | Mapping[str, Tensor] | None = None
    targets: Tensor | Mapping[str, Tensor] | None = None
    items: Mapping[str | None, Items] = field(default_factory=dict)
    teacher: Mapping[str, Tensor] = field(default_factory=dict)

    def of(self, name: str | None, rows: Sequence[int]) -> tuple[Tensor | None, Tensor | None]:
        """Those of an adapter's rows."""
        labels, targets = (self._of(given, name, rows) for given in (self.labels, self.targets))
        return labels, targets

    def taught(self, rows: Sequence[int]) -> dict[str, Tensor]:
        """What teachers say of some rows."""
        found = {name: self._of(tensor, None, rows) for name, tensor in self.teacher.items()}
        return {name: tensor for name, tensor in found.items() if tensor is not None}

    @staticmethod
    def _of(given: Tensor | Mapping[str, Tensor] | None, name: str | None, rows: Sequence[int]) -> Tensor | None:
        if given is None or isinstance(given, Tensor):
            whole = given is None or list(rows) == list(range(len(given)))
            return given if whole or given is None else given[torch.tensor(rows, device=given.device)]
        return None if name is None else given.get(name)


@dataclass(frozen=True)
class RowGroup:
    """Rows that share a pass.

    Attributes:
        section: what of the backbone runs.
        names, residents: of each slot; None for the backbone alone.
        rows: their places in the batch, those of a slot together, in the order of the slots.
        sizes: how many rows each slot has.
    """

    section: Section
    names: tuple[str | None, ...]
    residents: tuple[Resident | None, ...]
    rows: tuple[int, ...]
    sizes: tuple[int, ...]

    @classmethod
    def of_rows(
        cls, names: Sequence[str | None], residents: Mapping[str | None, Resident | None], section: Section
    ) -> "RowGroup":
        """The rows of a batch that have these adapters. Adapters of one layout get slots running, and the order of the
        slots is always the same for the same adapters."""
        first: dict[int, int] = {}
        for resident in residents.values():
            if resident is not None:
                layout = id(resident.layout)
                first[layout] = min(resident.serial, first.get(layout, resident.serial))

        def place(name: str | None) -> tuple[int, int, int]:
            resident = residents[name]
            if resident is None:
                return -1, -1, -1
            return first[id(resident.layout)], resident.acts_as.serial, resident.serial

        slots = sorted(residents, key=place)
        rows = [[row for row, other in enumerate(names) if other == name] for name in slots]
        return cls(
            section,
            tuple(slots),
            tuple(residents[name] for name in slots),
            tuple(row for own in rows for row in own),
            tuple(map(len, rows)),
        )

    @property
    def present(self) -> list[Resident]:
        """The adapters of the slots that have one."""
        return [resident for resident in self.residents if resident is not None]

    def of(self, inputs: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """A batch's inputs for these rows."""
        if list(self.rows) == list(range(len(next(iter(inputs.values()))))):
            return inputs
        return {name: tensor[torch.tensor(self.rows, device=tensor.device)] for name, tensor in inputs.items()}

    def span(self, slot: int) -> tuple[int, int]:
        """Where a slot's rows begin and end among these."""
        start = sum(self.sizes[:slot])
        return start, start + self.sizes[slot]

    def by_slot(self) -> list[tuple[str | None, tuple[int, ...]]]:
        """The name of each slot, and its rows' places in the batch."""
        return [(name, self.rows[slice(*self.span(slot))]) for slot, name in enumerate(self.names)]

    def alone(self, slot: int) -> "RowGroup":
        """One slot's rows by themselves."""
        name, rows = self.by_slot()[slot]
        return RowGroup(self.section, (name,), (self.residents[slot],), rows, (len(rows),))

    def ops(self, backbone: Backbone, bank: Bank, *, training: bool = False, in_order: bool = False) -> Ops:
        """The ops that act: those of the one adapter, or of all slots as slabs.

        Args:
            bank: where the adapters are in use.
            training: whether what is random about them is drawn.
            in_order: for the rows as they come in the batch, and not sorted by slot.
        """
        own = [None if resident is None else resident.acts_as for resident in self.residents]
        acting = list(dict.fromkeys(own))
        if len(acting) == 1:
            [only] = acting
            return {} if only is None else only.ops(training=training)
        numbers = {resident: number for number, resident in enumerate(acting)}
        slots = [numbers[resident] for resident, size in zip(own, self.sizes, strict=True) for _ in range(size)]
        if in_order:
            slots = [slot for _, slot in sorted(zip(self.rows, slots, strict=True))]
        route = Route(tuple(slots), len(acting), in_blocks=backbone.device.type == "cpu")
        joined = bank.slabs(acting, partial(_joined_ops, acting, backbone, training))
        if route.even:
            return joined
        return {name: [op.spread(route) for op in acting] for name, acting in joined.items()}


def _joined_ops(acting: Sequence[Resident | None], backbone: Backbone, training: bool) -> Ops:
    alone = [Part({}, 1) for resident in acting if resident is None]
    packed = [resident.packed(training=training) for resident in acting if resident is not None]
    return join([*alone, *stacked(packed, backbone.dtype)], backbone)


def last_of(output: Any) -> Tensor:
    """The last layer's output: (B, T, d)."""
    last: Tensor | None = output.get("last_hidden_state")
    if last is None:
        last = (output.get("hidden_states") or output.decoder_hidden_states)[-1]
    return last


def padded(tokens: Tensor, length: int) -> Tensor:
    """Token ids (…, T) with more that are ignored, up to a length."""
    return F.pad(tokens, (0, length - tokens.shape[-1]), value=IGNORED)


def in_order(outputs: Sequence[Any], rows: Sequence[int]) -> dict[str, Any]:
    """What passes say of the backbone's states, as of one batch: what all of them say, and of one shape.

    Args:
        rows: the places in the batch of all their rows.
    """
    found: dict[str, Any] = {}
    for name in ("last_hidden_state", "hidden_states", "attentions"):
        each = [output.get(name) for output in outputs]
        if any(own is None for own in each):
            continue
        if name == "last_hidden_state":
            found[name] = _joined(each, rows)
        elif len({len(own) for own in each}) == 1:
            layers = [_joined(layer, rows) for layer in zip(*each, strict=True)]
            found[name] = None if any(layer is None for layer in layers) else tuple(layers)
    return found


def _joined(states: Sequence[Tensor], rows: Sequence[int]) -> Tensor | None:
    """States of rows in their order in the batch; None where they are of different shapes, or not one a row."""
    if len({own.shape[1:] for own in states}) > 1 or sum(map(len, states)) != len(rows):
        return None
    return torch.cat(list(states))[torch.tensor(rows, device=states[0].device).argsort()]


def for_each_row(inputs: Mapping[str, Tensor], rows: int) -> dict[str, Tensor]:
    """Inputs in which what is given once, for all rows, stands for each: rows of a pass may be run apart."""
    return {
        name: value.expand(rows, *value.shape[1:]) if value.dim() > 1 and len(value) == 1 else value
        for name, value in inputs.items()
    }
