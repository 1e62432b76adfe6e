"""From a table's columns to a dataset's, for each kind of task.

`check` says at once all that is wrong with the columns a task names. `find_labels` and `label_texts` say which classes
or tags there are, and `build` makes the dataset, with ids in the place of names.
"""

import logging
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from graftwork.data.images import is_image
from graftwork.data.numbers import read_numbers
from graftwork.data.table import SplitName, Table
from graftwork.errors import DataError, nearest
from graftwork.tasks.metrics import Kind, check_metrics
from graftwork.tasks.task import Task

if TYPE_CHECKING:
    import datasets

logger = logging.getLogger(__name__)

_FLAGS = {
    "text": "--text",
    "text_pair": "--text-pair",
    "image": "--image",
    "choices": "--choices",
    "label": "--label",
}


@dataclass(frozen=True)
class Content:
    """What a column holds.

    Attributes:
        name: one value of it, in errors.
        holds: whether a value is one.
    """

    name: str
    holds: Callable[[Any], bool]


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
CHOICES = Content("list of two choices or more", _is_list_of_choices)
IMAGE = Content("image that can be read", is_image)
LABEL = Content("label", _is_label)
TAGS = Content("list of tags", _is_list_of_tags)

_LABELLED = {"text": TEXT, "text_pair": TEXT, "label": LABEL}

CONTENTS: dict[Kind, dict[str, Content]] = {
    "classification": _LABELLED,
    "regression": _LABELLED,
    "token-classification": {"text": WORDS, "label": TAGS},
    "multiple-choice": {"text": TEXT, "choices": TEXT, "label": LABEL},
    "generation": {"text": TEXT, "label": TEXT},
    "image-classification": {"image": IMAGE, "label": LABEL},
}


@dataclass(frozen=True)
class _Problem:
    problem: str
    expected: str
    change: str


def check(task: Task, table: Table, split: SplitName) -> Table:
    """The table, if its columns are there and every value in them is what it has to be.

    Raises:
        DataError: they are not; names each column and the first rows.
    """
    fields = [(field, column) for field, columns in task.inputs.items() for column in columns]
    fields.append(("label", task.label))
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
    if not found and task.kind == "token-classification":
        found = _check_lengths(task, table)
    if found:
        raise DataError(
            f"{table.origin} has " + "; and ".join(problem.problem for problem in found),
            expected="; ".join(dict.fromkeys(problem.expected for problem in found)),
            change=", ".join(dict.fromkeys(problem.change for problem in found)),
        )
    return table


def _check_column(task: Task, table: Table, field: str, column: str) -> list[_Problem]:
    content = CONTENTS[task.kind][field]
    if field == "choices" and len(task.inputs[field]) == 1:
        content = CHOICES
    values = table.columns[column]
    # NaN, which a column of floats has where one is missing, is the one value that is not equal to itself.
    empty = [row for row, value in enumerate(values) if value is None or (isinstance(value, float) and value != value)]
    absent = set(empty)
    wrong = [row for row, value in enumerate(values) if row not in absent and not content.holds(value)]
    found = []
    if empty:
        found.append(
            _Problem(
                f"{len(empty)} of {len(values)} rows without a value in column {column!r}: {table.places(empty)}",
                f"a {content.name} in every row",
                f"those rows, or {_FLAGS[field]}",
            )
        )
    if wrong:
        found.append(
            _Problem(
                f"{_shown(values[wrong[0]])} in column {column!r}, which is no {content.name}: {table.places(wrong)}",
                content.name,
                _FLAGS[field],
            )
        )
    return found


def _check_lengths(task: Task, table: Table) -> list[_Problem]:
    pairs = list(zip(table.columns[task.inputs["text"][0]], table.columns[task.label], strict=True))
    uneven = [row for row, (words, tags) in enumerate(pairs) if len(words) != len(tags)]
    if not uneven:
        return []
    words, tags = pairs[uneven[0]]
    return [
        _Problem(
            f"{len(uneven)} rows with other numbers of words than of tags ({len(words)} and {len(tags)}): "
            + table.places(uneven),
            "a tag for each word",
            "those rows, or --label",
        )
    ]


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:79] + "…"


# Labels


def label_texts(task: Task, table: Table) -> list[list[str]]:
    """The names of each row's class or tags, which held-out rows must share with training. Without classes, none."""
    values = table.columns[task.label]
    if task.kind == "token-classification":
        return [[_label_text(tag) for tag in tags] for tags in values]
    if task.kind in ("classification", "image-classification"):
        return [[_label_text(value)] for value in values]
    return [[] for _ in values]


def has_classes(kind: Kind) -> bool:
    """Whether a task of the kind has classes or tags, one list of them for all rows."""
    return kind in ("classification", "token-classification", "image-classification")


def find_labels(task: Task, train: Table) -> tuple[str, ...]:
    """The task's classes or tags: those it declares, those the data declare, or those in the training rows, sorted.

    Raises:
        DataError: all rows have the same one.
        RecipeError: a metric does not suit them.
    """
    seen = {text for texts in label_texts(task, train) for text in texts}
    if len(seen) < 2:
        raise DataError(
            f"{train.origin} has the label {min(seen)!r} in column {task.label!r} for every row of the train split",
            expected="two classes or more",
            change="--data, or --label",
        )
    tagging = task.kind == "token-classification"
    labels = task.labels or train.classes.get(task.label) or (_sorted_tags(seen) if tagging else _sorted_names(seen))
    check_metrics(task.metrics, task.kind, num_classes=len(labels), tags=labels if tagging else None)
    return labels


def _label_text(value: Any) -> str:
    # A column of ids in which one was missing comes as floats.
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)


def _is_integer(text: str) -> bool:
    return re.fullmatch(r"-?[0-9]+", text) is not None


