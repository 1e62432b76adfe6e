"""What every teacher says of inputs: logits, and vectors.

Notation: N inputs, T tokens and W words of an input, C outputs, d width.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from graftwork.encoding import ABSENT
from graftwork.errors import RecipeError
from graftwork.heads import Head

BATCH = 64
"""Inputs in one pass. It is the same in every run, because rounding depends on it."""

Advance = Callable[[int], None]
"""Told how many inputs more are done."""


class Teacher(ABC):
    """What teaches.

    Args:
        folder: where it is, for messages.
        labels: the names of its outputs, in their order; None: they are numbers.
        width: of its vectors.
    """

    def __init__(self, folder: str, labels: tuple[str, ...] | None, width: int) -> None:
        self.folder, self.labels, self.width = folder, labels, width

    @abstractmethod
    def logits(self, inputs: Sequence[Any], advance: Advance) -> list[Tensor]:
        """Of each input (1, C) float32; of words (W, C), NaN for those that it was not given."""

    @abstractmethod
    def vectors(self, inputs: Sequence[Any], head: Head, advance: Advance) -> list[Tensor]:
        """Of each input (1, d) float32, pooled as a head does that `check_vectors` has let pass; of words (W, d), the
        last states at their first pieces, NaN for those that it was not given."""

    @abstractmethod
    def check_vectors(self, head: Head) -> None:
        """Refuse a head that pools as this one cannot.

        Raises:
            RecipeError: it does not pool in that way.
            BackboneError: its backbone has not the layer that the head pools by.
        """

    def order(self, labels: Sequence[str] | None) -> list[int] | None:
        """Where its outputs stand for a task's labels; None: in their place.

        Raises:
            RecipeError: its labels are others.
        """
        if labels is None or self.labels is None:
            return None
        differences = other_labels(self.labels, labels)
        if differences:
            raise RecipeError(
                f"teacher {self.folder!r} has other labels than the task: {differences}",
                expected=f"the labels {', '.join(map(repr, labels))}, in any order (id2label in its config.json)",
                change="--teacher, or the task's labels",
            )
        order = [self.labels.index(label) for label in labels]
        return None if order == sorted(order) else order


def other_labels(known: Sequence[str], wanted: Sequence[str]) -> str:
    """How the labels of an adapter or model differ from those of a task, in whatever order; empty: they do not."""
    missing = [label for label in wanted if label not in known]
    unknown = [label for label in known if label not in wanted]
    parts = [
        *([f"it lacks {', '.join(map(repr, missing[:5]))}"] if missing else []),
        *([f"it has {', '.join(map(repr, unknown[:5]))} in addition"] if unknown else []),
    ]
    return " and ".join(parts)


def of_words(said: Tensor, places: Sequence[int]) -> Tensor:
    """(W, n) of (T, n): what is said of each word's first piece; NaN where there is none."""
    found = said.new_full((len(places), said.shape[-1]), torch.nan)
    for word, place in enumerate(places):
        if place != ABSENT:
            found[word] = said[place]
    return found
