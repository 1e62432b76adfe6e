"""The permutations of groups that agree best with given similarities of units: linear assignments, and of groups
within groups an assignment of assignments.

Notation: S[i, j] the similarity of unit i of one network and unit j of another; P with new[i] = old[P[i]], so that
Σ_i S[i, P[i]] is to be as large as possible.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

Names = tuple[str, ...]
Similarities = Mapping[Names, Tensor]
"""By the groups along an axis, from the outermost on, a tensor of their units' similarities: the units of one network
in the first half of its dimensions, those of the other in the second."""

MOST_TURNS = 20
"""Inner groups that stand along one axis are solved in turn, at most so often."""


def best_assignment(S: Tensor) -> Tensor:
    """The P that maximises Σ_i S[i, P[i]] (Hungarian algorithm, scipy's)."""
    from scipy.optimize import linear_sum_assignment

    _, columns = linear_sum_assignment(S.numpy(), maximize=True)
    return torch.from_numpy(columns.astype(np.int64))


def solve(root: str, inner: Sequence[str], similarities: Similarities) -> dict[str, Tensor]:
    """The permutations of a group and of those within it that maximise the similarity.

    The value of a pair of outer units is the best one that their inner units can have, so that heads are compared
    whatever the order of their units. With one group along each axis within the outer one this is the maximum; with
    two (query heads and their units), they are solved in turn.

    Args:
        root: the outer group.
        inner: the groups within it; none: one assignment.
        similarities: each with the root first.
    """
    size = next(iter(similarities.values())).shape[0]
    outer = torch.zeros(size, size, dtype=torch.float64)
    for names, own in similarities.items():
        if names == (root,):
            outer += own
    parts = {names[1:]: own for names, own in similarities.items() if len(names) > 1}
    if not inner:
        return {root: best_assignment(outer)}
    found: dict[tuple[int, int], dict[str, Tensor]] = {}
    for i in range(size):
        for j in range(size):
            here = {names: own.select(len(names) + 1, j).select(0, i) for names, own in parts.items()}
            found[i, j] = _solve_inner(inner, here)
            outer[i, j] += value_of(here, found[i, j])
    order = best_assignment(outer)
    chosen = [found[i, int(j)] for i, j in enumerate(order)]
    return {root: order, **{name: torch.stack([own[name] for own in chosen]) for name in inner}}


def _solve_inner(groups: Sequence[str], similarities: Similarities) -> dict[str, Tensor]:
    """The permutations of groups along common axes: of the first, what is along no other; then each in turn with the
    others as they are, while the similarity grows."""
    settled: dict[str, Tensor] = {}
    ready = sorted(groups, key=lambda name: (name,) not in similarities)  # those with an axis of their own
    best = -float("inf")
    for turn in range(MOST_TURNS):
        for name in ready:
            known = {names: own for names, own in similarities.items() if {*names} - {name} <= settled.keys()}
            S = _along(name, known, settled)
            if S is not None:
                settled[name] = best_assignment(S)
            elif turn:
                sizes = (own.shape[names.index(name)] for names, own in similarities.items() if name in names)
                settled[name] = torch.arange(next(sizes))
        if settled.keys() == {*groups}:
            reached = value_of(similarities, settled)
            if reached <= best:
                break
            best = reached
            if all(len(names) == 1 for names in similarities):
                break  # no other group is along an axis
    return settled


def _along(name: str, similarities: Similarities, settled: Mapping[str, Tensor]) -> Tensor | None:
    """The similarities of one group's units, with the other groups in their order; None where none are along it."""
    total = None
    for names, own in similarities.items():
        if name in names:
            S = _contracted(names, own, settled, keep=name)
            total = S if total is None else total + S
    return total


def value_of(similarities: Similarities, permutations: Mapping[str, Tensor]) -> float:
    """The similarity of all units under permutations. The outermost group first; those within it have one row for each
    of its new places."""
    return sum(float(_contracted(names, own, permutations, keep=None)) for names, own in similarities.items())


def _contracted(names: Names, own: Tensor, permutations: Mapping[str, Tensor], *, keep: str | None) -> Tensor:
    """The sum over pairs of units that permutations put together, but for one group, whose pairs stay apart."""
    count = len(names)
    index: list[Tensor] = []
    places: list[Tensor] = []
    shape = own.shape[:count]
    for level, name in enumerate(names):
        along = [1] * (count + 1)
        along[level] = shape[level]
        places.append(torch.arange(shape[level]).reshape(along))
        if name == keep:
            along[level], along[count] = 1, shape[level]
            index.append(torch.arange(shape[level]).reshape(along))
            continue
        order = permutations[name]
        if order.dim() == 2:
            along[0] = len(order)
        index.append(order.reshape(along))
    picked = own[(*places, *index)]
    if keep is None:
        return picked.sum()
    summed = [dim for dim in range(count) if dim != names.index(keep)]
    return picked.sum(dim=summed) if summed else picked
