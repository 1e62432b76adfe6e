"""A table's columns, checked for what a task says of them, and the dataset that is made of them."""

from typing import TYPE_CHECKING, Any

from graftwork.data.columns import Content
from graftwork.data.table import SplitName, Table
from graftwork.errors import DataError, nearest
from graftwork.kinds import KINDS
from graftwork.kinds.scoring import check_metrics
from graftwork.tasks.task import Task

if TYPE_CHECKING:
    import datasets

_FLAGS = {
    "text": "--text",
    "text_pair": "--text-pair",
    "image": "--image",
    "choices": "--choices",
    "label": "--label",
}

Problem = tuple[str, str, str]
"""What is wrong, what was expected, and what to change."""


def check(task: Task, table: Table, split: SplitName, *, labels: bool = True) -> Table:
    """The table, if its columns are there and every value in them is what it has to be.

    Args:
        labels: whether its labels are looked at.

    Raises:
        DataError: they are not; names each column and the first rows.
    """
    fields = [(field, column) for field, columns in task.inputs.items() for column in columns]
    fields += [("label", task.label)] if labels else []
    missing = [(field, column) for field, column in fields if column not in table.names]
    if missing:
        raise DataError(
            f"{table.origin} has no column {', '.join(repr(column) for _, column in missing)}",
            expected="; ".join(f"{_FLAGS[field]} {nearest(column, table.names)}" for field, column in missing),
            change=", ".join(dict.fromkeys(_FLAGS[field] for field, _ in missing)),
        )
    if not len(table):
        raise DataError(f"{table.origin} has no rows", expected=f"rows in the {split} split", change="--data")
    found = [problem for field, column in fields for problem in _check_column(task, table, field, column)]
    found = found or (KINDS[task.kind].misfits(task, table) if labels else [])
    if found:
        problems, expected, change = zip(*found, strict=True)
        raise DataError(
            f"{table.origin} has " + "; and ".join(problems),
            expected="; ".join(dict.fromkeys(expected)),
            change=", ".join(dict.fromkeys(change)),
        )
    return table


def _check_column(task: Task, table: Table, field: str, column: str) -> list[Problem]:
    kind = KINDS[task.kind]
    content = kind.label if field == "label" else kind.inputs[field]
    if content.several is not None and len(task.inputs[field]) == 1:
        content = content.several
    values = table.columns[column]
    # NaN, which a column of floats has where one is missing, is the one value that is not equal to itself.
    empty = [row for row, value in enumerate(values) if value is None or (isinstance(value, float) and value != value)]
    absent = set(empty)
    wrong = [row for row, value in enumerate(values) if row not in absent and not content.holds(value)]
    found = []
    if empty and not content.optional:
        found.append(
            (
                f"{len(empty)} of {len(values)} rows without a value in column {column!r}: {table.places(empty)}",
                f"{_one(content)} in every row",
                f"those rows, or {_FLAGS[field]}",
            )
        )
    if wrong:
        found.append(
            (
                f"{_shown(values[wrong[0]])} in column {column!r}, which is not {_one(content)}: {table.places(wrong)}",
                content.name,
                _FLAGS[field],
            )
        )
    return found


def _one(content: Content) -> str:
    """One value of a column, with its article."""
    return f"{'an' if content.name[0] in 'aeiou' else 'a'} {content.name}"


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:79] + "…"


def label_names(task: Task, table: Table) -> list[list[str]]:
    """The names of each row's labels, which held-out rows must share with training. Without classes, none."""
    return KINDS[task.kind].label_names(table.columns[task.label])


def find_labels(task: Task, train: Table) -> tuple[str, ...]:
    """The task's classes or tags: those it declares, those the data declare, or those in the training rows, sorted.

    Raises:
        DataError: all rows have the same one.
        RecipeError: a metric does not suit them.
    """
    seen = {name for names in label_names(task, train) for name in names}
    if len(seen) < 2:
        only = f"the label {min(seen)!r}" if seen else "no label"
        raise DataError(
            f"{train.origin} has {only} in column {task.label!r} for every row of the train split",
            expected="two classes or more",
            change="--data, or --label",
        )
    labels = task.labels or train.classes.get(task.label) or KINDS[task.kind].sorted_names(seen)
    check_metrics(task.metrics, task.kind, labels)
    return labels


def build(task: Task, table: Table, *, grouped: bool) -> "datasets.Dataset":
    """The dataset of a checked table; see `TaskData` for its columns.

    Args:
        task: the task; with its labels, if it is of a kind that has them.
        table: its rows.
        grouped: of generation, whether rows with one source become one row, with all their targets as references.

    Raises:
        DataError: a label is not the task's, names no choice, or is no number.
    """
    from datasets import Dataset, Features

    columns = KINDS[task.kind].columns(task, table, grouped=grouped)
    features = Features({name: feature for name, (feature, _) in columns.items()})
    return Dataset.from_dict({name: list(values) for name, (_, values) in columns.items()}, features=features)