def _sorted_names(names: set[str]) -> tuple[str, ...]:
    if all(map(_is_integer, names)):
        return tuple(sorted(names, key=lambda name: (int(name), name)))
    return tuple(sorted(names))


def _sorted_tags(tags: set[str]) -> tuple[str, ...]:
    """O, and then B-LOC, I-LOC, B-PER, I-PER, …"""
    if all(map(_is_integer, tags)):
        return _sorted_names(tags)
    return tuple(sorted(tags, key=lambda tag: (tag != "O", tag.partition("-")[2], tag)))


# Datasets


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

    columns = _generation(task, table, grouped) if task.kind == "generation" else _BUILDERS[task.kind](task, table)
    features = Features({name: feature for name, (feature, _) in columns.items()})
    return Dataset.from_dict({name: list(values) for name, (_, values) in columns.items()}, features=features)


Columns = dict[str, tuple[Any, Sequence[Any]]]
"""Column -> its datasets feature and its values."""


def _texts(task: Task, table: Table) -> Columns:
    from datasets import Value

    return {field: (Value("string"), table.columns[columns[0]]) for field, columns in task.inputs.items()}


def _classification(task: Task, table: Table) -> Columns:
    from datasets import Value

    return {**_texts(task, table), "label": (Value("int64"), [ids[0] for ids in _label_ids(task, table)])}


def _regression(task: Task, table: Table) -> Columns:
    from datasets import Value

    return {**_texts(task, table), "label": (Value("float64"), read_numbers(table, task.label))}


def _token_classification(task: Task, table: Table) -> Columns:
    from datasets import List, Value

    words = table.columns[task.inputs["text"][0]]
    return {"words": (List(Value("string")), words), "tags": (List(Value("int64")), _label_ids(task, table))}


def _multiple_choice(task: Task, table: Table) -> Columns:
    from datasets import List, Value

    columns = [table.columns[column] for column in task.inputs["choices"]]
    choices = columns[0] if len(columns) == 1 else [list(row) for row in zip(*columns, strict=True)]
    return {
        "text": (Value("string"), table.columns[task.inputs["text"][0]]),
        "choices": (List(Value("string")), choices),
        "label": (Value("int64"), _choice_ids(task, table, [len(row) for row in choices])),
    }


def _generation(task: Task, table: Table, grouped: bool) -> Columns:
    from datasets import List, Value

    sources, targets = table.columns[task.inputs["text"][0]], table.columns[task.label]
    if not grouped:
        return {"text": (Value("string"), sources), "target": (Value("string"), targets)}
    references: dict[str, list[str]] = {}
    for source, target in zip(sources, targets, strict=True):
        references.setdefault(source, []).append(target)
    return {
        "text": (Value("string"), list(references)),
        "target": (Value("string"), [known[0] for known in references.values()]),
        "references": (List(Value("string")), list(references.values())),
    }


def _image_classification(task: Task, table: Table) -> Columns:
    from datasets import Image, Value

    return {
        "image": (Image(), table.columns[task.inputs["image"][0]]),
        "label": (Value("int64"), [ids[0] for ids in _label_ids(task, table)]),
    }


_BUILDERS: dict[Kind, Callable[[Task, Table], Columns]] = {
    "classification": _classification,
    "regression": _regression,
    "token-classification": _token_classification,
    "multiple-choice": _multiple_choice,
    "image-classification": _image_classification,
}


def _label_ids(task: Task, table: Table) -> list[list[int]]:
    """The ids of a label column that holds class names, or ids where the task says so or its layout may have them."""
    assert task.labels is not None
    texts = label_texts(task, table)
    ids = {name: i for i, name in enumerate(task.labels)}
    built_in = task.layout != "table" and not any(map(_is_integer, task.labels))
    if task.label_ids or (built_in and all(_is_integer(text) for row in texts for text in row)):
        ids = {str(i): i for i in range(len(task.labels))}
    unknown = [row for row, names in enumerate(texts) if not ids.keys() >= set(names)]
    if unknown:
        values = sorted({name for row in unknown for name in texts[row]} - ids.keys())
        raise DataError(
            f"{table.origin} has {len(unknown)} rows whose label in column {task.label!r} is none of the task's: "
            f"{', '.join(map(repr, values[:5]))} at {table.places(unknown)}",
            expected="a label of the training data: " + nearest(values[0], ids),
            change="those rows, --label, or the task's labels (and label_ids, where the column holds ids)",
        )
    return [[ids[name] for name in names] for names in texts]


def _choice_ids(task: Task, table: Table, counts: Sequence[int]) -> list[int]:
    """Which of a row's choices is the right one, from 0. `counts` is each row's number of choices."""
    texts = [_label_text(value) for value in table.columns[task.label]]
    names = task.labels or table.classes.get(task.label) or tuple(map(str, range(max(counts))))
    ids = {name: i for i, name in enumerate(names)}
    wrong = [row for row, count in enumerate(counts) if ids.get(texts[row], count) >= count]
    if wrong:
        values = sorted({texts[row] for row in wrong})
        raise DataError(
            f"{table.origin} has {len(wrong)} rows whose label in column {task.label!r} names none of their choices: "
            f"{', '.join(map(repr, values[:5]))} at {table.places(wrong)}",
            expected="the right choice's place, as " + ", ".join(names[: max(counts)]),
            change="those rows, --label, or the task's labels (1,2,3,4 where the column counts from 1; or A,B,C,D)",
        )
    found = [ids[text] for text in texts]
    if task.labels is None and table.classes.get(task.label) is None and 0 not in found and len(found) > 1:
        logger.warning(
            "%s never has the first choice (0) in column %r; if it counts from 1, give the task labels: 1,2,…",
            table.origin,
            task.label,
        )
    return found
