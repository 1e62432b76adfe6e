"""How much each model counts in what is averaged beside a merge: heads that the base lacks, and buffers."""

from collections.abc import Collection, Sequence

from graftwork.arithmetic.merging.method import ChosenMethod
from graftwork.arithmetic.values.filters import Number, at_each


def shares_at(
    chosen: ChosenMethod,
    weights: Sequence[Number] | None,
    count: int,
    names: Collection[str],
    *,
    beside: Collection[str],
) -> list[dict[str, float]]:
    """The shares of the models at each tensor. They add up to 1, or are all 0 where no model counts: those whose weight
    is 0 or below do not.

    Args:
        chosen: the method.
        weights: a number for each model; None: all alike.
        count: how many models.
        names: of the tensors that are averaged.
        beside: names of those that are merged, for which filters of weights may be.

    Raises:
        RecipeError: no filter of a weight matches a tensor.
    """
    each = []
    for share in chosen.shares(weights, count) or [1.0] * count:
        found = at_each(share, names, "weight", beside=beside)
        each.append({name: max(0.0, number) for name, number in found.items()})
    totals = {name: sum(own[name] for own in each) for name in names}
    return [{name: number / (totals[name] or 1.0) for name, number in own.items()} for own in each]
