"""Merges by singular values: of matrices, whole; all other tensors are averaged."""

import torch
from jaxtyping import Float
from torch import Tensor

from graftwork.arithmetic.operations.merged import Stack, Step, Vectors
from graftwork.arithmetic.values.running import Piece


class _Spectral(Step):
    """A step that acts on matrices."""

    def unit(self, shape: tuple[int, ...]) -> int:
        return shape[0] * shape[1] if len(shape) == 2 else 1

    def merge(self, stack: Stack, piece: Piece, vectors: Vectors) -> Float[Tensor, "n"]:
        shape = vectors.shape(piece.name)
        if len(shape) != 2 or 0 in shape:
            return stack.mean(0)
        return self.matrix(stack.view(-1, *shape)).reshape(-1)

    def matrix(self, stack: Float[Tensor, "N m n"]) -> Float[Tensor, "m n"]:
        """One matrix of several."""
        raise NotImplementedError


class IsoC(_Spectral):
    """The sum of the task matrices with all singular values made equal: to their mean (Marczak et al. 2025, "No Task
    Left Behind", arXiv:2502.04959, Iso-C)."""

    def matrix(self, stack: Float[Tensor, "N m n"]) -> Float[Tensor, "m n"]:
        left, values, right = _svd(stack.sum(0))
        return (left @ right) * values.mean()


class TSVM(_Spectral):
    """The first singular triples of each task matrix, side by side, their vectors made orthogonal to one another
    (Gargiulo et al. 2025, "Task Singular Vectors", arXiv:2412.00081): of N tasks each has min(m, n) / N of
    them, and U = [U₁ … U_N] becomes the orthogonal matrix next to it, as does V."""

    def matrix(self, stack: Float[Tensor, "N m n"]) -> Float[Tensor, "m n"]:
        rank = max(1, min(stack.shape[1:]) // len(stack))
        left, values, right = _svd(stack)
        U = torch.cat([*left[:, :, :rank]], dim=1)
        V = torch.cat([*right[:, :rank]], dim=0)
        return (_orthogonal(U) * values[:, :rank].reshape(-1)) @ _orthogonal(V)


def _orthogonal(matrix: Float[Tensor, "m n"]) -> Float[Tensor, "m n"]:
    """The matrix with orthogonal rows or columns that is next to it: its polar factor."""
    left, _, right = _svd(matrix)
    return left @ right


def _svd(matrix: Float[Tensor, "*N m n"]) -> tuple[Tensor, Tensor, Tensor]:
    """U, the singular values from the largest on, and Vᵀ."""
    left, values, right = torch.linalg.svd(matrix, full_matrices=False)
    return left, values, right
