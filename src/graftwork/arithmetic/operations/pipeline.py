"""The pipeline of most papers on task vectors: weigh, trim, elect a sign, merge. A paper is one of its settings.

TIES (Yadav et al. 2023, arXiv:2306.01708): the largest numbers of each vector are kept; each place takes the
sign of the sum over the vectors; of the vectors with that sign, the mean is taken. Of a sum of 0 the sign is that of
most places, and where these are as many on both sides the result is 0, so that f(−τ) = −f(τ).
"""

from collections.abc import Sequence
from threading import Lock
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from graftwork.arithmetic.operations.merged import Stack, Step, Vectors
from graftwork.arithmetic.operations.trimming import Energies, Trim
from graftwork.arithmetic.values.running import Piece
from graftwork.training.display import SILENT, Display

Taken = Literal["sum", "mean", "max"]
"""What is taken of the numbers that are left at a place: their sum; their mean, of those that are not 0; or the one of
the largest magnitude."""


class Pipeline(Step):
    """Weigh, trim, elect, merge.

    Args:
        trim: which numbers of each vector are left.
        elect: whether only those count that have the sign of their sum.
        take: what is taken of them.
    """

    def __init__(self, trim: Trim, *, elect: bool, take: Taken) -> None:
        self.trim, self.elect, self.take = trim, elect, take
        self._majority: float | None = None
        self._lock = Lock()

    def unit(self, shape: tuple[int, ...]) -> int:
        return self.trim.unit(shape)

    def settle(self, names: Sequence[str]) -> None:
        self.trim.settle(names)

    def prepare(self, vectors: Vectors, display: Display) -> None:
        self.trim.prepare(vectors, display)

    def facts(self, name: str, vectors: Vectors) -> Any:
        return self.trim.facts(name, vectors)

    def merge(self, stack: Stack, piece: Piece, vectors: Vectors) -> Float[Tensor, "n"]:
        facts = vectors.facts(piece.name)
        left = self.trim.trim(stack, piece, facts, vectors)
        if not self.elect:
            return self._taken(left, facts, piece, vectors)
        elected = left.sum(0).sign_()
        undecided = _some(left) & (elected.numpy() == 0)
        if undecided.any():
            elected[torch.from_numpy(undecided)] = self._sign_of_most(vectors)
        # The magnitudes of those that have the elected sign, which all that is taken of them has.
        return self._taken(left.mul_(elected).clamp_(min=0.0), facts, piece, vectors).mul_(elected)

    def _taken(self, left: Stack, facts: Any, piece: Piece, vectors: Vectors) -> Float[Tensor, "n"]:
        """What is taken of the numbers that are left; after an election of their magnitudes."""
        if self.take == "max":
            return left.gather(0, left.abs().argmax(0)[None])[0]
        agreeing = left.sign() if self.take == "mean" and self.elect else left
        shares = _shares(facts, piece, vectors)
        if isinstance(facts, Energies):
            left.mul_(torch.tensor(shares, dtype=left.dtype)[:, None])
        if self.take == "sum":
            return left.sum(0)
        if not self.elect:
            return left.sum(0).div_(sum(shares) or 1.0)
        divisor = agreeing[0].mul_(shares[0])
        for own, share in zip(agreeing[1:], shares[1:], strict=True):
            divisor.add_(own, alpha=share)
        smallest = min([share for share in shares if share > 0], default=1.0)
        return left.sum(0).div_(divisor.clamp_(min=smallest))  # where nothing is left, it is 0

    def _sign_of_most(self, vectors: Vectors) -> float:
        """The sign that more places have than the other one, over all tensors; found when a place first needs it."""

        def balance(piece: Piece) -> float:
            left = self.trim.trim(vectors.read(piece), piece, vectors.facts(piece.name), vectors)
            return float(left.sum(0).sign().sum())

        with self._lock:
            if self._majority is None:
                total = sum(vectors.over_all(balance, SILENT, "signs"))
                self._majority = float((total > 0) - (total < 0))
            return self._majority


def _shares(facts: Any, piece: Piece, vectors: Vectors) -> list[float]:
    """By how much each vector counts in a mean: by its weight, and in SCE by its share of the squares."""
    if isinstance(facts, Energies):
        return [float(share) for share in facts.shares]
    return [abs(weight) for weight in vectors.weights_at(piece.name)]


def _some(left: Stack) -> Any:
    """Where any vector has a number, as numpy's true and false: it finds them several times as fast as torch."""
    found = left[0].numpy() != 0
    for row in left[1:]:
        found |= row.numpy() != 0
    return found
