"""A source that is made of several vectors, tensor by tensor: they are read in pieces, weighed, and given to a step.

What a step must know of a tensor, or of all tensors, before it can make a piece is found once, in passes over them.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from threading import Lock, RLock
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from graftwork.arithmetic.values.dtypes import computed_in
from graftwork.arithmetic.values.roles import role_of
from graftwork.arithmetic.values.running import Piece, counted_bytes, in_threads, pieces_of
from graftwork.arithmetic.values.sources import Coefficient, Linear, Source, at, tied_in_all, together
from graftwork.training.display import SILENT, Display

FEW = 2**20
"""Bytes for which no threads are begun."""

Stack = Float[Tensor, "N n"]
"""The numbers of N vectors in one piece."""


class Step(ABC):
    """What makes one tensor of several."""

    @abstractmethod
    def merge(self, stack: Stack, piece: Piece, vectors: "Vectors") -> Float[Tensor, "n"]:
        """The numbers of a piece.

        Args:
            stack: the weighed vectors' numbers; may be changed.
            piece: where they are.
            vectors: all of them; `vectors.facts(name)` is what `facts` found of a tensor.
        """

    def mean(self, stack: Stack, piece: Piece, vectors: "Vectors") -> Float[Tensor, "n"]:
        """The numbers of a piece of what is not trained: the mean with the vectors' weights. Those of 0 and below do
        not count; where none does, nothing is left.

        Args:
            stack: the weighed vectors' numbers.
            piece: where they are.
            vectors: all of them.
        """
        counted = [i for i, weight in enumerate(vectors.weights_at(piece.name)) if weight > 0]
        total = sum(vectors.weights_at(piece.name)[i] for i in counted)
        return stack[counted].sum(0) / (total or 1.0)

    def unit(self, shape: tuple[int, ...]) -> int:
        """How many numbers of a tensor of that shape are merged together."""
        return 1

    def settle(self, names: Sequence[str]) -> None:
        """Find what each setting is at each tensor, before anything is read.

        Raises:
            RecipeError: one has no meaning there.
        """
        return

    def prepare(self, vectors: "Vectors", display: Display) -> None:
        """Find what must be known of all tensors."""
        return

    def facts(self, name: str, vectors: "Vectors") -> Any:
        """Find what must be known of a tensor."""
        return None


def _no_facts(name: str) -> Any:
    return None


@dataclass(frozen=True)
class Vectors:
    """Several vectors, and what each is multiplied by.

    Attributes:
        sources: the vectors, under the same names.
        weights: one for each.
        names: of the tensors that are merged, each tied one once.
        units: how many numbers of each are read together.
        facts: what the step has found of a tensor, found once.
    """

    sources: tuple[Source, ...]
    weights: tuple[Coefficient, ...]
    names: tuple[str, ...]
    units: Mapping[str, int]
    facts: Callable[[str], Any] = _no_facts

    @cached_property
    def dtype(self) -> torch.dtype:
        """The precision in which all of them are computed."""
        return computed_in([source.dtypes[name] for source in self.sources for name in self.names])

    @property
    def arrays(self) -> int:
        """Arrays of a piece's size that are held while one is merged."""
        return 3 * len(self.sources) + 4 + max(source.arrays for source in self.sources)

    def size(self, name: str) -> int:
        """How many numbers a tensor has."""
        return self.sources[0].size(name)

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of a tensor."""
        return self.sources[0].shapes[name]

    def weights_at(self, name: str) -> list[float]:
        """What each vector is multiplied by at a tensor."""
        return [at(weight, name) for weight in self.weights]

    def read(self, piece: Piece) -> Stack:
        """A piece of all of them, weighed."""
        dtype = self.dtype
        stack = torch.empty((len(self.sources), piece.stop - piece.start), dtype=dtype)
        read: dict[Source, Tensor] = {}  # what several have in common is read once
        for row, source, weight in zip(stack, self.sources, self.weights_at(piece.name), strict=True):
            pair = source.difference(piece.name) if isinstance(source, Linear) else None
            if pair is not None and source.dtypes[piece.name] == dtype:
                one, other = pair
                if other not in read:
                    read[other] = other.read(piece).to(dtype)
                torch.sub(one.read(piece).to(dtype), read[other], out=row)
            else:
                row.copy_(source.read(piece))
            if weight != 1.0:
                row.mul_(weight)
        return stack

    def rows(self, piece: Piece) -> list[Tensor]:
        """A piece of each of them, weighed."""
        return [*self.read(piece)]

    def pieces(self, names: Iterable[str]) -> list[Piece]:
        """Tensors in pieces."""
        sizes = {name: self.size(name) for name in names}
        return pieces_of(sizes, {name: self.units[name] for name in sizes}, arrays=self.arrays)

    def over_all(self, work: Callable[[Piece], Any], display: Display, label: str) -> Iterator[Any]:
        """What comes of each piece of all tensors, in order, by several threads."""
        pieces = self.pieces(self.names)
        nbytes = [(piece.stop - piece.start) * 4 * len(self.sources) for piece in pieces]
        with counted_bytes(display, label, sum(nbytes)) as advance:
            done = in_threads(work, pieces) if sum(nbytes) > FEW else map(work, pieces)
            for count, found in zip(nbytes, done, strict=True):
                yield found
                advance(count)


class Merged(Source):
    """What a step makes of vectors.

    Whole numbers are as in the first vector; of buffers of floating-point numbers, which are not trained, it is the
    step's `mean`. A tied tensor is merged once.

    Args:
        sources: the vectors, under the same names.
        step: what is made of them.
        weights: what each vector is multiplied by before; None: 1.
    """

    def __init__(self, sources: Sequence[Source], step: Step, weights: Sequence[Coefficient] | None = None) -> None:
        first = sources[0]
        self._step, self._prepared = step, False
        self._facts: dict[str, Any] = {}
        self._locks: dict[str, Lock] = {}
        self._lock = RLock()
        self.shapes = first.shapes
        floats = computed_in([dtype for source in sources for dtype in source.dtypes.values()])
        self.dtypes = {name: floats if own.is_floating_point else own for name, own in first.dtypes.items()}
        self.tied_names = tied_in_all(sources)
        self._same = {name: min(group) for group in self.tied_names for name in group}
        trained = [name for name in first.shapes if role_of(name, floating=first.floating(name)) != "buffer"]
        names = tuple(name for name in trained if self._same.get(name, name) == name)
        units = {name: self._unit([*sources], name) for name in names}
        given = tuple(weights) if weights is not None else (1.0,) * len(sources)
        self.vectors = Vectors(tuple(sources), given, names, units, self._facts_of)
        step.settle(names)

    @property
    def tied(self) -> list[frozenset[str]]:
        return self.tied_names

    @property
    def arrays(self) -> int:
        return self.vectors.arrays

    def unit(self, name: str) -> int:
        return self.vectors.units.get(self._same.get(name, name), 1)

    def sources(self) -> Iterable[Source]:
        return self.vectors.sources

    def prepare(self, display: Display) -> None:
        super().prepare(display)
        with self._lock:
            if not self._prepared:
                self._step.prepare(self.vectors, display)
                self._prepared = True

    def read(self, piece: Piece) -> Tensor:
        if not self.floating(piece.name):
            return self.vectors.sources[0].read(piece)
        name = self._same.get(piece.name, piece.name)
        own = Piece(name, piece.start, piece.stop)
        if name not in self.vectors.units:
            return self._step.mean(self.vectors.read(own), own, self.vectors)
        if not self._prepared:
            self.prepare(SILENT)
        return self._step.merge(self.vectors.read(own), own, self.vectors)

    def _facts_of(self, name: str) -> Any:
        with self._lock:
            lock = self._locks.setdefault(name, Lock())
        with lock:
            if name not in self._facts:
                self._facts[name] = self._step.facts(name, self.vectors)
            return self._facts[name]

    def _unit(self, sources: Sequence[Source], name: str) -> int:
        shape = sources[0].shapes[name]
        return together([self._step.unit(shape), *(source.unit(name) for source in sources)], sources[0].size(name))
