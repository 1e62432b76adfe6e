"""From a task to its data: the splits, checked, with the columns that every later stage expects.

What is read is checked before anything is trained: columns, inputs, labels and splits, each with its own error. A split
that the data lack is held out of the training rows by a seeded choice (`graftwork.tasks.splitting`), the same for
the same task each time, so that an adapter can be evaluated later on the very rows that its training left out.
"""

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, Any, get_args

from graftwork.data.table import SplitName, Splits, Table
from graftwork.errors import DataError
from graftwork.kinds import KINDS
from graftwork.kinds.scoring import check_metrics
from graftwork.tasks.columns import build, check, find_labels
from graftwork.tasks.reading import open_splits
from graftwork.tasks.splitting import hold_out, limit
from graftwork.tasks.task import Task

if TYPE_CHECKING:
    import datasets

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class TaskData:
    """A task and its rows.

    The columns of each dataset depend on the kind of task, not on the columns of the data: see `graftwork.kinds`.

    Attributes:
        task: the task; where it has classes or tags, with its labels known.
        train: the rows to train on.
        validation: the rows that choose the checkpoint.
        test: the rows that neither has seen, where there are any with labels.
        labelled: whether the labels are the data's own, and not what a `Labeller` took for them.
        dropped: of each split that the data have, reason -> the numbers of the rows that were left out for it.
    """

    task: Task
    train: "datasets.Dataset"
    validation: "datasets.Dataset"
    test: "datasets.Dataset | None"
    labelled: bool = True
    dropped: Mapping[SplitName, Mapping[str, Sequence[int | str]]] = field(default_factory=dict)


@dataclass(frozen=True)
class Labeller:
    """Labels for data that have none.

    Attributes:
        labels: the task's, unless it names some; None: they are numbers.
        label: says the labels of inputs, as tables have them.
    """

    labels: tuple[str, ...] | None
    label: Callable[[Sequence[Any]], list[Any]]


def load(task: Task, *, test: bool = True, labeller: Labeller | None = None) -> TaskData:
    """Read and check the data of a task.

    Args:
        task: the task.
        test: whether to read the test split. If not, a test file may lack labels. The other splits do not depend on it.
        labeller: labels the rows of data whose training split has no column `label`, where the task names no other one.

    Raises:
        DataError: data, columns, texts, labels or splits are missing or malformed.
        RecipeError: a metric does not suit the number of classes.
    """
    with _saying_where(task):
        return _load(task, test=test, labeller=labeller)


def _load(task: Task, *, test: bool, labeller: Labeller | None) -> TaskData:
    source = open_splits(task)
    labelled = labeller is None or "train" not in source or _has_labels(task, source["train"]())
    if labeller is not None and not labelled:
        task = task.model_copy(update={"labels": task.labels or labeller.labels})
        source = {split: partial(_labelled, task, read, split, labeller) for split, read in source.items()}
    dropped: dict[SplitName, Mapping[str, Sequence[int | str]]] = {}
    source = {split: partial(_noted, read, split, dropped) for split, read in source.items()}
    tables = _read(task, ("train", "validation", "test") if test else ("train", "validation"), source)
    for split in ("train", "validation"):
        if split not in tables:
            raise _no_split(task, split, tables)
    if KINDS[task.kind].named:
        # A labeller may give all rows one label: what is learnt of it is more than that.
        labels = find_labels(task, tables["train"]) if labelled else task.labels
        check_metrics(task.metrics, task.kind, labels)
        task = task.model_copy(update={"labels": labels})
    built = {split: build(task, table, grouped=split != "train") for split, table in tables.items()}
    return TaskData(task, built["train"], built["validation"], built.get("test"), labelled, dropped)


def load_split(task: Task, split: SplitName, *, grouped: bool | None = None) -> "datasets.Dataset":
    """Read one split, with the same rows as `load`, and without reading the other splits if possible.

    Args:
        task: the task. Its `labels`, if any, determine the class ids, as for the task of an adapter. Otherwise the
            training split is read to find them.
        split: the split.
        grouped: for generation, whether all targets of a source are one row, as `references`. None: for validation and
            test.

    Raises:
        DataError: as `load`; or there is no such split with labels.
    """
    if split not in get_args(SplitName):
        raise DataError(f"unknown split {split!r}", expected=", ".join(get_args(SplitName)), change="--split")
    if KINDS[task.kind].named and task.labels is None:
        data = load(task, test=split == "test")
        dataset = {"train": data.train, "validation": data.validation, "test": data.test}[split]
        if dataset is None:
            raise _no_split(task, split, ("train", "validation"))
        return dataset
    with _saying_where(task):
        tables = _read(task, (split,), open_splits(task))
        if split not in tables:
            raise _no_split(task, split, tables)
        return build(task, tables[split], grouped=split != "train" if grouped is None else grouped)


