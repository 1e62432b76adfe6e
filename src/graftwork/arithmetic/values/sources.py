"""Where tensors come from: files, memory, or others, of which each piece is made when it is asked for.

A source has names, shapes and types at once, and numbers in pieces. What must be known of all tensors before any piece
can be made (a global threshold) is found by `prepare`, in passes over the sources below.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from math import lcm, prod
from pathlib import Path
from threading import Lock
from typing import Any

import torch
from torch import Tensor

from graftwork.arithmetic.values.checkpoint import Checkpoint, Entry
from graftwork.arithmetic.values.dtypes import TYPES, computed_in
from graftwork.arithmetic.values.running import Piece
from graftwork.errors import WeightsError
from graftwork.training.display import Display

Coefficient = float | Mapping[str, float]
"""What a tensor is multiplied by: the same for all, or by name."""


class Source(ABC):
    """Tensors by name.

    Attributes:
        shapes: the shape of each.
        dtypes: the type of each.
    """

    shapes: Mapping[str, tuple[int, ...]]
    dtypes: Mapping[str, torch.dtype]

    @abstractmethod
    def read(self, piece: Piece) -> Tensor:
        """The numbers of a piece, flat, in the tensor's type. They are the caller's to change."""

    @property
    def tied(self) -> list[frozenset[str]]:
        """Names that stand for one tensor, together."""
        return []

    @property
    def arrays(self) -> int:
        """Arrays of a piece's size that are held while one is read."""
        return 1

    def unit(self, name: str) -> int:
        """How many numbers of a tensor are read together: a multiple of these, or all."""
        return 1

    def sources(self) -> Iterable["Source"]:
        """What it is made of."""
        return ()

    def prepare(self, display: Display) -> None:
        """Find what must be known before pieces are read; once."""
        for source in self.sources():
            source.prepare(display)

    def size(self, name: str) -> int:
        """How many numbers a tensor has."""
        return prod(self.shapes[name])

    def whole(self, name: str) -> Tensor:
        """A tensor."""
        return self.read(Piece(name, 0, self.size(name))).view(self.shapes[name])

    def floating(self, name: str) -> bool:
        """Whether arithmetic acts on a tensor."""
        return self.dtypes[name].is_floating_point


class Stored(Source):
    """Tensors in files, which are read by pieces into memory of their own: what is mapped would count as the process's.

    Args:
        checkpoint: where they are.
    """

    def __init__(self, checkpoint: Checkpoint) -> None:
        self.checkpoint = checkpoint
        self.entries = checkpoint.entries
        self.shapes = {name: entry.shape for name, entry in self.entries.items()}
        self.dtypes = {name: TYPES[entry.dtype] for name, entry in self.entries.items()}
        self._pickled: dict[Path, Any] = {}
        self._lock = Lock()

    def read(self, piece: Piece) -> Tensor:
        entry = self.entries[piece.name]
        if entry.offset is None:
            return self._unpickled(entry, piece.name).reshape(-1)[piece.start : piece.stop].clone()
        numbers = torch.empty(piece.stop - piece.start, dtype=self.dtypes[piece.name])
        raw: Any = numbers.view(torch.uint8).numpy()
        into = memoryview(raw)
        try:
            with entry.file.open("rb", buffering=0) as file:
                file.seek(entry.offset + piece.start * numbers.element_size())
                while len(into):
                    count = file.readinto(into)
                    if not count:
                        raise WeightsError(
                            f"{entry.file} ends before its tensor {piece.name!r}", expected="a whole file"
                        )
                    into = into[count:]
        except OSError as error:
            raise WeightsError(f"{entry.file} cannot be read: {error.strerror}") from error
        return numbers

    @cached_property
    def tied(self) -> list[frozenset[str]]:
        """Those that may be, and have the same numbers."""
        return [group for names in self.checkpoint.alike for group in _equal(self, names)]

    def _unpickled(self, entry: Entry, name: str) -> Tensor:
        with self._lock:
            if entry.file not in self._pickled:
                self._pickled[entry.file] = _unpickle(entry.file)
        found: Tensor = self._pickled[entry.file][name]
        return found


