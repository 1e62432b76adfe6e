"""Fisher merging: a mean of models in which each parameter counts by how much its model's answers depend on it.

Matena & Raffel 2022, "Merging Models with Fisher-Weighted Averaging", arXiv:2111.09832:
    θ^j = Σ_i λ_i F_i^j θ_i^j / Σ_i λ_i F_i^j.
"""

from collections.abc import Mapping, Sequence
from math import sqrt
from typing import Literal

import torch
from torch import Tensor

from graftwork.arithmetic.adapters.commonbasis import M, given_back
from graftwork.arithmetic.adapters.vectors import Computed, Vector
from graftwork.errors import MethodError

FLOOR = 1e-6
"""What a Fisher information is at least, as in the authors' code."""

CHUNK = 2**20
"""Numbers of a tensor that are calculated with at once, in float64."""


def fisher_merge(
    weights: Sequence[M],
    fishers: Sequence[Vector],
    lambdas: Sequence[float],
    *,
    normalise: bool = True,
    floor: float = FLOOR,
    floored: Literal["all", "target"] = "all",
) -> M:
    """Merge models by their Fisher information.

    Args:
        weights: θ_i, N vectors with the same names and shapes, `Weights` or plain mappings. The first is the
            target.
        fishers: F_i, the diagonals of their Fisher information, with the same names and shapes.
        lambdas: λ_i, of 0 or more.
        normalise: divide each λ_i by ‖F_i‖₂ over all tensors: how large a model's F is depends on how sure it is of
            its answers, which says nothing about another model.
        floor: what each F is at least, before it is divided.
        floored: the F of which models that is so: of all, or of the target alone, as the authors' code has it.

    Returns:
        The merged vector, of the same kind, float32. Where the Fisher information of all models is 0 it has the
        target's value.

    Raises:
        MethodError: names, shapes or numbers do not fit; or no λ is above 0.
    """
    merged = fisher_means(weights, fishers, lambdas, normalise=normalise, floor=floor, floored=floored)
    return given_back(weights, dict(merged))


def fisher_means(
    weights: Sequence[Vector],
    fishers: Sequence[Vector],
    lambdas: Sequence[float],
    *,
    normalise: bool = True,
    floor: float = FLOOR,
    floored: Literal["all", "target"] = "all",
) -> Vector:
    """What `fisher_merge` makes, each tensor when it is asked for."""
    _check(weights, fishers, lambdas)
    norms = [sqrt(sum(_square(t) for t in f.values())) for f in fishers] if normalise else []
    factors = [own / norm if norm else own for own, norm in zip(lambdas, norms or [1.0] * len(fishers), strict=True)]

    def mean(name: str) -> Tensor:
        rows = [[vector[name].reshape(-1) for vector in own] for own in (weights, fishers)]
        found = torch.empty(rows[0][0].shape)
        for start in range(0, len(found), CHUNK):
            part = slice(start, start + CHUNK)
            values, informations = ([row[part].double() for row in own] for own in rows)
            found[part] = _mean_of(values, informations, factors, floor, floored)
        return found.view(weights[0][name].shape)

    return Computed([*weights[0]], mean)


def _mean_of(
    values: Sequence[Tensor],
    informations: Sequence[Tensor],
    factors: Sequence[float],
    floor: float,
    floored: Literal["all", "target"],
) -> Tensor:
    """Σ λ F θ / Σ λ F of some numbers."""
    target = values[0]
    above, below = torch.zeros_like(target), torch.zeros_like(target)
    nothing = torch.ones_like(target, dtype=torch.bool)
    for i, (factor, raw, value) in enumerate(zip(factors, informations, values, strict=True)):
        counted = raw.clamp_min(floor) if floored == "all" or i == 0 else raw
        above += factor * counted * value
        below += factor * counted
        nothing &= raw == 0
    return torch.where(nothing | (below == 0), target, above / below.where(below != 0, 1.0))


def _square(tensor: Tensor) -> float:
    """‖t‖², in float64, without a copy of it all."""
    flat = tensor.reshape(-1)
    return sum(float(flat[start : start + CHUNK].double().square().sum()) for start in range(0, len(flat), CHUNK))


def _check(weights: Sequence[Vector], fishers: Sequence[Vector], lambdas: Sequence[float]) -> None:
    if not len(weights) == len(fishers) == len(lambdas):
        raise MethodError(
            f"{len(weights)} models, {len(fishers)} Fisher informations and {len(lambdas)} lambdas are given",
            expected="as many of each",
            change="--weights",
        )
    if min(lambdas) < 0.0 or max(lambdas) == 0.0:
        raise MethodError(
            f"the lambdas are {', '.join(f'{own:g}' for own in lambdas)}",
            expected="numbers of 0 or more, one of them above",
            change="--weights",
        )
    refuse_other_shapes([*weights, *fishers])


def refuse_other_shapes(vectors: Sequence[Mapping[str, Tensor]]) -> None:
    """Refuse vectors that differ in names or shapes.

    Raises:
        MethodError: names the first tensor that differs.
    """
    first = vectors[0]
    for other in vectors[1:]:
        lost = sorted({*first} ^ {*other})
        if lost:
            raise MethodError(f"{lost[0]} is in one vector and not in another", expected="vectors with the same names")
        wrong = next((name for name in first if first[name].shape != other[name].shape), None)
        if wrong is not None:
            raise MethodError(
                f"{wrong} is {tuple(first[wrong].shape)} in one vector and {tuple(other[wrong].shape)} in another",
                expected="vectors with the same shapes",
            )
