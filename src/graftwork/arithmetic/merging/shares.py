"""How much each operand counts in what is averaged beside a merge: heads that the base lacks, and buffers."""

from collections.abc import Collection, Mapping, Sequence

from graftwork.arithmetic.merging.method import ChosenMethod
from graftwork.arithmetic.values.filters import Number, at_each
from graftwork.arithmetic.values.weights import Weights

Shares = Sequence[Mapping[str, float]]
"""Of each operand, its share of each tensor."""


def shares_at(
    chosen: ChosenMethod,
    weights: Sequence[Number] | None,
    count: int,
    names: Collection[str],
    *,
    beside: Collection[str],
) -> Shares:
    """The shares of a merge's operands at each tensor; see `shares_of`.

    Args:
        chosen: the method.
        weights: a number for each model; None: all alike.
        count: how many operands there are: the models, and before them the base that one is between.
        names: of the tensors that are averaged.
        beside: names of those that are merged, for which filters may be.

    Raises:
        RecipeError: no filter of a number matches a tensor.
    """
    return shares_of(chosen.shares(weights, count), count, names, chosen.shared_by, beside=beside)


def shares_of(
    numbers: Sequence[Number] | None, count: int, names: Collection[str], what: str, *, beside: Collection[str]
) -> Shares:
    """Shares at each tensor, which add up to 1. Operands whose number is 0 or below have none, as no variance is below
    0; where no operand has any, all are 0.

    Args:
        numbers: one for each operand; None: all alike.
        count: how many operands there are.
        names: of the tensors.
        what: the flag that the numbers are of, for errors.
        beside: names of other tensors, for which filters may be.

    Raises:
        RecipeError: no filter of a number matches a tensor.
    """
    given = [1.0] * count if numbers is None else numbers
    found = [at_each(number, names, what, beside=beside) for number in given]
    each = [{name: max(0.0, number) for name, number in own.items()} for own in found]
    totals = {name: sum(own[name] for own in each) for name in names}
    return [{name: number / (totals[name] or 1.0) for name, number in own.items()} for own in each]


def mean_by(operands: Sequence[Weights], shares: Shares) -> Weights:
    """The mean of operands by their shares; where no operand has any, of all alike."""
    none = [name for name in operands[0] if not any(own[name] for own in shares)]
    alike = dict.fromkeys(none, 1.0 / len(operands))
    whole, *others = [operand.scaled({**own, **alike}) for operand, own in zip(operands, shares, strict=True)]
    for other in others:
        whole = whole + other
    return whole