class Held(Source):
    """Tensors in memory.

    Args:
        tensors: by name.
    """

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        self._tensors = {name: tensor.detach().cpu() for name, tensor in tensors.items()}
        self.shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
        self.dtypes = {name: tensor.dtype for name, tensor in tensors.items()}
        for name, tensor in tensors.items():
            if not isinstance(tensor, Tensor) or tensor.is_complex() or tensor.is_sparse or tensor.is_quantized:
                raise WeightsError(f"{name!r} is {type(tensor).__name__} of {tensor.dtype}", expected="a dense tensor")

    def read(self, piece: Piece) -> Tensor:
        return self._tensors[piece.name].reshape(-1)[piece.start : piece.stop].clone()

    @cached_property
    def tied(self) -> list[frozenset[str]]:
        """Those that are one tensor in memory."""
        places: dict[tuple[Any, ...], list[str]] = {}
        for name, tensor in self._tensors.items():
            if tensor.numel():
                places.setdefault((tensor.data_ptr(), tensor.shape, tensor.stride()), []).append(name)
        return [frozenset(names) for names in places.values() if len(names) > 1]


class Renamed(Source):
    """Some tensors of a source, under other names; see `renamed`.

    Args:
        source: the source.
        names: new name -> name there.
    """

    def __init__(self, source: Source, names: Mapping[str, str]) -> None:
        self.source, self.names = source, dict(names)
        self.shapes = {name: source.shapes[own] for name, own in names.items()}
        self.dtypes = {name: source.dtypes[own] for name, own in names.items()}

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Renamed) and self.source == other.source and self.names == other.names

    def __hash__(self) -> int:
        return hash((self.source, len(self.names)))

    def read(self, piece: Piece) -> Tensor:
        return self.source.read(Piece(self.names[piece.name], piece.start, piece.stop))

    @property
    def tied(self) -> list[frozenset[str]]:
        groups = {own: number for number, group in enumerate(self.source.tied) for own in group}
        # Names beside those of files are two of one tensor as well.
        return grouped({name: groups.get(own, own) for name, own in self.names.items()})

    @property
    def arrays(self) -> int:
        return self.source.arrays

    def unit(self, name: str) -> int:
        return self.source.unit(self.names[name])

    def sources(self) -> Iterable[Source]:
        return (self.source,)


class Joined(Source):
    """The tensors of several sources, in the order of their names as given.

    Args:
        places: the source of each tensor.
    """

    def __init__(self, places: Mapping[str, Source]) -> None:
        self.places = dict(places)
        self.shapes = {name: source.shapes[name] for name, source in places.items()}
        self.dtypes = {name: source.dtypes[name] for name, source in places.items()}

    def read(self, piece: Piece) -> Tensor:
        return self.places[piece.name].read(piece)

    @property
    def tied(self) -> list[frozenset[str]]:
        return [
            frozenset(own)
            for source in self.sources()
            for group in source.tied
            if len(own := {name for name in group if self.places.get(name) is source}) > 1
        ]

    @property
    def arrays(self) -> int:
        return max(source.arrays for source in self.sources())

    def unit(self, name: str) -> int:
        return self.places[name].unit(name)

    def sources(self) -> Iterable[Source]:
        return {id(source): source for source in self.places.values()}.values()


