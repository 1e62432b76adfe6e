"""Merges that depend on the angles between models, tensor by tensor: SLERP and Model Stock."""

from collections.abc import Sequence
from math import acos, sin, sqrt

import torch
from jaxtyping import Float
from torch import Tensor

from graftwork.arithmetic.operations.merged import Stack, Step, Vectors
from graftwork.arithmetic.values.filters import Number, resolved
from graftwork.arithmetic.values.running import Piece
from graftwork.arithmetic.values.sources import Coefficient, at

PARALLEL = 0.9995
"""Cosine from which on two tensors lie so nearly in one line that the way between them is that line (as mergekit)."""


class Slerp(Step):
    """The way from one tensor to another on an arc (Shoemake 1985, "Animating Rotation with Quaternion Curves"):
    sin((1−t)φ)/sin φ · a + sin(tφ)/sin φ · b, where φ is the angle between them.

    Args:
        t: how far the way is gone, from 0 (the first) to 1 (the second).
    """

    def __init__(self, t: Number) -> None:
        self.t = t
        self._t: Coefficient = 0.0

    def settle(self, names: Sequence[str]) -> None:
        self._t = resolved(self.t, names, "t")

    def facts(self, name: str, vectors: Vectors) -> tuple[float, float]:
        """What each tensor is multiplied by."""
        t, products = at(self._t, name), products_of(name, vectors)
        cosine = cosine_of(products, 0, 1)
        if abs(cosine) > PARALLEL:
            return 1 - t, t
        angle = acos(cosine)
        return sin((1 - t) * angle) / sin(angle), sin(t * angle) / sin(angle)

    def merge(self, stack: Stack, piece: Piece, vectors: Vectors) -> Float[Tensor, "n"]:
        first, second = vectors.facts(piece.name)
        return stack[0].mul(first).add_(stack[1], alpha=second)

    def mean(self, stack: Stack, piece: Piece, vectors: Vectors) -> Float[Tensor, "n"]:
        """What is not trained lies on the straight line between the two, or is that of the nearer one."""
        t = at(resolved(self.t, [piece.name], "t", beside=vectors.names), piece.name)
        t = min(max(t, 0.0), 1.0)
        return stack[0].mul(1 - t).add_(stack[1], alpha=t)


class ModelStock(Step):
    """The mean of N fine-tuned models drawn towards the pre-trained one, by how far they point apart (Jang et al. 2024,
    "Model Stock", arXiv:2403.19522): t = N cos θ / (1 + (N − 1) cos θ) of the mean of the vectors is left, where
    cos θ is the mean cosine of two of them.
    """

    def facts(self, name: str, vectors: Vectors) -> float:
        products, count = products_of(name, vectors), len(vectors.sources)
        pairs = [cosine_of(products, i, j) for i in range(count) for j in range(i)]
        cosine = sum(pairs) / len(pairs)
        below = 1 + (count - 1) * cosine
        # Opposite vectors have no direction in common: nothing of them is left.
        return max(0.0, count * cosine / below) if below > 0 else 0.0

    def merge(self, stack: Stack, piece: Piece, vectors: Vectors) -> Float[Tensor, "n"]:
        return stack.mean(0).mul_(vectors.facts(piece.name))


def products_of(name: str, vectors: Vectors) -> Float[Tensor, "N N"]:
    """The products of the vectors with one another at a tensor, in float64."""
    total = torch.zeros(len(vectors.sources), len(vectors.sources), dtype=torch.float64)
    for piece in vectors.pieces([name]):
        wide = vectors.read(piece).double()
        total += wide @ wide.T
    return total


def cosine_of(products: Float[Tensor, "N N"], one: int, other: int) -> float:
    """Of the angle between two of them; 0 where one is 0."""
    length = sqrt(float(products[one, one]) * float(products[other, other]))
    return max(-1.0, min(1.0, float(products[one, other]) / length)) if length > 0 else 0.0
