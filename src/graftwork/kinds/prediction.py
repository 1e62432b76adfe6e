"""Predictions, as users get them."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from graftwork.errors import AdapterError


@dataclass(frozen=True, kw_only=True)
class Span:
    """Consecutive words that form one entity.

    Attributes:
        type: the entity's type: the part of the tags after B- and I-.
        start: index of the first word.
        end: index after the last word.
        text: the words, joined by spaces.
    """

    type: str
    start: int
    end: int
    text: str


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """The prediction for one input. Fields that do not apply to the kind of task are None.

    Attributes:
        label: for classification, the class; for regression, the number; for multiple choice, the name of the choice,
            or its index from 0 if choices have no names.
        labels: for multi-label classification, the labels whose probability is at least their threshold.
        score: the probability of the class or choice.
        scores: the probability of every class, label or choice.
        choice: for multiple choice, the text of the choice.
        words: for token classification, the words.
        tags: for token classification, the tag of each word.
        spans: for token classification with tags such as B-PER, I-PER and O, the entities.
        generated: for generation, the generated text.
    """

    label: str | float | None = None
    labels: tuple[str, ...] | None = None
    score: float | None = None
    scores: dict[str, float] | None = None
    choice: str | None = None
    words: tuple[str, ...] | None = None
    tags: tuple[str, ...] | None = None
    spans: tuple[Span, ...] | None = None
    generated: str | None = None

    def as_dict(self) -> dict[str, Any]:
        """The fields that are not None, for JSON."""
        return {name: value for name, value in asdict(self).items() if value is not None}


def check_finite(scores: Tensor) -> None:
    """Refuse scores that are not finite.

    Raises:
        AdapterError: a score is NaN or infinite.
    """
    wrong = scores[~scores.isfinite()]
    if wrong.numel():
        raise AdapterError(
            f"a score is {wrong[0].item()}, not a finite number: the adapter's tensors contain NaN or infinity, or "
            "the backbone's states overflow its precision",
            expected="finite scores",
            change="the adapter, or --dtype float32",
        )


def widen(found: Mapping[int, Tensor]) -> Float[Tensor, "N C"]:
    """The logits of all rows as one tensor, in row order; -inf where a row has fewer than another."""
    rows = [found[place] for place in range(len(found))]
    return torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=-torch.inf)


def best(labels: Sequence[str], row: Sequence[float]) -> Prediction:
    """The most probable label, as a prediction."""
    found = max(range(len(row)), key=row.__getitem__)
    return Prediction(label=labels[found], score=row[found], scores=dict(zip(labels, row, strict=True)))
