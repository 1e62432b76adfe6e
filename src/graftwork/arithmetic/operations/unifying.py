"""EMR-merging: one unified vector, and for each task a mask of one bit a number and one scale (Huang et al. 2024,
"EMR-Merging: Tuning-Free High-Performance Model Merging", arXiv:2405.17461).

    unified  ε = γ · max over the tasks with sign γ of |τᵢ|, where γ is the sign of Σ τᵢ
    mask     Mᵢ = (τᵢ ⊙ ε > 0)
    scale    λᵢ = Σ |τᵢ| / Σ |Mᵢ ⊙ ε|
    a task's vector is λᵢ · Mᵢ ⊙ ε.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Generic, cast

import torch
from torch import Tensor

from graftwork.arithmetic.operations.merged import Vectors
from graftwork.arithmetic.operations.operations import M, elected
from graftwork.arithmetic.values.roles import role_of
from graftwork.arithmetic.values.running import Piece
from graftwork.arithmetic.values.sources import Source
from graftwork.arithmetic.values.weights import Weights, aligned
from graftwork.errors import RecipeError
from graftwork.training.display import SILENT


@dataclass(frozen=True)
class EMR(Generic[M]):
    """What `emr` gives.

    Attributes:
        unified: the unified vector.
        masks: for each task, which numbers of the unified vector are its own.
        scales: by how much they are multiplied.
        buffers: for each task, what is not trained.
    """

    unified: M
    masks: tuple[M, ...]
    scales: tuple[float, ...]
    buffers: tuple[M, ...]

    def vector(self, task: int) -> M:
        """The vector of a task, λᵢ · Mᵢ ⊙ ε.

        Args:
            task: its place among the vectors that were merged.

        Raises:
            RecipeError: there is no such task.
        """
        _require_task(task, len(self.scales))
        whole, mask = Weights.of(self.unified), Weights.of(self.masks[task])
        masked = Weights(_Masked(whole.source, mask.source, self.scales[task]), origin=whole.origin)
        own = masked | Weights.of(self.buffers[task]) if len(self.buffers[task]) else masked
        return cast(M, own if isinstance(self.unified, Weights) else dict(own))


def emr(vectors: Sequence[M]) -> EMR[M]:
    """Merge task vectors into one, with what each task needs to have its own again.

    Args:
        vectors: task vectors.

    Raises:
        WeightsError: they differ in tensors or shapes.
    """
    unified = elected(vectors)
    first = Weights.of(unified)
    each = [aligned(first, vector) for vector in vectors]
    own = [vector.source for vector in each]
    untrained = [name for name in first if role_of(name, floating=first.source.floating(name)) == "buffer"]
    buffers = [vector.only(untrained) for vector in each]
    masks = [Weights(_Mask(source, first.source)) for source in own]
    lengths = _lengths(own, first.source)
    values = any(isinstance(vector, Weights) for vector in vectors)
    given, beside = ([value if values else dict(value) for value in found] for found in (masks, buffers))
    scales = tuple(length / left if left > 0 else 1.0 for length, left in lengths)
    return EMR(unified, tuple(cast(M, own) for own in given), scales, tuple(cast(M, own) for own in beside))


def vector_of_task(vectors: Sequence[M], *, task: int = 0) -> M:
    """What a task has of the unified vector: `emr(vectors).vector(task)`.

    Raises:
        RecipeError: there is no such task. It is told before anything is read.
    """
    _require_task(task, len(vectors))
    return emr(vectors).vector(task)


class _Mask(Source):
    """Where a vector has the sign of the unified one: true and false, of trained tensors."""

    def __init__(self, vector: Source, unified: Source) -> None:
        self.vector, self.unified = vector, unified
        self.shapes = {name: own for name, own in vector.shapes.items() if vector.floating(name)}
        self.dtypes = dict.fromkeys(self.shapes, torch.bool)

    def read(self, piece: Piece) -> Tensor:
        return self.vector.read(piece) * self.unified.read(piece) > 0

    @property
    def arrays(self) -> int:
        return 2 + self.vector.arrays + self.unified.arrays

    def sources(self) -> Iterable[Source]:
        return (self.vector, self.unified)


class _Masked(Source):
    """A unified vector where a mask is true, scaled; buffers as they are there."""

    def __init__(self, unified: Source, mask: Source, scale: float) -> None:
        self.unified, self.mask, self.scale = unified, mask, scale
        self.shapes, self.dtypes = unified.shapes, unified.dtypes

    def read(self, piece: Piece) -> Tensor:
        numbers = self.unified.read(piece)
        if role_of(piece.name, floating=self.floating(piece.name)) == "buffer":
            return numbers
        return numbers.mul_(self.mask.read(piece)).mul_(self.scale)

    @property
    def arrays(self) -> int:
        return 2 + self.unified.arrays + self.mask.arrays

    def sources(self) -> Iterable[Source]:
        return (self.unified, self.mask)


def _require_task(task: int, count: int) -> None:
    if not 0 <= task < count:
        raise RecipeError(f"there is no task {task}", expected=f"from 0 to {count - 1}", change="task")


def _lengths(own: Sequence[Source], unified: Source) -> list[tuple[float, float]]:
    """For each vector, the sum of its magnitudes, and that of the unified vector's where it has its sign."""
    names = tuple(name for name in unified.shapes if role_of(name, floating=unified.floating(name)) != "buffer")
    vectors = Vectors((unified, *own), (1.0,) * (len(own) + 1), names, dict.fromkeys(names, 1))
    unified.prepare(SILENT)

    def lengths(piece: Piece) -> Any:
        whole, *rows = vectors.rows(piece)
        parts = [(row, whole * (row * whole > 0)) for row in rows]
        return torch.tensor([[float(own.double().abs().sum()) for own in pair] for pair in parts], dtype=torch.float64)

    total = sum(vectors.over_all(lengths, SILENT, "scales"), torch.zeros(len(own), 2, dtype=torch.float64))
    return [(float(length), float(left)) for length, left in total.tolist()]
