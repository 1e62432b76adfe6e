"""From a task to its data: the splits, checked, with the columns that every later stage expects.

What is read is checked before anything is trained: columns, texts, labels and splits, each with its own error. A split
that the data lack is held out of the training rows by a seeded, stratified choice, the same for the same task each
time, so that an adapter can be evaluated later on the very rows that its training left out.
"""

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from graftwork.errors import DataError, nearest
from graftwork.tasks.metrics import check_metrics
from graftwork.tasks.reading import Table, open_splits
from graftwork.tasks.task import SplitName, Task

if TYPE_CHECKING:
    import datasets

logger = logging.getLogger(__name__)

_FLAGS = {"text": "--text", "text_pair": "--text-pair", "label": "--label"}


@dataclass(frozen=True)
class TaskData:
    """A task and its rows.

    Each dataset has the columns `text` (str), `text_pair` (str; only of a task on pairs) and `label` (the class's id,
    or a float for regression).

    Attributes:
        task: the task; of classification, with its labels known.
        train: the rows to train on.
        validation: the rows that choose the checkpoint.
        test: the rows that neither has seen, where there are any with labels.
    """

    task: Task
    train: "datasets.Dataset"
    validation: "datasets.Dataset"
    test: "datasets.Dataset | None"


def load(task: Task, *, test: bool = True) -> TaskData:
    """Reads and checks a task's data.

    Args:
        task: the task.
        test: whether the test split is wanted; where it is not, a test file may lack labels. The other splits are the
            same either way.

    Raises:
        DataError: data, columns, texts, labels or splits are missing or malformed.
        RecipeError: a metric does not suit the number of classes.
    """
    tables = _read(task, ("train", "validation", "test") if test else ("train", "validation"))
    for split in ("train", "validation"):
        if split not in tables:
            raise _no_split(task, split, tables)
    if task.kind == "classification":
        train = tables["train"]
        seen = {_label_text(value) for value in train.columns[task.label]}
        if len(seen) < 2:
            raise DataError(
                f"{train.origin} has the label {min(seen)!r} in column {task.label!r} for every row of the train split",
                expected="two classes or more",
                change="--data, or --label",
            )
        labels = task.labels or train.classes.get(task.label) or _sorted_names(seen)
        check_metrics(task.metrics, task.kind, len(labels))
        task = task.model_copy(update={"labels": labels})
    built = {split: _build(task, table) for split, table in tables.items()}
    return TaskData(task, built["train"], built["validation"], built.get("test"))


def load_split(task: Task, split: SplitName) -> "datasets.Dataset":
    """One split, the same rows as `load` gives, without the others being read where that can be.

    Args:
        task: the task. With `labels`, as a trained adapter's task has, class ids follow them; otherwise they are found
            as `load` finds them, for which the training split is read.
        split: which.

    Raises:
        DataError: as `load`; or there is no such split with labels.
    """
    if task.kind == "classification" and task.labels is None:
        data = load(task, test=split == "test")
        dataset = {"train": data.train, "validation": data.validation, "test": data.test}[split]
        if dataset is None:
            raise _no_split(task, split, ("train", "validation"))
        return dataset
    tables = _read(task, (split,))
    if split not in tables:
        raise _no_split(task, split, tables)
    return _build(task, tables[split])


def _no_split(task: Task, split: str, found: Sequence[str] | Mapping[SplitName, Table]) -> DataError:
    there = f" (only {', '.join(found)})" if found else ""
    fraction = f", or {split}_fraction, to hold some training rows out" if split != "train" else ""
    return DataError(
        f"task {task.name} has no labelled {split} split in {task.data or 'its data'}{there}",
        expected=f"a labelled {split} split",
        change=f"--data, or the task's splits.{split}{fraction}",
    )


def _read(task: Task, wanted: Sequence[SplitName]) -> dict[SplitName, Table]:
    """The wanted splits that there are, checked: those the data have, and those held out of the training rows."""
    source = open_splits(task)
    tables: dict[SplitName, Table] = {}
    for split in wanted:
        if split == "train" or split not in source:
            continue
        table = source[split]()
        if split == "test" and _unlabelled(task, table):
            level = logging.INFO if task.layout == "glue" else logging.WARNING
            logger.log(level, "%s has no labels in column %r, so it is no test split", table.origin, task.label)
        else:
            tables[split] = _checked(task, table, split)
    fractions: dict[SplitName, float] = {"test": task.test_fraction, "validation": task.validation_fraction}
    held_out: dict[SplitName, float] = {
        split: fraction for split, fraction in fractions.items() if fraction and split not in source
    }
    if "train" in source and ("train" in wanted or held_out.keys() & set(wanted)):
        train = _checked(task, source["train"](), "train")
        tables |= {split: table for split, table in _hold_out(task, train, held_out).items() if split in wanted}
    return {split: tables[split] for split in wanted if split in tables}


def _unlabelled(task: Task, table: Table) -> bool:
    """Whether there are rows but no label at all: no such column, or nothing in it.

    GLUE's test splits on the hub have -1 in the place of every label, which of a class column is read as None.
    """
    return len(table) > 0 and all(value is None or value == -1 for value in table.columns.get(task.label, ()))


