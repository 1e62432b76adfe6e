"""What a task's data are like: rows, labels and lengths of each split, some examples, and which rows were left out."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from graftwork.data.table import SplitName
from graftwork.kinds import KINDS
from graftwork.tasks.builtin import find_task
from graftwork.tasks.data import TaskData, load
from graftwork.tasks.task import Task

if TYPE_CHECKING:
    import datasets
    from transformers import PreTrainedTokenizerBase

AT_ONCE = 10_000
"""Texts that are tokenized at once."""

FIRST = 20
"""Of rows that are left out, how many are named in JSON."""


@dataclass(frozen=True)
class Lengths:
    """How many tokens texts have, with those that begin and end them.

    Attributes:
        median, percentile_95, longest: numbers of tokens; of the percentile, the least that 95 % of the texts do not
            exceed.
    """

    median: float
    percentile_95: int
    longest: int


@dataclass(frozen=True, kw_only=True)
class SplitSummary:
    """One split.

    Attributes:
        rows: number of rows; of generation, of sources in held-out splits.
        labels: label -> number of rows that have it (of tags, of words), the task's labels in their order. Empty
            without classes.
        numbers: least, mean and greatest label, where labels are numbers.
        lengths: of the inputs; None without a tokenizer, or where they are no texts.
        targets: of the target texts, where there are some.
    """

    rows: int
    labels: Mapping[str, int]
    numbers: tuple[float, float, float] | None
    lengths: Lengths | None
    targets: Lengths | None


@dataclass(frozen=True, kw_only=True)
class TaskSummary:
    """A task and what its data are like.

    Attributes:
        task: the task, with its labels known.
        splits: what each split has.
        examples: rows of the training split, at even distances: the input, and its label. Of an image, its size.
        dropped: of each split that the data have, reason -> the numbers of the rows that were left out for it.
        tokenizer: the backbone in whose tokens lengths are counted.
    """

    task: Task
    splits: Mapping[SplitName, SplitSummary]
    examples: Sequence[tuple[Any, Any]]
    dropped: Mapping[SplitName, Mapping[str, Sequence[int | str]]]
    tokenizer: str | None

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "task": self.task.model_dump(mode="json", exclude_none=True),
            "splits": {name: asdict(split) for name, split in self.splits.items()},
            "examples": [{"input": given, "label": label} for given, label in self.examples],
            "dropped": {
                split: {reason: {"rows": len(rows), "first": list(rows[:FIRST])} for reason, rows in reasons.items()}
                for split, reasons in self.dropped.items()
            },
            "tokenizer": self.tokenizer,
        }


def summarize(
    task: str | Task, *, data: str | None = None, backbone: str | None = None, examples: int = 5
) -> TaskSummary:
    """Read a task's data and say what they are like.

    Args:
        task: a task, the name of a built-in one, or the path of a task file.
        data: a file, a folder or a hub id in the place of the task's own.
        backbone: as for `Backbone.load`: lengths are counted in tokens of its tokenizer, and no weights are loaded.
            None: lengths are not counted.
        examples: number of examples.

    Raises:
        RecipeError: the task is unknown.
        DataError: as `load`.
        BackboneError: the backbone is unknown, or has no tokenizer.
    """
    found = task if isinstance(task, Task) else find_task(task)
    if data is not None:
        found = found.override(data=data)
    loaded = load(found)
    tokenizer = None if backbone is None else _tokenizer(backbone)
    splits: dict[SplitName, datasets.Dataset | None] = {
        "train": loaded.train,
        "validation": loaded.validation,
        "test": loaded.test,
    }
    return TaskSummary(
        task=loaded.task,
        splits={name: _of_split(loaded.task, rows, tokenizer) for name, rows in splits.items() if rows is not None},
        examples=_examples(loaded, examples),
        dropped=loaded.dropped,
        tokenizer=backbone,
    )


def _tokenizer(backbone: str) -> "PreTrainedTokenizerBase":
    from graftwork.backbones.loading import load_tokenizer

    return load_tokenizer(backbone)


def _of_split(task: Task, rows: "datasets.Dataset", tokenizer: "PreTrainedTokenizerBase | None") -> SplitSummary:
    kind = KINDS[task.kind]
    labels = kind.labels_of(rows)
    counts = Counter(name for label in labels for name in kind.named_labels(label, task.labels or ()))
    numbers = [float(label) for label in labels] if labels and isinstance(labels[0], float) else []
    return SplitSummary(
        rows=len(rows),
        labels={name: counts[name] for name in task.labels or () if counts} | counts,
        numbers=(min(numbers), sum(numbers) / len(numbers), max(numbers)) if numbers else None,
        lengths=_lengths(kind.inputs_of(rows), tokenizer),
        targets=_lengths(labels, tokenizer) if kind.generates else None,
    )


def _examples(loaded: TaskData, count: int) -> list[tuple[Any, Any]]:
    kind, rows = KINDS[loaded.task.kind], loaded.train
    places = sorted({i * len(rows) // count for i in range(count)}) if count else []
    chosen = rows.select(places)
    return [
        (_readable(given), _shown(kind.named_labels(label, loaded.task.labels or ()), label))
        for given, label in zip(kind.inputs_of(chosen), kind.labels_of(chosen), strict=True)
    ]


def _readable(given: Any) -> Any:
    """An input as JSON can hold it."""
    if isinstance(given, str | tuple | list):
        return given
    return f"image of {given.width} × {given.height} pixels"


def _shown(names: list[str], label: Any) -> Any:
    """A label as readers know it: one name, several, or what it is."""
    if isinstance(label, list):
        return names
    return names[0] if names else label


def _lengths(inputs: Sequence[Any], tokenizer: "PreTrainedTokenizerBase | None") -> Lengths | None:
    """How long inputs are; of a question, with the longest of its choices."""
    if tokenizer is None or not inputs or not isinstance(inputs[0], str | tuple | list):
        return None
    import numpy as np

    counts: list[int] = []
    for start in range(0, len(inputs), AT_ONCE):
        counts += _counted(list(inputs[start : start + AT_ONCE]), tokenizer)
    return Lengths(float(np.median(counts)), int(np.percentile(counts, 95, method="inverted_cdf")), max(counts))


def _counted(inputs: list[Any], tokenizer: "PreTrainedTokenizerBase") -> list[int]:
    first = inputs[0]
    if isinstance(first, list):
        encoded = tokenizer(inputs, is_split_into_words=True, verbose=False)
        return [len(ids) for ids in encoded["input_ids"]]
    if isinstance(first, str):
        return [len(ids) for ids in tokenizer(inputs, verbose=False)["input_ids"]]
    if isinstance(first[1], str):
        one, other = zip(*inputs, strict=True)
        return [len(ids) for ids in tokenizer(list(one), list(other), verbose=False)["input_ids"]]
    pairs = [(question, choice) for question, choices in inputs for choice in choices]
    sizes = iter(_counted(pairs, tokenizer))
    return [max(next(sizes) for _ in choices) for _, choices in inputs]
