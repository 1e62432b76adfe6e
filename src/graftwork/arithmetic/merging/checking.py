"""What a method refuses of its settings and weights, told before anything is read: it is begun with operands that have
names and shapes alone, and goes on to where it would read numbers.
"""

from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from typing import Any

import torch

from graftwork.arithmetic.merging.adaptermethods import formula_of
from graftwork.arithmetic.merging.method import ChosenMethod, Operands
from graftwork.arithmetic.merging.settings import MergeSettings
from graftwork.arithmetic.operations.operations import average
from graftwork.arithmetic.values.filters import Number
from graftwork.arithmetic.values.outlines import NoNumbersError, outlined


def check_numbers(
    chosen: ChosenMethod,
    shapes: Mapping[str, tuple[int, ...]],
    dtypes: Mapping[str, torch.dtype],
    count: int,
    *,
    base: bool,
    weights: Sequence[Number] | None = None,
) -> None:
    """Refuse numbers that a method of models or vectors has no use for at the tensors that it merges.

    Args:
        chosen: the method.
        shapes, dtypes: of the tensors.
        count: how many models there are.
        base: whether there is what they come from.
        weights: a number for each model.

    Raises:
        RecipeError: a number is out of its range, differs where it must not, or has filters that do not suit the names.
    """
    models = [outlined(shapes, dtypes) for _ in range(count)]
    if weights is not None and chosen.method.over == "models":
        average(models, weights=weights)  # of which all such methods make one
    if not isinstance(chosen.settings, MergeSettings):
        return  # whose settings are whole numbers and choices
    start = outlined(shapes, dtypes) if base else None
    with suppress(NoNumbersError):
        chosen.merge(Operands(models, base=start, weights=weights, score=_unscored))


def check_formula(
    chosen: ChosenMethod,
    shapes: Mapping[str, tuple[int, ...]],
    count: int,
    weights: Sequence[Number] | None = None,
    *,
    heads: Collection[str] = (),
) -> None:
    """Refuse the same of a formula over what adapters change.

    Args:
        chosen: the method that is the formula.
        shapes: of the vectors' tensors.
        count: how many adapters there are.
        weights: a number for each.
        heads: names of the tensors of heads, for which filters may be.

    Raises:
        RecipeError: as `check_numbers`.
    """
    with suppress(NoNumbersError):
        formula_of(chosen, weights, heads)([outlined(shapes) for _ in range(count)])


def _unscored(weights: Any) -> float:
    raise NoNumbersError
