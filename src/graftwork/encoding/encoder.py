"""What encoders have in common.

Notation: B rows, C choices of a row, T tokens.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from graftwork.backbones import Backbone
from graftwork.encoding.identity import TaskIdentity
from graftwork.encoding.tokens import Row
from graftwork.settings.checked import require_count

Text = str | tuple[str, str]
"""One text, or a pair of texts for a task over pairs."""

Words = str | Sequence[str]
"""The words of a sentence; or the sentence, which is then split at white space."""

Question = tuple[str, Sequence[str]] | Mapping[str, Any]
"""A question and its choices; or both by name: `text` and `choices`."""

Picture = str | Path | Image.Image
"""An image, or the file that holds one."""

Input = Text | Words | Question | Picture
"""What is asked about, by the kind of task."""

LABELLED = 256
"""Rows whose labels are read at once."""

Rows = Sequence[Any]
"""Rows, of which those of images are made when they are asked for."""


class Encoder(ABC):
    """How the inputs of one adapter's task are read.

    Args:
        backbone: whose tokenizer or image processor is used.
        task: the lengths at which texts are cut, and what else the adapter was taught with.
        prompt_tokens: how many positions the adapter's method takes from a text.
    """

    def __init__(self, backbone: Backbone, task: TaskIdentity, *, prompt_tokens: int = 0) -> None:
        self.backbone = backbone
        self.task = task
        self.prompt_tokens = prompt_tokens

    @abstractmethod
    def encode(self, inputs: Sequence[Any], labels: Sequence[Any] | None = None) -> Rows:
        """Rows for the backbone, unpadded, in the order of the inputs.

        Args:
            inputs: what the kind of task takes.
            labels: one for each, as `TaskData` has them; of generation, the targets.

        Raises:
            DataError: an input is not what the kind of task takes.
        """

    @abstractmethod
    def collate(self, rows: Sequence[Row]) -> dict[str, Tensor]:
        """One batch of rows, padded to the longest of them, as `AdaptedModel.forward` takes it."""

    def labels(self, rows: Rows) -> Iterator[dict[str, Tensor]]:
        """The `labels` of all rows, and their `targets` where they have some, in batches as `collate` makes them."""
        for start in range(0, len(rows), LABELLED):
            batch = self.collate(rows[start : start + LABELLED])
            yield {name: tensor for name, tensor in batch.items() if name in ("labels", "targets")}

    def lengths(self, rows: Rows) -> list[int]:
        """How long each row is; rows of like length are put together."""
        return [len(row["input_ids"]) for row in rows]

    def batches(self, rows: Rows, batch_size: int) -> Iterator[tuple[list[int], dict[str, Tensor]]]:
        """All rows, those of like length together, each batch with the places of its rows.

        The longest come first, so that what does not fit into memory fails at once.

        Raises:
            RecipeError: a batch size that is no whole number of 1 or more.
        """
        require_count("batch size", batch_size)
        lengths = self.lengths(rows)
        by_length = sorted(range(len(rows)), key=lambda i: -lengths[i])
        for start in range(0, len(rows), batch_size):
            places = by_length[start : start + batch_size]
            batch = self.collate([rows[i] for i in places])
            yield places, {name: value.to(self.backbone.device) for name, value in batch.items()}

    @property
    def positions(self) -> int | None:
        """Tokens of the longest text for which the backbone has positions beside the adapter's prompt; None when any
        length will do.
        """
        longest = self.backbone.max_length
        return longest if longest is None else longest - self.prompt_tokens

    @property
    def max_length(self) -> int:
        """At how many tokens a text is cut: as the adapter was taught, or where positions end."""
        return self.task.max_length if self.positions is None else min(self.task.max_length, self.positions)

    @cached_property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The backbone's, with the adapter's own tokens in addition.

        Raises:
            BackboneError: it has none.
        """
        return self.backbone.require_tokenizer(self.task.added_tokens)


def without_labels(rows: Sequence[Row]) -> list[Row]:
    """What of rows a tokenizer pads."""
    return [{name: value for name, value in row.items() if name != "labels"} for row in rows]


def with_labels(batch: dict[str, Tensor], rows: Sequence[Row]) -> dict[str, Tensor]:
    """A batch with what its rows have for labels, if they have any."""
    return {**batch, "labels": torch.tensor([row["labels"] for row in rows])} if "labels" in rows[0] else batch


def shortened(given: Any) -> str:
    """An input as an error shows it."""
    text = repr(given)
    return text if len(text) <= 80 else text[:79] + "…"
