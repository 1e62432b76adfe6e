"""Labels that are numbers, as data have them."""

import math
import re
from typing import Any

from graftwork.data.table import Table
from graftwork.errors import DataError

LARGEST = 3.4e38
"""Of the numbers that float32 has."""

NUMBER = re.compile(r"\s*[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?\s*")
"""A number as text. Python's `float` would also take 1_0 for 10, and digits of other scripts."""


def read_numbers(table: Table, column: str) -> list[float]:
    """A column's numbers.

    Raises:
        DataError: a value is none, or none that is finite; names the first rows.
    """
    numbers = [_number(value) for value in table.columns[column]]
    bad = [row for row, number in enumerate(numbers) if not abs(number) <= LARGEST]
    if bad:
        raise DataError(
            f"{table.origin} has {table.columns[column][bad[0]]!r} in column {column!r}, which is not a "
            f"finite number: {table.places(bad)}",
            expected="a finite number in every row",
            change="those rows, --label, or --kind classification",
        )
    return numbers


def _number(value: Any) -> float:
    """NaN where it is none."""
    if isinstance(value, bool) or (isinstance(value, str) and not NUMBER.fullmatch(value)):
        return math.nan
    try:
        return float(value) if isinstance(value, int | float | str) else math.nan
    except OverflowError:  # a whole number of more than 300 digits
        return math.inf
