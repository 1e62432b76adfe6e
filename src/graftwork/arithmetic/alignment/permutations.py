"""Permutation specifications: which axes of which tensors move together, and permutations of them.

A group is a set of units that can be put in any order, such as the units of a hidden layer, if every axis that lies
along them is put in that order. A group may stand within another one: each attention head has an order of its own
units. Ainsworth et al. 2023, "Git Re-Basin", arXiv:2209.04836.

Notation: P a permutation, as an array with new[i] = old[P[i]]; of a group within another one P[h, i], h the new place
of the outer unit.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from math import prod
from typing import NamedTuple

import torch
from jaxtyping import Int
from torch import Tensor

from graftwork.errors import WeightsError, nearest

AxisGroups = str | tuple[str | int, ...] | None
"""The group of an axis; None: it is not moved. A tuple: the product of several groups, and of numbers, which are so
many entries of fixed order."""


class Factor(NamedTuple):
    """One factor of an axis: the units of a group, or entries of fixed order.

    Attributes:
        group: name of the group; None: the order is fixed.
        size: number of units.
    """

    group: str | None
    size: int


@dataclass(frozen=True)
class Segment:
    """A part of an axis that is a product of groups, row by row; the rest of the axis is not moved.

    Attributes:
        dim: the dimension of the tensor.
        start: first entry.
        factors: the groups from the outermost to the innermost.
    """

    dim: int
    start: int
    factors: tuple[Factor, ...]

    @property
    def size(self) -> int:
        """Number of entries."""
        return prod(factor.size for factor in self.factors)

    @property
    def groups(self) -> tuple[str, ...]:
        """The groups of the factors whose order is not fixed."""
        return tuple(factor.group for factor in self.factors if factor.group is not None)

    def part(self, tensor: Tensor) -> Tensor:
        """The entries of a tensor, with the dimension first: (size, …)."""
        return tensor.narrow(self.dim, self.start, self.size).movedim(self.dim, 0)


@dataclass(frozen=True)
class Group:
    """Units that move together.

    Attributes:
        size: number of units.
        within: the group of whose units each has an order of its own; None: there is one order.
    """

    size: int
    within: str | None = None


@dataclass(frozen=True)
class Specification:
    """What of a network can be permuted without a change of what it computes.

    Attributes:
        segments: by tensor, the parts of its axes that lie along groups; empty for a tensor that is not moved.
        shapes: of the tensors.
        within: by group, the one of whose units each has an order of its own.
        groups: the groups by name.
    """

    segments: Mapping[str, tuple[Segment, ...]]
    shapes: Mapping[str, tuple[int, ...]]
    within: Mapping[str, str] = field(default_factory=dict)
    groups: Mapping[str, Group] = field(init=False)

    def __post_init__(self) -> None:
        groups: dict[str, Group] = {}
        for name, segments in self.segments.items():
            for segment in segments:
                outside: list[str] = []
                for group, size in segment.factors:
                    if group is None:
                        continue
                    known = groups.setdefault(group, Group(size, self.within.get(group)))
                    if known.size != size:
                        raise WeightsError(
                            f"group {group!r} has {size} units along tensor {name!r}, and {known.size} elsewhere",
                            expected="axes of one group with the same number of units",
                            change="the permutation specification",
                        )
                    if known.within is not None and known.within not in outside:
                        raise WeightsError(
                            f"group {group!r} of tensor {name!r} stands outside of {known.within!r}",
                            expected=f"an axis that has {known.within!r} before it",
                            change="the permutation specification",
                        )
                    outside.append(group)
        object.__setattr__(self, "groups", groups)

    @classmethod
    def of(
        cls,
        axes: Mapping[str, Sequence[AxisGroups]],
        shapes: Mapping[str, Sequence[int]],
        *,
        sizes: Mapping[str, int] | None = None,
        within: Mapping[str, str] | None = None,
    ) -> "Specification":
        """Make a specification by hand.

        Args:
            axes: by tensor, the group of each axis.
            shapes: the tensors' shapes.
            sizes: of groups that stand in products only.
            within: by group, the one of whose units each has an order of its own.

        Raises:
            WeightsError: an axis has another length than its groups say, or a tensor other axes; or the size of a group
                is not known.
        """
        for name, own in axes.items():
            if name not in shapes or len(own) != len(shapes[name]):
                raise WeightsError(
                    f"tensor {name!r} has {len(own)} axes in the specification, and the shape {shapes.get(name)}",
                    change="the permutation specification",
                )
        lengths = {
            axis: length
            for name, own in axes.items()
            for axis, length in zip(own, shapes[name], strict=True)
            if isinstance(axis, str)
        }
        known = {**lengths, **(sizes or {})}
        parts = {part for own in axes.values() for axis in own if isinstance(axis, tuple) for part in axis}
        unknown = sorted(part for part in parts if isinstance(part, str) and part not in known)
        if unknown:
            raise WeightsError(
                f"the size of group {unknown[0]!r}, which stands in products only, is not given",
                expected="the number of its units",
                change="sizes",
            )
        segments: dict[str, tuple[Segment, ...]] = {}
        for name, own in axes.items():
            found = []
            for dim, (axis, length) in enumerate(zip(own, shapes[name], strict=True)):
                if isinstance(axis, str):
                    found.append(Segment(dim, 0, (Factor(axis, length),)))
                elif axis is not None:
                    factors = (
                        Factor(None, part) if isinstance(part, int) else Factor(part, known[part]) for part in axis
                    )
                    found.append(Segment(dim, 0, tuple(factors)))
                    if found[-1].size != length:
                        raise WeightsError(
                            f"dimension {dim} of tensor {name!r} has {length} entries, and its groups have"
                            f" {found[-1].size}",
                            change="the permutation specification",
                        )
            segments[name] = tuple(found)
        return cls(segments, {name: tuple(shapes[name]) for name in axes}, within or {})

    @property
    def roots(self) -> tuple[str, ...]:
        """The groups that are within no other."""
        return tuple(name for name, group in self.groups.items() if group.within is None)

    def inner(self, root: str) -> tuple[str, ...]:
        """The groups within another one."""
        return tuple(name for name, group in self.groups.items() if group.within == root)

    def along(self, root: str) -> Iterator[tuple[str, Segment]]:
        """Each tensor with a part of an axis that lies along a group."""
        for name, segments in self.segments.items():
            for segment in segments:
                if root in segment.groups:
                    yield name, segment

    def check(self, weights: Mapping[str, Tensor], what: str = "the weights") -> None:
        """Refuse tensors that are not those of the specification.

        Raises:
            WeightsError: one is missing, unknown or of another shape; names it.
        """
        shapes = {name: tuple(tensor.shape) for name, tensor in weights.items()}
        for name in [*self.shapes, *shapes]:
            if name not in shapes:
                raise WeightsError(f"{what} lack the tensor {name!r}", expected="every tensor of the specification")
            if name not in self.shapes:
                raise WeightsError(
                    f"the permutation specification says nothing of {name!r}, a tensor of {what}",
                    expected=nearest(name, self.shapes),
                )
            if shapes[name] != self.shapes[name]:
                raise WeightsError(
                    f"tensor {name!r} of {what} has the shape {shapes[name]}",
                    expected=f"the shape {self.shapes[name]}",
                )

    def shape_of(self, group: str) -> tuple[int, ...]:
        """The shape of a permutation of a group: (units,), or (outer units, units)."""
        own = self.groups[group]
        return (own.size,) if own.within is None else (self.groups[own.within].size, own.size)

    def identity(self) -> "Permutations":
        """The permutations that move nothing."""
        arrays = {name: torch.arange(group.size).expand(self.shape_of(name)) for name, group in self.groups.items()}
        return Permutations(self, arrays)

    def random(self, seed: int = 0) -> "Permutations":
        """Permutations drawn uniformly."""
        generator = torch.Generator().manual_seed(seed)
        return Permutations(
            self,
            {name: torch.rand(self.shape_of(name), generator=generator).argsort(-1) for name in self.groups},
        )


class Permutations(Mapping[str, Tensor]):
    """A permutation of each group of a specification.

    Args:
        specification: the specification.
        arrays: by group, (units,) or (outer units, units) integers: new[i] = old[P[i]].
    """

    def __init__(self, specification: Specification, arrays: Mapping[str, Int[Tensor, "*outer n"]]) -> None:
        self.specification = specification
        self._arrays = dict(arrays)

    def __getitem__(self, group: str) -> Tensor:
        return self._arrays[group]

    def __iter__(self) -> Iterator[str]:
        return iter(self._arrays)

    def __len__(self) -> int:
        return len(self._arrays)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Permutations) or self.keys() != other.keys():
            return NotImplemented
        return all(torch.equal(self[name], other[name]) for name in self)

    __hash__ = None  # type: ignore[assignment]

    def apply(self, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The tensors with their units in the new order, to the last bit as they were.

        Raises:
            WeightsError: they are not those of the specification.
        """
        self.specification.check(weights)
        return {name: self.permute(name, weights[name]) for name in self.specification.segments}

    def permute(self, name: str, tensor: Tensor, *, but: Segment | None = None) -> Tensor:
        """One tensor with its units in the new order.

        Args:
            but: a part of an axis that is not moved.
        """
        for segment in self.specification.segments[name]:
            if segment != but:
                index = torch.arange(tensor.shape[segment.dim])
                index[segment.start : segment.start + segment.size] = self.order(segment) + segment.start
                tensor = tensor.index_select(segment.dim, index.to(tensor.device))
        return tensor

    def order(self, segment: Segment) -> Int[Tensor, " n"]:
        """For each new entry of a part of an axis, the old one, both from the part's first."""
        count = len(segment.factors)
        total = torch.zeros([1] * count, dtype=torch.long)
        levels = {factor.group: level for level, factor in enumerate(segment.factors)}
        stride = segment.size
        for level, (group, size) in enumerate(segment.factors):
            stride //= size
            shape = [1] * count
            shape[level] = size
            own = torch.arange(size) if group is None else self._arrays[group]
            if own.dim() == 2:
                shape[levels[self.specification.groups[str(group)].within]] = len(own)
            total = total + own.reshape(shape) * stride
        return total.flatten()

    def inverse(self) -> "Permutations":
        """The permutations that undo these."""
        found = {}
        for name, own in self._arrays.items():
            outer = self.specification.groups[name].within
            found[name] = own.argsort(-1) if outer is None else own[self._arrays[outer].argsort()].argsort(-1)
        return Permutations(self.specification, found)

    def then(self, other: "Permutations") -> "Permutations":
        """These, followed by others."""
        found = {}
        for name, own in self._arrays.items():
            outer = self.specification.groups[name].within
            before = own if outer is None else own[other[outer]]
            found[name] = before.gather(-1, other[name])
        return Permutations(self.specification, found)

    @property
    def num_moved(self) -> int:
        """Number of units that are not in their own place."""
        return sum(int((own != torch.arange(own.shape[-1])).sum()) for own in self._arrays.values())