class Linear(Source):
    """Σ cᵢ θᵢ, tensor by tensor, in float32 (float64 where one of them is). What are whole numbers is as in the frame.

    Where the cᵢ add up to 1 or 0, it is computed as (Σ cᵢ) θ₁ + Σ cᵢ (θᵢ − θ₁), so that numbers that all θᵢ have in
    common are exactly as they were.

    Args:
        frame: has the names, and what are no floating-point numbers.
        terms: the θᵢ with their cᵢ; none: zeros.
    """

    def __init__(self, frame: Source, terms: Sequence[tuple[Source, Coefficient]]) -> None:
        self.frame, self.terms = frame, tuple(terms)
        self.shapes = frame.shapes
        self.dtypes = {
            name: computed_in([source.dtypes[name] for source, _ in self.terms]) if dtype.is_floating_point else dtype
            for name, dtype in frame.dtypes.items()
        }

    def read(self, piece: Piece) -> Tensor:
        name = piece.name
        if not self.floating(name):
            return self.frame.read(piece)
        dtype = self.dtypes[name]
        terms = [(source, own) for source, by in self.terms if (own := at(by, name)) != 0.0]
        if not terms:
            return torch.zeros(piece.stop - piece.start, dtype=dtype)
        total = sum(by for _, by in terms)
        affine = next((whole for whole in (1.0, 0.0) if abs(total - whole) < 1e-9), None)
        (first, by), *others = terms
        start = first.read(piece).to(dtype)
        if affine is None or not others:
            if by != 1.0:
                start.mul_(by)
            for source, by in others:
                start.add_(source.read(piece).to(dtype), alpha=by)
            return start
        if affine == 0.0 and len(others) == 1 and by == 1.0:
            return start.sub_(others[0][0].read(piece).to(dtype))
        change: Tensor | None = None
        for source, by in others:
            difference = source.read(piece).to(dtype).sub_(start)
            change = difference.mul_(by) if change is None else change.add_(difference, alpha=by)
        assert change is not None
        return change.add_(start) if affine else change

    def difference(self, name: str) -> tuple[Source, Source] | None:
        """The two sources of whose tensors it is the difference; None where it is none."""
        terms = [(source, own) for source, by in self.terms if (own := at(by, name)) != 0.0]
        if [own for _, own in terms] != [1.0, -1.0] or not self.floating(name):
            return None
        return terms[0][0], terms[1][0]

    @property
    def tied(self) -> list[frozenset[str]]:
        common = tied_in_all([source for source, _ in self.terms] or [self.frame])
        same = {name: tuple(at(by, name) for _, by in self.terms) for group in common for name in group}
        parts = [grouped({name: same[name] for name in sorted(group)}) for group in common]
        return [group for own in parts for group in own]

    @property
    def arrays(self) -> int:
        return 3 + max([source.arrays for source, _ in self.terms] or [0])

    def unit(self, name: str) -> int:
        return together([source.unit(name) for source, _ in self.terms], self.size(name))

    def sources(self) -> Iterable[Source]:
        return (self.frame, *(source for source, _ in self.terms))


def renamed(source: Source, names: Mapping[str, str]) -> Source:
    """Some tensors of a source under other names, new -> old; the source itself where nothing changes."""
    while isinstance(source, Renamed):
        names = {name: source.names[own] for name, own in names.items()}
        source = source.source
    same = len(names) == len(source.shapes) and all(name == own for name, own in names.items())
    return source if same else Renamed(source, names)


def at(coefficient: Coefficient, name: str) -> float:
    """What a tensor is multiplied by."""
    return coefficient[name] if isinstance(coefficient, Mapping) else coefficient


def tied_in_all(sources: Sequence[Source]) -> list[frozenset[str]]:
    """Names that stand for one tensor in each of several sources."""
    groups = [{name: number for number, group in enumerate(source.tied) for name in group} for source in sources]
    if not groups:
        return []
    common = set.intersection(*({*own} for own in groups))
    return grouped({name: tuple(own[name] for own in groups) for name in sorted(common)})


def grouped(keys: Mapping[str, object]) -> list[frozenset[str]]:
    """Names with the same key, together; those that have none in common are left out."""
    groups: dict[object, list[str]] = {}
    for name, key in keys.items():
        groups.setdefault(key, []).append(name)
    return [frozenset(names) for names in groups.values() if len(names) > 1]


def together(units: Iterable[int], size: int) -> int:
    """How many numbers of a tensor stay together where several sources say how many."""
    common = lcm(1, *units)
    return size if common > size else common


def _unpickle(file: Path) -> Any:
    """A file's tensors, mapped into memory where its format allows it."""
    from graftwork.backbones.checkpoints import UNREADABLE

    try:
        return torch.load(file, map_location="cpu", weights_only=True, mmap=True)
    except RuntimeError:  # the format of before torch 1.6 cannot be mapped
        pass
    try:
        return torch.load(file, map_location="cpu", weights_only=True)
    except UNREADABLE as error:
        raise WeightsError(f"{file} cannot be read: {str(error).splitlines()[0]}") from error


def _equal(source: Source, names: Sequence[str]) -> Iterator[frozenset[str]]:
    """Those of tensors of one shape and type that have the same numbers, together."""
    left = [*names]
    while left:
        first, *left = left
        same = [name for name in left if _same(source, first, name)]
        if same:
            yield frozenset({first, *same})
        left = [name for name in left if name not in same]


def _same(source: Source, one: str, other: str, step: int = 2**20) -> bool:
    """Whether two tensors have the same numbers; read to the first that differ."""
    size = source.size(one)
    starts = [0, *range(2**10, size, step)] if size > 2**10 else [0]
    ends = [*starts[1:], size]
    return all(
        torch.equal(source.read(Piece(one, start, stop)), source.read(Piece(other, start, stop)))
        for start, stop in zip(starts, ends, strict=True)
    )
