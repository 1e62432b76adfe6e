"""Slabs: the ops of several adapters combined at each site, so that each row of a batch can use its own adapter.

Adapters whose ops differ only in their numbers share a layout. Their slabs are made by stacking their tensors, without
looking at single sites. An adapter that is not being trained has all its tensors in one row of numbers, so that
stacking takes one call.

Notation: S slots, one per adapter; N numbers in an adapter.
"""

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from threading import Lock
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary, ref

import torch
from jaxtyping import Float
from torch import Tensor

from graftwork.backbones import Backbone, Site
from graftwork.ops.op import Op, Ops
from graftwork.ops.shared import Shared
from graftwork.ops.tensortree import TensorTree


def routed(ops: Ops, backbone: Backbone) -> bool:
    """Whether each row of a batch can have its own ops of this kind: the ops accept slabs, and the modules at their
    sites compute each row independently of the others."""
    return all(backbone.sites[name].rowwise and all(op.routed for op in acting) for name, acting in ops.items())


@dataclass(frozen=True)
class Part:
    """The combined ops of adapters that share a layout.

    Attributes:
        ops: the slabs at each site.
        slots: the number of adapters.
    """

    ops: Ops
    slots: int


def join(parts: Sequence[Part], backbone: Backbone) -> Ops:
    """Slabs for the adapters of all parts, in order. Where a part has no op at a site, its slots change nothing there.

    Ops of the same kind share a slab. The ops of one adapter keep their order at a site; the order between ops of
    different adapters does not matter.
    """
    if len(parts) == 1:
        return parts[0].ops
    names = dict.fromkeys(name for part in parts for name in part.ops)
    return {name: _join_at(backbone.sites[name], parts, backbone) for name in names}


def _join_at(site: Site, parts: Sequence[Part], backbone: Backbone) -> list[Op]:
    """The slabs at one site."""
    # The kinds of op in the order in which they act, each with the op of each part that has one.
    rows: list[tuple[Hashable, dict[int, Op]]] = []
    for i, part in enumerate(parts):
        place = 0
        for op in sorted(part.ops.get(site.name, ()), key=lambda op: not op.replaces):
            kind = op.alike()
            found = next((j for j in range(place, len(rows)) if rows[j][0] == kind), None)
            if found is None:
                found = place if op.replaces else len(rows)
                rows.insert(found, (kind, {}))
            rows[found][1][i] = op
            place = found + 1
    frozen: Mapping[str, Tensor] | None = None
    slabs = []
    for _, own in rows:
        first = next(iter(own.values()))
        pieces = []
        for i, part in enumerate(parts):
            if i in own:
                pieces.append(own[i])
                continue
            frozen = backbone.frozen(site) if frozen is None else frozen
            pieces.append(_repeated(first.neutral(frozen), part.slots))
        slabs.append(first.joined(pieces))
    return slabs


def laid_out(ops: Ops) -> Ops:
    """Slabs that are to be used by many passes: each tensor copied once, as its products read it fastest."""
    copies: dict[int, Tensor] = {}

    def copy(tensor: Tensor, *, transposed: bool = False) -> Tensor:
        if id(tensor) not in copies:
            turned = tensor.mT if transposed else tensor
            own = turned.clone(memory_format=torch.contiguous_format)
            copies[id(tensor)] = own.mT if transposed else own
        return copies[id(tensor)]

    return {name: [op.laid_out(copy) for op in acting] for name, acting in ops.items()}


def nbytes(ops: Ops) -> int:
    """What the tensors of ops take in memory, each counted once, and without those that others have as well."""
    every = [op for acting in ops.values() for op in acting]
    shared = {id(own.tensor) for op in every for own in op.shared()}
    return sum({id(t): t.nbytes for op in every for t in op.numbers() if id(t) not in shared}.values())


def _repeated(op: Op, slots: int) -> Op:
    return op if slots == 1 else op.mapped(lambda tensor: tensor.expand(slots, *tensor.shape[1:]))


class _Blueprint(NamedTuple):
    """An op whose tensors are replaced by their positions."""

    kind: type[TensorTree]
    fields: tuple[tuple[str, Any], ...]

    def build(self, tensors: Sequence[Tensor], shared: Sequence[Shared]) -> Any:
        return self.kind(**{name: self._value(value, tensors, shared) for name, value in self.fields})

    @staticmethod
    def _value(value: Any, tensors: Sequence[Tensor], shared: Sequence[Shared]) -> Any:
        if isinstance(value, _Place):
            return tensors[value.place]
        if isinstance(value, _SharedPlace):
            return shared[value.place]
        if isinstance(value, _Blueprint):
            return value.build(tensors, shared)
        return tuple(_Blueprint._value(part, tensors, shared) for part in value) if isinstance(value, tuple) else value


class _Place(NamedTuple):
    """The position of a tensor among those of an adapter; it takes the place of the tensor in a field."""

    place: int


