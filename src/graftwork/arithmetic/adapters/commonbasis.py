"""KnOTS: differences to one weight, seen in one basis before they are merged.

Stoica et al. 2024, "Model merging with SVD to tie the Knots", arXiv:2410.19735:
    [Δ_1 … Δ_N] = U [S V_1ᵀ … S V_Nᵀ],    merged = U · formula(S V_1ᵀ, …, S V_Nᵀ).
Adapters of low rank change directions of their own, so that their entries hardly meet; in the basis U, which all of
them have in common, entries with one place mean one direction.

S V_iᵀ = Uᵀ Δ_i depends on the products B_i A_i alone, and so does what is merged. Directions whose singular value is
nothing but rounding are left out.

Shapes: Δ_i (out, in), U (out, R) with R the rank of all of them together, S V_iᵀ (R, in).
"""

from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar, cast

import torch
import torch.nn.functional as F
from torch import Tensor

from graftwork.arithmetic.adapters.lowrank import Factors
from graftwork.arithmetic.adapters.vectors import Vector

Formula = Callable[[Sequence[Vector]], Vector]
"""Makes one vector of several that have the same names and shapes: TIES, DARE and others, with their settings bound."""

M = TypeVar("M", bound=Vector)

NOTHING = 1e-6
"""A singular value that is at most so much of the largest is float32's rounding of the factors."""


def knots(vectors: Sequence[M], formula: Formula) -> M:
    """Merge matrices in the basis that they have in common, and all other tensors as they are, by one formula.

    Args:
        vectors: N differences with the same names and shapes, `Weights` or plain mappings.
        formula: merges them; it is given S V_iᵀ in the place of each matrix.

    Returns:
        A vector of the same kind, with the same names and shapes, float32.
    """
    bases = {name: common_basis([vector[name] for vector in vectors]) for name, t in vectors[0].items() if t.dim() == 2}
    turned = [{n: (bases[n].T @ t.double()).float() if n in bases else t for n, t in v.items()} for v in vectors]
    merged = formula(turned)
    found = {n: (bases[n] @ merged[n].double()).float() if n in bases else merged[n] for n in vectors[0]}
    return given_back(vectors, found)


def given_back(given: Sequence[M], result: Mapping[str, Tensor]) -> M:
    """Tensors as a value of the kind of the operands: `Weights` where one of those is."""
    from graftwork.arithmetic.values.weights import Weights

    return cast(M, Weights.of(result) if any(isinstance(own, Weights) for own in given) else result)


def knots_of_factors(
    each: Sequence[Mapping[str, Factors]], formula: Formula, *, full_size: bool = False
) -> dict[str, Factors]:
    """The same of low-rank differences, none of which is made dense.

    Args:
        each: N differences with the same names.
        formula: merges them.
        full_size: give it matrices of the differences' own shapes, whose rows behind the first R are zeros and stay
            so: it goes by the shape.

    Returns:
        U and the merged S Vᵀ as the factors B and A of each difference, of rank R.
    """
    found = {name: _in_common([one[name] for one in each]) for name in each[0]}
    more = {name: basis.shape[0] - basis.shape[1] if full_size else 0 for name, (basis, _) in found.items()}
    vectors = [
        {name: F.pad(own[i], (0, 0, 0, more[name])) for name, (_, own) in found.items()} for i in range(len(each))
    ]
    merged = formula(vectors)
    return {
        name: Factors(A=merged[name][: basis.shape[1]].float(), B=basis.float()) for name, (basis, _) in found.items()
    }


def common_basis(matrices: Sequence[Tensor]) -> Tensor:
    """U of matrices that stand beside each other, float64: the eigenvectors of Σ Δ_i Δ_iᵀ.

    Args:
        matrices: N of (out, in).

    Returns:
        (out, R).
    """
    each = [matrix.double() for matrix in matrices]
    out, width = each[0].shape[0], sum(matrix.shape[1] for matrix in each)
    if width < out:
        side_by_side = torch.cat(each, dim=1)
        basis, values, _ = torch.linalg.svd(side_by_side, full_matrices=False)
        return _signed(basis[:, values > NOTHING * values.max()])
    products = torch.stack([matrix @ matrix.T for matrix in each]).sum(dim=0)
    squares, vectors = torch.linalg.eigh(products)
    return _signed(vectors[:, squares > NOTHING**2 * squares.max()].flip(1))


def _in_common(each: Sequence[Factors]) -> tuple[Tensor, list[Tensor]]:
    """U (out, R), float64, and every S V_iᵀ (R, in), float32."""
    left, upper = torch.linalg.qr(torch.cat([one.B.double() for one in each], dim=1))
    parts = torch.split(upper, [one.rank for one in each], dim=1)
    inner = [part @ one.A.double() for part, one in zip(parts, each, strict=True)]  # Δ_i = left · inner_i
    small = common_basis(inner)
    basis = left @ small
    sign = _signs(basis)
    return basis * sign, [(sign[:, None] * (small.T @ own)).float() for own in inner]


def _signs(basis: Tensor) -> Tensor:
    """Which columns are to be turned round, so that the largest entry of each is positive."""
    if not basis.shape[1]:
        return basis.new_ones(0)
    largest = basis.gather(0, basis.abs().argmax(dim=0, keepdim=True)).squeeze(0)
    return torch.where(largest < 0, -1.0, 1.0).to(basis)


def _signed(basis: Tensor) -> Tensor:
    return basis * _signs(basis)
