"""Trims: which numbers of task vectors are left, and by how much they grow. The second step of the pipeline.

Each acts tensor by tensor on pieces (N, n) of N vectors; what it must know of a tensor first is its `facts`.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from graftwork.arithmetic.operations.merged import Stack, Vectors
from graftwork.arithmetic.operations.selection import ALL, Cut, cut_of, cuts_of, how_many, keys_of
from graftwork.arithmetic.values.filters import Number, resolved, the_one
from graftwork.arithmetic.values.running import Piece
from graftwork.arithmetic.values.sources import Coefficient, at
from graftwork.errors import RecipeError
from graftwork.training.display import Display

Scope = Literal["global", "tensor"]

ROUNDING = 1e-9
"""By which a sum of shares that are right may be wrong."""


class Trim(ABC):
    """Which numbers are left."""

    @abstractmethod
    def trim(self, stack: Stack, piece: Piece, facts: Any, vectors: Vectors) -> Stack:
        """What is left of a piece; the stack may be changed."""

    def unit(self, shape: tuple[int, ...]) -> int:
        """How many numbers of a tensor are trimmed together."""
        return 1

    def settle(self, names: Sequence[str]) -> None:
        """Find what each setting is at each tensor, before anything is read.

        Raises:
            RecipeError: one has no meaning there.
        """
        return

    def prepare(self, vectors: Vectors, display: Display) -> None:
        """Find what must be known of all tensors."""
        return

    def facts(self, name: str, vectors: Vectors) -> Any:
        """Find what must be known of a tensor."""
        return None


class Whole(Trim):
    """All numbers are left."""

    def trim(self, stack: Stack, piece: Piece, facts: Any, vectors: Vectors) -> Stack:
        return stack


class Largest(Trim):
    """The numbers of the largest magnitude are left, exactly so many of each vector (TIES).

    Args:
        keep: their share.
        scope: whether they are the largest of the whole vector, or of each tensor.
    """

    def __init__(self, keep: Number, scope: Scope) -> None:
        self.keep, self.scope = keep, scope
        self._share: Coefficient = 1.0
        self._cuts: list[dict[str, Cut]] = []

    def settle(self, names: Sequence[str]) -> None:
        if self.scope == "tensor":
            self._share = resolved(self.keep, names, "keep")
        else:
            self._share = the_one(self.keep, "keep", "the largest of the whole vector are kept (scope global)")

    def prepare(self, vectors: Vectors, display: Display) -> None:
        if self.scope == "global":
            total = sum(vectors.size(name) for name in vectors.names)
            self._cuts = global_cuts(vectors, how_many(at(self._share, ""), total), display)

    def facts(self, name: str, vectors: Vectors) -> list[Cut]:
        if self.scope == "global":
            return [own.get(name, ALL) for own in self._cuts]  # one without numbers has none
        count = how_many(at(self._share, name), vectors.size(name))
        return [own for (own,) in tensor_cuts(vectors, name, [count])]

    def trim(self, stack: Stack, piece: Piece, facts: Any, vectors: Vectors) -> Stack:
        for row, cut in zip(stack, facts, strict=True):
            row.copy_(cut.kept(row, piece.start))
        return stack


class Random(Trim):
    """Each number is dropped with probability p, and those that are left grow by 1 / (1 − p) (DARE, Yu et al. 2024,
    "Language Models are Super Mario"): in the mean over all masks the vector is as it was.

    What is dropped depends on the seed, the vector's number and the tensor's name alone.

    Args:
        drop: p.
        seed: of what is drawn.
        first: number of the first vector.
    """

    def __init__(self, drop: Number, seed: int, first: int = 0) -> None:
        self.drop, self.seed, self.first = drop, seed, first
        self._drop: Coefficient = 0.0

    def settle(self, names: Sequence[str]) -> None:
        self._drop = resolved(self.drop, names, "drop")

    def trim(self, stack: Stack, piece: Piece, facts: Any, vectors: Vectors) -> Stack:
        drop = at(self._drop, piece.name)
        for i, row in enumerate(stack, start=self.first):
            row.mul_(drawn(self.seed, i, piece) >= drop).div_(1.0 - drop)
        return stack


class Band(Trim):
    """In each tensor, the largest and the smallest magnitudes are dropped (Davari and Belilovsky 2024, "Model
    Breadcrumbs").

    Args:
        keep: share of the numbers that are left.
        outliers: share of the largest ones, which are dropped before.
    """

    def __init__(self, keep: Number, outliers: Number) -> None:
        self.keep, self.outliers = keep, outliers
        self._keep: Coefficient = 1.0
        self._outliers: Coefficient = 0.0

    def settle(self, names: Sequence[str]) -> None:
        self._keep = resolved(self.keep, names, "keep")
        self._outliers = resolved(self.outliers, names, "outliers")
        for name in names:
            keep, outliers = at(self._keep, name), at(self._outliers, name)
            if keep + outliers > 1 + ROUNDING:
                raise RecipeError(
                    f"at {name} keep {keep:g} and outliers {outliers:g} add up to {keep + outliers:g}",
                    expected="1 or less: outliers are dropped before the others are kept",
                    change="keep or outliers",
                )

    def facts(self, name: str, vectors: Vectors) -> list[list[Cut]]:
        size = vectors.size(name)
        top = how_many(at(self._outliers, name), size)
        return tensor_cuts(vectors, name, [top, top + how_many(at(self._keep, name), size)])

    def trim(self, stack: Stack, piece: Piece, facts: Any, vectors: Vectors) -> Stack:
        for row, (top, bottom) in zip(stack, facts, strict=True):
            row.copy_(bottom.kept(row, piece.start) - top.kept(row, piece.start))
        return stack


class Ranked(Trim):
    """Each number is dropped with a probability that falls with the rank of its magnitude in its row, and those that
    are left grow by the inverse of theirs (DELLA's MagPrune, Deep et al. 2024, arXiv:2406.11617).

    Args:
        drop: p, the mean probability.
        spread: ε, by which that of the smallest exceeds that of the largest.
        seed: of what is drawn.
    """

    def __init__(self, drop: Number, spread: Number, seed: int) -> None:
        self.drop, self.spread, self.seed = drop, spread, seed
        self._drop: Coefficient = 0.0
        self._spread: Coefficient = 0.0

    def unit(self, shape: tuple[int, ...]) -> int:
        return shape[-1] if shape else 1

    def settle(self, names: Sequence[str]) -> None:
        self._drop = resolved(self.drop, names, "drop")
        self._spread = resolved(self.spread, names, "spread")
        for name in names:
            mean, spread = at(self._drop, name), at(self._spread, name)
            least, most = mean - spread / 2, mean + spread / 2
            if least < -ROUNDING or most >= 1 - ROUNDING:
                raise RecipeError(
                    f"numbers of {name} would be dropped with probabilities from {least:g} to {most:g}",
                    expected="probabilities from 0 to less than 1",
                    change="drop or spread",
                )

    def trim(self, stack: Stack, piece: Piece, facts: Any, vectors: Vectors) -> Stack:
        width = self.unit(vectors.shape(piece.name))
        mean, spread = at(self._drop, piece.name), at(self._spread, piece.name)
        for i, row in enumerate(stack):
            lines = row.view(-1, width)
            # 0 is the largest of its row; of equal ones, the first is the larger.
            order = torch.from_numpy(keys_of(row)).view(-1, width).argsort(dim=1, descending=True, stable=True)
            ranks = torch.empty_like(order)
            ranks.scatter_(1, order, torch.arange(width).expand_as(order))
            share = ranks.to(row.dtype).div_(max(width - 1, 1)) if width > 1 else torch.full_like(lines, 0.5)
            drop = (mean + spread * (share - 0.5)).view(-1)
            row.mul_(drawn(self.seed, i, piece) >= drop).div_(1.0 - drop)
        return stack


@dataclass
class Energies:
    """What SCE knows of a tensor: where the variances that are kept end, and the mean square of what is left of each
    vector."""

    cut: Cut
    shares: Float[Tensor, "N"]


class Varied(Trim):
    """In each tensor, the numbers whose variance over the vectors is largest are left, the same ones of all, and each
    vector is weighed by its share of their squares (SCE, Wan et al. 2024, "FuseChat", arXiv:2408.07990).

    Args:
        keep: share of the numbers that are left.
    """

    def __init__(self, keep: Number) -> None:
        self.keep = keep
        self._keep: Coefficient = 1.0

    def settle(self, names: Sequence[str]) -> None:
        self._keep = resolved(self.keep, names, "keep")

    def facts(self, name: str, vectors: Vectors) -> Energies:
        pieces, count = vectors.pieces([name]), how_many(at(self._keep, name), vectors.size(name))
        if len(pieces) == 1:
            cut = cut_of(_variance(vectors.read(pieces[0])), count)
        else:
            (cuts,) = cuts_of(
                lambda piece: [_variance(vectors.read(piece))],
                lambda work: map(work, pieces),
                pieces,
                [(0, count)],
                vectors.dtype,
            )
            cut = cuts[name]
        squares = torch.zeros(len(vectors.sources), dtype=torch.float64)
        for piece in pieces:
            stack = vectors.read(piece)
            squares += (stack * cut.above(_variance(stack), piece.start)).double().square().sum(1)
        total = float(squares.sum())
        equal = torch.full_like(squares, 1 / len(squares))
        return Energies(cut, squares / total if total > 0 else equal)

    def trim(self, stack: Stack, piece: Piece, facts: Any, vectors: Vectors) -> Stack:
        return stack.mul_(facts.cut.above(_variance(stack), piece.start))


def drawn(seed: int, vector: int, piece: Piece) -> Float[Tensor, "n"]:
    """Numbers between 0 and 1, the same however a tensor is cut into pieces."""
    key = blake2b(f"{seed} {vector} {piece.name}".encode(), digest_size=16).digest()
    generator = np.random.PCG64(int.from_bytes(key, "little"))
    generator.advance(piece.start)
    return torch.from_numpy(np.random.Generator(generator).random(piece.stop - piece.start))


def tensor_cuts(vectors: Vectors, name: str, counts: list[int]) -> list[list[Cut]]:
    """Where the so many largest numbers of a tensor end, of each vector and for each of several counts."""
    pieces, size = vectors.pieces([name]), range(len(vectors.sources))
    if len(pieces) == 1:
        return [[cut_of(row, count) for count in counts] for row in vectors.read(pieces[0])]
    wanted = [(i, count) for i in size for count in counts]
    whole = vectors.units[name] == 1
    found = cuts_of(vectors.rows, lambda work: map(work, pieces), pieces, wanted, vectors.dtype, sampled=whole)
    cuts = iter(found)
    return [[next(cuts)[name] for _ in counts] for _ in size]


def global_cuts(vectors: Vectors, count: int, display: Display) -> list[dict[str, Cut]]:
    """Where the so many largest numbers of each whole vector end, by tensor."""
    pieces, wanted = vectors.pieces(vectors.names), [(i, count) for i in range(len(vectors.sources))]
    return cuts_of(
        vectors.rows,
        lambda work: vectors.over_all(work, display, "thresholds"),
        pieces,
        wanted,
        vectors.dtype,
        sampled=all(vectors.units[name] == 1 for name in vectors.names),
    )


def _variance(stack: Stack) -> Float[Tensor, "n"]:
    """Over the vectors, at each number."""
    return stack.var(0, correction=0)
