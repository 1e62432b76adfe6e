"""Slabs: the ops of several adapters made one at each site, so that each row of a batch can have its own adapter's.

Notation: S slots, one an adapter; N numbers of an adapter in all.
"""

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from graftwork.backbones import Backbone, Site
from graftwork.ops.graft import Ops
from graftwork.ops.op import Op


def routed(ops: Ops, backbone: Backbone) -> bool:
    """Whether rows of one batch can each have ops like these: they take slabs, and what runs at their sites is computed
    of each row by itself."""
    return all(backbone.sites[name].rowwise and all(op.routed for op in acting) for name, acting in ops.items())


@dataclass(frozen=True)
class Part:
    """The ops of adapters of one layout.

    Attributes:
        ops: slabs.
        slots: how many adapters.
    """

    ops: Ops
    slots: int


def join(parts: Sequence[Part], backbone: Backbone) -> Ops:
    """Slabs for all of them, in their order. Where one of them does nothing at a site, its slots change nothing there.

    Ops that are alike share a slab. The order in which each adapter's ops act at a site stays as it is; between those
    of different adapters there is none.
    """
    if len(parts) == 1:
        return parts[0].ops
    names = dict.fromkeys(name for part in parts for name in part.ops)
    return {name: _join_at(backbone.sites[name], parts, backbone) for name in names}


def _join_at(site: Site, parts: Sequence[Part], backbone: Backbone) -> list[Op]:
    """The slabs of one site."""
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


def _repeated(op: Op, slots: int) -> Op:
    return op if slots == 1 else op.mapped(lambda tensor: tensor.expand(slots, *tensor.shape[1:]))


class _Field(NamedTuple):
    """A tensor of an op in an adapter's numbers."""

    start: int
    shape: tuple[int, ...]


class _Blueprint(NamedTuple):
    """An op without its numbers."""

    kind: type[Op]
    fields: tuple[tuple[str, Any], ...]

    def build(self, numbers: Tensor) -> Op:
        return self.kind(**{name: self._value(value, numbers) for name, value in self.fields})

    @staticmethod
    def _value(value: Any, numbers: Tensor) -> Any:
        if isinstance(value, _Field):
            own = numbers.narrow(-1, value.start, prod(value.shape))
            return own.reshape(*numbers.shape[:-1], *value.shape)
        if isinstance(value, _Blueprint):
            return value.build(numbers)
        return tuple(_Blueprint._value(part, numbers) for part in value) if isinstance(value, tuple) else value


@dataclass(frozen=True)
class Layout:
    """How an adapter's ops lie in one row of numbers. Adapters of one method, settings and backbone have the same."""

    sites: tuple[tuple[str, tuple[_Blueprint, ...]], ...]

    def ops(self, numbers: Float[Tensor, " N"]) -> Ops:
        """The ops of one adapter, as views of its numbers."""
        return {name: [blueprint.build(numbers) for blueprint in acting] for name, acting in self.sites}

    def slabs(self, numbers: Float[Tensor, "S N"]) -> Part:
        """The ops of several."""
        slots = len(numbers)
        return Part({name: [b.build(numbers).slab(slots) for b in acting] for name, acting in self.sites}, slots)


_LAYOUTS: dict[Layout, Layout] = {}
"""Each layout once, so that adapters of one layout are known by its identity: one a method and its settings."""


def pack(ops: Ops, dtype: torch.dtype, device: torch.device) -> tuple[Layout, Float[Tensor, " N"]]:
    """An adapter's ops as one row of numbers, each tensor once however many ops have it."""
    numbers: list[Tensor] = []
    known: dict[int, _Field] = {}
    starts = [0]

    def drawn(op: Op) -> _Blueprint:
        return _Blueprint(type(op), tuple((name, placed(value)) for name, value in vars(op).items()))

    def placed(value: Any) -> Any:
        if isinstance(value, Op):
            return drawn(value)
        if isinstance(value, tuple):
            return tuple(placed(part) for part in value)
        if not isinstance(value, Tensor):
            return value
        if id(value) not in known:
            known[id(value)] = _Field(starts[-1], tuple(value.shape))
            numbers.append(value)
            starts.append(starts[-1] + value.numel())
        return known[id(value)]

    sites = tuple((name, tuple(drawn(op) for op in acting)) for name, acting in ops.items())
    drawing = Layout(sites)
    layout = _LAYOUTS.setdefault(drawing, drawing)
    flat = [tensor.reshape(-1).to(device=device, dtype=dtype) for tensor in numbers]
    return layout, torch.cat(flat) if flat else torch.empty(0, dtype=dtype, device=device)
