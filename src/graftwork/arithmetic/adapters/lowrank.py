"""Low-rank differences: Δ = B A, and what is made of several of them without ever making a Δ.

Whatever is computed here depends on the products alone: (A, B) and (R A, B R⁻¹) give the same, (-A, -B) among them.
All of it is computed in float64 and rounded to float32 once.

Notation: Δ (out, in), A (r, in), B (out, r); R is the sum of the ranks of several.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from graftwork.arithmetic.values.running import Piece
from graftwork.arithmetic.values.sources import Source

ROWS = 256
"""So many rows of a Δ are computed at once. It is the same number for every piece, so that the last bit is the same."""


@dataclass(frozen=True)
class Factors:
    """A difference to a weight, as the product of two matrices: Δ = B A."""

    A: Float[Tensor, "r in"]
    B: Float[Tensor, "out r"]

    @property
    def rank(self) -> int:
        """r."""
        return int(self.A.shape[0])

    def dense(self) -> Float[Tensor, "out in"]:
        """Δ, in float32."""
        return (self.B.double() @ self.A.double()).float()

    def on_cpu(self) -> "Factors":
        """The same on the CPU."""
        return Factors(A=self.A.cpu(), B=self.B.cpu())

    def scaled(self, factor: float) -> "Factors":
        """The factors of a multiple of Δ."""
        return Factors(A=self.A, B=self.B * factor)

    def padded(self, rank: int) -> "Factors":
        """The same Δ, with rows and columns of zeros up to a rank."""
        more = rank - self.rank
        return Factors(A=F.pad(self.A, (0, 0, 0, more)), B=F.pad(self.B, (0, more)))


class Products(Source):
    """Differences that are made piece by piece, and of which none is ever in memory whole; float32.

    Args:
        factors: of each, by name.
    """

    def __init__(self, factors: Mapping[str, Factors]) -> None:
        self._factors = factors
        self.shapes = {name: (own.B.shape[0], own.A.shape[1]) for name, own in factors.items()}
        self.dtypes = dict.fromkeys(factors, torch.float32)

    @property
    def arrays(self) -> int:
        return 3

    def read(self, piece: Piece) -> Tensor:
        own = self._factors[piece.name]
        width = own.A.shape[1]
        first, last = piece.start // width, -(-piece.stop // width)
        A, begin = own.A.double(), first - first % ROWS
        blocks = [(own.B[row : row + ROWS].double() @ A).float().flatten() for row in range(begin, last, ROWS)]
        return torch.cat(blocks)[piece.start - begin * width : piece.stop - begin * width] if blocks else torch.empty(0)


@dataclass(frozen=True)
class Approximation:
    """The best approximation of a matrix by one of a rank.

    Attributes:
        factors: its factors, float32, both with the singular values' square roots.
        kept: ‖approximation‖² / ‖matrix‖², by Frobenius's norm; 1 of a matrix of zeros.
    """

    factors: Factors
    kept: float


def concatenated(each: Sequence[Factors], coefficients: Sequence[float]) -> Factors:
    """Σ c_i Δ_i, exactly: B = [c_1 B_1 …], A = [A_1; …], of rank R.

    Args:
        each: the differences to one weight.
        coefficients: c_i.
    """
    return Factors(
        A=torch.cat([one.A for one in each]),
        B=torch.cat([one.B * c for one, c in zip(each, coefficients, strict=True)], dim=1),
    )


def truncated(factors: Factors, rank: int) -> Approximation:
    """The best approximation of a product by one of a smaller rank (Eckart & Young 1936).

    With B = Q_B R_B and Aᵀ = Q_A R_A, the singular vectors of Δ are those of the small matrix R_B R_Aᵀ, turned by Q_B
    and Q_A: O((out + in) R²) in the place of O(out in min(out, in)).

    Args:
        factors: of rank R.
        rank: of the approximation. One of a larger rank than Δ has zeros.
    """
    q_b, r_b = torch.linalg.qr(factors.B.double())
    q_a, r_a = torch.linalg.qr(factors.A.double().T)
    u, values, vh = torch.linalg.svd(r_b @ r_a.T, full_matrices=False)
    return _cut(q_b @ u, values, vh @ q_a.T, rank)


def best_of_rank(delta: Float[Tensor, "out in"], rank: int) -> Approximation:
    """The best approximation of any matrix by one of a rank.

    The singular vectors are the eigenvectors of the smaller of ΔᵀΔ and ΔΔᵀ in float64, which is an order faster than
    to decompose Δ, and as good in float32 for singular values down to 10⁻⁸ of the largest.

    Args:
        delta: Δ.
        rank: of the approximation. One of a larger rank than Δ has zeros.
    """
    wide = delta.shape[0] < delta.shape[1]
    tall = delta.double().T if wide else delta.double()
    squares, vectors = torch.linalg.eigh(tall.T @ tall)
    values, near = squares.flip(0).clamp_min(0.0).sqrt(), vectors.flip(1)
    tiny = torch.finfo(torch.float64).tiny
    far = tall @ near / values.clamp_min(tiny)
    return _cut(near, values, far.T, rank) if wide else _cut(far, values, near.T, rank)


def _cut(u: Tensor, values: Tensor, vh: Tensor, rank: int) -> Approximation:
    """The first singular triples, the largest entry of each U positive, so that equal products give equal factors."""
    count = min(rank, len(values))
    left, right, root = u[:, :count], vh[:count], values[:count].sqrt()
    largest = left.gather(0, left.abs().argmax(dim=0, keepdim=True)).squeeze(0)
    sign = torch.where(largest < 0, -1.0, 1.0)
    total = values.square().sum()
    kept = 1.0 if total == 0 else float(values[:count].square().sum() / total)
    factors = Factors(A=((sign * root)[:, None] * right).float(), B=(left * (sign * root)).float())
    return Approximation(factors.padded(rank), kept)