def _checked(task: Task, table: Table, split: SplitName) -> Table:
    """The table, if its columns are there and no text or label is missing."""
    fields = {"text": task.text, "text_pair": task.text_pair, "label": task.label}
    needed = {field: column for field, column in fields.items() if column is not None}
    missing = {field: column for field, column in needed.items() if column not in table.names}
    if missing:
        raise DataError(
            f"{table.origin} has no column {', '.join(map(repr, missing.values()))}",
            expected="; ".join(f"{_FLAGS[field]} {nearest(name, table.names)}" for field, name in missing.items()),
            change=", ".join(_FLAGS[field] for field in missing),
        )
    if not len(table):
        raise DataError(f"{table.origin} has no rows", expected=f"rows in the {split} split", change="--data")
    for field, column in needed.items():
        values = table.columns[column]
        empty = [row for row, value in enumerate(values) if value is None or value != value]
        if empty:
            raise DataError(
                f"{table.origin} has {len(empty)} of {len(values)} rows without a value in column {column!r}: "
                + table.places(empty),
                expected=f"a {'label' if field == 'label' else 'text'} in every row",
                change=f"those rows, or {_FLAGS[field]}",
            )
        wrong = [row for row, value in enumerate(values) if field != "label" and not isinstance(value, str)]
        if wrong:
            raise DataError(
                f"{table.origin} has {values[wrong[0]]!r} in column {column!r}, which is no text: "
                + table.places(wrong),
                expected="text",
                change=_FLAGS[field],
            )
    return table


def _hold_out(task: Task, train: Table, fractions: Mapping[SplitName, float]) -> dict[SplitName, Table]:
    """The training table less the held-out rows, and these.

    The choice is by systematic sampling: rows in random order within their class, classes one after the other, and
    every k-th row of that list is taken. So each class is held out in proportion, whatever its size. The first row of
    each class is never taken: what is held out must have been seen in training.
    """
    import numpy as np

    texts = [_label_text(value) for value in train.columns[task.label]] if task.kind == "classification" else []
    # RandomState's streams are frozen, those of numpy's newer generators are not: the split must outlast an upgrade.
    random = np.random.RandomState(task.split_seed)
    remaining = np.arange(len(train))
    tables: dict[SplitName, Table] = {}
    for split, fraction in fractions.items():
        order = remaining[random.permutation(len(remaining))]
        groups: dict[str, list[int]] = {}
        for row in order.tolist():
            groups.setdefault(texts[row] if texts else "", []).append(row)
        spare = [row for _, group in sorted(groups.items()) for row in group[1:]]
        count = max(1, round(fraction * len(train)))
        if count > len(spare):
            raise DataError(
                f"{train.origin} has {len(train)} rows, too few to hold {count} out for {split}",
                expected="more rows, and in training at least one of each class",
                change=f"{split}_fraction, or give a {split} split of its own",
            )
        taken = [spare[(2 * i + 1) * len(spare) // (2 * count)] for i in range(count)]
        tables[split] = train.select(sorted(taken))
        remaining = np.setdiff1d(remaining, taken)
    return {"train": train.select(remaining.tolist()) if fractions else train, **tables}


def _label_text(value: Any) -> str:
    # A column of ids in which one was missing comes as floats.
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)


def _is_integer(text: str) -> bool:
    return text.removeprefix("-").isdecimal()


def _sorted_names(names: set[str]) -> tuple[str, ...]:
    if all(map(_is_integer, names)):
        return tuple(sorted(names, key=lambda name: (int(name), name)))
    return tuple(sorted(names))


def _build(task: Task, table: Table) -> "datasets.Dataset":
    from datasets import Dataset, Features, Value

    columns: dict[str, Any] = {"text": table.columns[task.text]}
    if task.text_pair is not None:
        columns["text_pair"] = table.columns[task.text_pair]
    columns["label"] = _class_ids(task, table) if task.kind == "classification" else _numbers(task, table)
    types = {"label": Value("int64" if task.kind == "classification" else "float64")}
    features = Features({name: types.get(name, Value("string")) for name in columns})
    return Dataset.from_dict({name: list(values) for name, values in columns.items()}, features=features)


def _class_ids(task: Task, table: Table) -> list[int]:
    """The ids of a label column that holds class names, or ids where the task says so or its layout may have them."""
    assert task.labels is not None
    texts = [_label_text(value) for value in table.columns[task.label]]
    ids = {name: i for i, name in enumerate(task.labels)}
    built_in = task.layout != "table" and not any(map(_is_integer, task.labels))
    if task.label_ids or (built_in and all(map(_is_integer, texts))):
        ids = {str(i): i for i in range(len(task.labels))}
    unknown = [row for row, text in enumerate(texts) if text not in ids]
    if unknown:
        values = sorted({texts[row] for row in unknown})
        raise DataError(
            f"{table.origin} has {len(unknown)} rows whose label in column {task.label!r} is none of the task's: "
            f"{', '.join(map(repr, values[:5]))} at {table.places(unknown)}",
            expected="a label of the training data: " + nearest(values[0], ids),
            change="those rows, --label, or the task's labels (and label_ids, where the column holds ids)",
        )
    return [ids[text] for text in texts]


def _numbers(task: Task, table: Table) -> list[float]:
    numbers = [_number(value) for value in table.columns[task.label]]
    bad = [row for row, number in enumerate(numbers) if not math.isfinite(number)]
    if bad:
        raise DataError(
            f"{table.origin} has {table.columns[task.label][bad[0]]!r} in column {task.label!r}, which is no finite "
            f"number: {table.places(bad)}",
            expected="a finite number in every row",
            change="those rows, --label, or --kind classification",
        )
    return numbers


def _number(value: Any) -> float:
    try:
        return math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError):
        return math.nan