@contextmanager
def _saying_where(task: Task) -> Iterator[None]:
    """Errors say where the data can be had, if the task does."""
    try:
        yield
    except DataError as error:
        if task.homepage is None or task.homepage in str(error):
            raise
        change = f"{error.change}; the data can be had from {task.homepage}".removeprefix("; ")
        raise DataError(error.problem, expected=error.expected, change=change) from error.__cause__


def _noted(
    read: Callable[[], Table], split: SplitName, dropped: dict[SplitName, Mapping[str, Sequence[int | str]]]
) -> Table:
    """A split; which of its rows were left out is noted."""
    table = read()
    if table.dropped:
        dropped[split] = table.dropped
    return table


def _no_split(task: Task, split: str, found: Sequence[str] | Mapping[SplitName, Table]) -> DataError:
    there = f" (only {', '.join(found)})" if found else ""
    fraction = f", or {split}_fraction, to hold some training rows out" if split != "train" else ""
    return DataError(
        f"task {task.name} has no labelled {split} split in {task.data or 'its data'}{there}",
        expected=f"a labelled {split} split",
        change=f"--data, or the task's splits.{split}{fraction}",
    )


def _has_labels(task: Task, table: Table) -> bool:
    """Whether there are labels, or ought to be: a column that was named may be misspelt."""
    named = task.label != Task.model_fields["label"].default
    return named or task.label in table.names


def _labelled(task: Task, read: Callable[[], Table], split: SplitName, labeller: Labeller) -> Table:
    """A split, with labels that are said of its inputs where it has none of its own."""
    table = read()
    if _has_labels(task, table):
        return table
    check(task, table, split, labels=False)
    columns = [table.columns[column] for own in task.inputs.values() for column in own]
    inputs = columns[0] if len(columns) == 1 else list(zip(*columns, strict=True))
    labels = labeller.label(inputs)
    return replace(table, names=(*table.names, task.label), columns={**table.columns, task.label: labels})


def _read(task: Task, wanted: Sequence[SplitName], source: Splits) -> dict[SplitName, Table]:
    """The wanted splits that there are, checked: those the data have, and those held out of the training rows."""
    tables: dict[SplitName, Table] = {}
    for split in wanted:
        if split == "train" or split not in source:
            continue
        table = source[split]()
        if split == "test" and _unlabelled(task, table):
            level = logging.INFO if task.layout == "glue" else logging.WARNING
            logger.log(
                level, "%s has no labels in column %r, so it is not used as a test split", table.origin, task.label
            )
        else:
            tables[split] = check(task, KINDS[task.kind].gathered(task.label, table), split)
    fractions: dict[SplitName, float] = {"test": task.test_fraction, "validation": task.validation_fraction}
    held_out: dict[SplitName, float] = {
        split: fraction for split, fraction in fractions.items() if fraction and split not in source
    }
    if "train" in source and ("train" in wanted or held_out.keys() & set(wanted)):
        train = check(task, KINDS[task.kind].gathered(task.label, source["train"]()), "train")
        tables |= {split: table for split, table in hold_out(task, train, held_out).items() if split in wanted}
    return {split: limit(task, tables[split], split) for split in wanted if split in tables}


def _unlabelled(task: Task, table: Table) -> bool:
    """Whether there are rows but no label at all: no such column, or nothing in it.

    Test splits on the hub have -1 in the place of every label, which of a class column is read as None, or an empty
    text or list. A column of 0 and 1 may have it as text.
    """
    columns = KINDS[task.kind].label_columns(task.label)
    nothing: list[Any] = [None, -1, "", [], *(["-1"] if len(columns) > 1 else [])]
    names = (task.label,) if task.label in table.names else columns
    return len(table) > 0 and all(value in nothing for name in names for value in table.columns.get(name, ()))