class _SharedPlace(NamedTuple):
    """Which of the shared tensors stands in a field, and what tells it apart: adapters that share others have another
    layout."""

    place: int
    digest: str


@dataclass(frozen=True)
class Layout:
    """How the ops of an adapter are stored in one row of numbers. Adapters with the same method, settings and backbone
    have the same layout.

    Attributes:
        sites: the site names and the ops at each, without their tensors.
        shapes: the shapes of the tensors, in their order in the row.
    """

    sites: tuple[tuple[str, tuple[_Blueprint, ...]], ...]
    shapes: tuple[torch.Size, ...]

    def build(self, tensors: Sequence[Tensor], shared: Sequence[Shared]) -> Ops:
        """The ops with these tensors."""
        return {name: [blueprint.build(tensors, shared) for blueprint in acting] for name, acting in self.sites}

    def views(self, numbers: Float[Tensor, "*S N"]) -> list[Tensor]:
        """The tensors as views of a row of numbers, or of a stack of rows."""
        pieces = torch.split(numbers, [shape.numel() for shape in self.shapes], dim=-1)
        return [p.view(*numbers.shape[:-1], *shape) for p, shape in zip(pieces, self.shapes, strict=True)]


_LAYOUTS: WeakKeyDictionary[Layout, ref[Layout]] = WeakKeyDictionary()
"""Each layout once, so that adapters with the same layout can be found by its identity, as long as one has it."""

_ONE_AT_A_TIME = Lock()


def _only(layout: Layout) -> Layout:
    """The one of all equal layouts."""
    with _ONE_AT_A_TIME:
        known = _LAYOUTS.get(layout)
        found = None if known is None else known()
        if found is None:
            _LAYOUTS[layout] = ref(layout)
        return found or layout


@dataclass(frozen=True)
class Packed:
    """The ops of an adapter, split into their layout and their tensors.

    Attributes:
        layout: where each tensor belongs.
        tensors: the tensors in the order of the layout; or a single one, with all their numbers in a row.
        shared: what the ops have in common with those of other adapters; not in the row.
        in_a_row: whether there is a single row.
    """

    layout: Layout
    tensors: tuple[Tensor, ...]
    shared: tuple[Shared, ...] = ()
    in_a_row: bool = False

    @classmethod
    def of(cls, ops: Ops) -> "Packed":
        """Pack ops. A tensor that several ops share is kept once."""
        tensors: list[Tensor] = []
        known: dict[int, _Place] = {}
        shared: dict[Shared, _SharedPlace] = {}

        def drawn(op: TensorTree) -> _Blueprint:
            return _Blueprint(type(op), tuple((name, placed(value)) for name, value in vars(op).items()))

        def placed(value: Any) -> Any:
            if isinstance(value, TensorTree):
                return drawn(value)
            if isinstance(value, tuple):
                return tuple(placed(part) for part in value)
            if isinstance(value, Shared):
                return shared.setdefault(value, _SharedPlace(len(shared), value.key[0]))
            if not isinstance(value, Tensor):
                return value
            if id(value) not in known:
                known[id(value)] = _Place(len(tensors))
                tensors.append(value)
            return known[id(value)]

        sites = tuple((name, tuple(drawn(op) for op in acting)) for name, acting in ops.items())
        drawing = Layout(sites, tuple(tensor.shape for tensor in tensors))
        return cls(_only(drawing), tuple(tensors), tuple(shared))

    def to_row(self, dtype: torch.dtype, device: torch.device) -> "Packed":
        """The same ops with a copy of their numbers in one row."""
        flat = [tensor.reshape(-1).to(device, dtype) for tensor in self.tensors]
        row = torch.cat(flat) if flat else torch.empty(0, dtype=dtype, device=device)
        shared = tuple(own.pooled(dtype, device) for own in self.shared)
        return Packed(self.layout, (row,), shared, in_a_row=True)

    def ops(self) -> Ops:
        """Unpack the ops."""
        return self.layout.build(self.layout.views(*self.tensors) if self.in_a_row else self.tensors, self.shared)


def stacked(adapters: Sequence[Packed], dtype: torch.dtype) -> list[Part]:
    """Slabs of adapters, in order. Neighbours that share a layout become one part. Gradients flow through the slabs."""
    parts = []
    for _, group in groupby(adapters, key=lambda own: (id(own.layout), own.in_a_row)):
        alike = list(group)
        layout, slots = alike[0].layout, len(alike)
        tensors = [torch.stack(own).to(dtype) for own in zip(*(own.tensors for own in alike), strict=True)]
        shared = [own.to(dtype) for own in alike[0].shared]
        ops = layout.build(layout.views(*tensors) if alike[0].in_a_row else tensors, shared)
        parts.append(Part({name: [op.slab(slots) for op in acting] for name, acting in ops.items()}, slots))
    return parts
