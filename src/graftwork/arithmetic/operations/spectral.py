"""Merges by singular values: of matrices, whole; all other tensors are averaged.

A singular vector whose value is nothing but rounding has no direction of its own, so that it is left out: what no model
changed stays as it is, and the result depends on the matrices alone, not on how they were written down.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from graftwork.arithmetic.operations.merged import Stack, Step, Vectors
from graftwork.arithmetic.values.running import Piece

Triples = tuple[Float[Tensor, "m r"], Float[Tensor, "r"], Float[Tensor, "r n"]]
"""U, the singular values from the largest on, and Vᵀ of a matrix of rank r."""


class _Spectral(Step):
    """A step that acts on matrices."""

    def unit(self, shape: tuple[int, ...]) -> int:
        return shape[0] * shape[1] if len(shape) == 2 else 1

    def merge(self, stack: Stack, piece: Piece, vectors: Vectors) -> Float[Tensor, "n"]:
        shape = vectors.shape(piece.name)
        if len(shape) != 2 or 0 in shape:
            return stack.mean(0)
        matrices = stack.view(-1, *shape)
        changed = (matrices != 0).any(0)
        rows, columns = (changed.any(dim).nonzero().view(-1) for dim in (1, 0))
        found = stack.new_zeros(shape)
        if len(rows):
            # A row of embeddings that no model trained is 0 to the bit.
            parts = [matrix[rows[:, None], columns].double() for matrix in matrices]
            found[rows[:, None], columns] = self.matrix(parts, min(shape)).to(found)
        return found.view(-1)

    def matrix(self, matrices: list[Float[Tensor, "m n"]], most: int) -> Float[Tensor, "m n"]:
        """One matrix of several, float64.

        Args:
            matrices: the rows and columns that any of them changes.
            most: the rank that whole ones could have.
        """
        raise NotImplementedError


class IsoC(_Spectral):
    """The sum of the task matrices with all singular values made equal: to the mean of those that are not 0, so that
    their sum stays (Marczak et al. 2025, "No Task Left Behind", arXiv:2502.04959, Iso-C). Of a sum of full rank
    this is the mean of all, as in the paper."""

    def matrix(self, matrices: list[Float[Tensor, "m n"]], most: int) -> Float[Tensor, "m n"]:
        left, values, right = _triples(torch.stack(matrices).sum(0))
        return (left @ right) * (values.sum() / max(len(values), 1))


class TSVM(_Spectral):
    """The first singular triples of each task matrix, side by side, their vectors made orthogonal to one another
    (Gargiulo et al. 2025, "Task Singular Vectors", arXiv:2412.00081): of N tasks each has min(m, n) / N of
    them, or as many as its rank, and U = [U₁ … U_N] becomes the orthogonal matrix next to it, as does V."""

    def matrix(self, matrices: list[Float[Tensor, "m n"]], most: int) -> Float[Tensor, "m n"]:
        rank = max(1, most // len(matrices))
        each = [_triples(matrix) for matrix in matrices]
        U = torch.cat([left[:, :rank] for left, _, _ in each], dim=1)
        V = torch.cat([right[:rank] for _, _, right in each], dim=0)
        values = torch.cat([own[:rank] for _, own, _ in each])
        return (_orthogonal(U) * values) @ _orthogonal(V)


def _orthogonal(matrix: Float[Tensor, "m n"]) -> Float[Tensor, "m n"]:
    """The matrix next to it whose singular values are 1, or 0 where its own are: its polar factor."""
    left, _, right = _triples(matrix)
    return left @ right


def _triples(matrix: Float[Tensor, "m n"]) -> Triples:
    """The singular triples of a matrix, less those that float32 cannot tell from 0."""
    left, values, right = torch.linalg.svd(matrix, full_matrices=False)
    least = torch.finfo(torch.float32).eps * max(matrix.shape) * values.amax()
    rank = int((values > least).sum())
    return left[:, :rank], values[:rank], right[:rank]
