"""Kinds of task, one file each: its columns, encoding, head, metrics, and how its answers are read and shown.

`KINDS` is the table by name; a new kind is a file and a line here. A kind is imported when it is first asked for.
"""

from collections.abc import Iterator, Mapping
from importlib import import_module
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from graftwork.kinds.kind import Kind

CLASSES = {
    "classification": "classification.Classification",
    "regression": "regression.Regression",
    "token-classification": "token_classification.TokenClassification",
    "multiple-choice": "multiple_choice.MultipleChoice",
    "generation": "generation.Generation",
    "image-classification": "image_classification.ImageClassification",
    "multi-label-classification": "multi_label.MultiLabelClassification",
}
"""Kind -> its module here, and its class."""

INNER_CLASSES = {"several-tasks": "several_tasks.SeveralTasks"}
"""The same of kinds that no user declares; they are in `KINDS` for who asks by name, and are not listed."""

if TYPE_CHECKING:
    KindName = str
    """The name of a kind of task: a key of `KINDS`."""
    AnyKindName = str
    """The same, or the name of an inner one."""
else:
    KindName = Literal[tuple(CLASSES)]
    AnyKindName = Literal[(*CLASSES, *INNER_CLASSES)]


class Kinds(Mapping[str, "Kind"]):
    """Kinds of task by name, each imported when it is first used."""

    def __init__(self) -> None:
        self._made: dict[str, Kind] = {}

    def __getitem__(self, name: str) -> "Kind":
        if name not in self._made:
            module, _, own = {**CLASSES, **INNER_CLASSES}[name].partition(".")
            self._made[name] = getattr(import_module(f"graftwork.kinds.{module}"), own)()
        return self._made[name]

    def __iter__(self) -> Iterator[str]:
        return iter(CLASSES)

    def __len__(self) -> int:
        return len(CLASSES)


KINDS = Kinds()
"""Kinds of task by name."""

DEFAULT_KIND = next(iter(CLASSES))
"""The default kind of task."""


def default_kind(num_labels: int) -> str:
    """The default kind of task for a number of labels: regression for a single one, as in transformers.

    Args:
        num_labels: the number of labels.
    """
    return DEFAULT_KIND if num_labels > 1 else next(n for n, kind in KINDS.items() if kind.problem_type == "regression")


__all__ = ["DEFAULT_KIND", "KINDS", "KindName", "Kinds", "default_kind"]
