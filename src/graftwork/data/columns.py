"""What a column of a table may hold, and the names and ids of labels in it."""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from graftwork.data.images import is_image
from graftwork.data.table import Table
from graftwork.errors import DataError, nearest

Columns = dict[str, tuple[Any, Sequence[Any]]]
"""A dataset's columns: for each its feature, as `datasets` has them, and its values."""


@dataclass(frozen=True)
class Content:
    """What a column holds.

    Attributes:
        name: one value of it, in errors.
        holds: whether a value is one.
        several: what the column holds instead where one column stands for several.
        optional: whether a row may have none.
    """

    name: str
    holds: Callable[[Any], bool]
    several: "Content | None" = None
    optional: bool = False


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _is_list_of_words(value: Any) -> bool:
    return isinstance(value, list) and len(value) > 0 and all(_is_text(word) and word.strip() for word in value)


def _is_label(value: Any) -> bool:
    return isinstance(value, str | int | float)


def _is_list_of_tags(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(tag, str | int) for tag in value)


def _is_list_of_choices(value: Any) -> bool:
    return isinstance(value, list) and len(value) > 1 and all(map(_is_text, value))


TEXT = Content("text", _is_text)
WORDS = Content("list of words", _is_list_of_words)
CHOICE = Content("text", _is_text, Content("list of two choices or more", _is_list_of_choices))
IMAGE = Content("image that can be read", is_image)
LABEL = Content("label", _is_label)
TAGS = Content("list of tags", _is_list_of_tags)


def label_text(value: Any) -> str:
    """A label's name."""
    # A column of ids in which one was missing comes as floats.
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)


def is_integer(text: str) -> bool:
    return re.fullmatch(r"-?[0-9]+", text) is not None


def sorted_names(names: set[str]) -> tuple[str, ...]:
    """As numbers, where all of them are."""
    if all(map(is_integer, names)):
        return tuple(sorted(names, key=lambda name: (int(name), name)))
    return tuple(sorted(names))


def label_ids(
    table: Table, column: str, rows: Sequence[Sequence[str]], labels: Sequence[str], *, as_ids: bool, layout: str
) -> list[list[int]]:
    """The ids of each row's labels, in a column that holds names, or ids where the task says so or its layout may have
    them.

    Args:
        rows: each row's labels, as texts.
        labels: the task's names.
        as_ids: whether the column holds ids.
        layout: how the data lie.

    Raises:
        DataError: a label is none of the task's.
    """
    ids = {name: i for i, name in enumerate(labels)}
    built_in = layout != "table" and not any(map(is_integer, labels))
    if as_ids or (built_in and all(is_integer(text) for row in rows for text in row)):
        ids = {str(i): i for i in range(len(labels))}
    unknown = [row for row, names in enumerate(rows) if not ids.keys() >= set(names)]
    if unknown:
        values = sorted({name for row in unknown for name in rows[row]} - ids.keys())
        raise DataError(
            f"{table.origin} has {len(unknown)} rows whose label in column {column!r} is not one of the task's: "
            f"{', '.join(map(repr, values[:5]))} at {table.places(unknown)}",
            expected="a label of the training data: " + nearest(values[0], ids),
            change="those rows, --label, or the task's labels (and label_ids, where the column holds ids)",
        )
    return [[ids[name] for name in names] for names in rows]
