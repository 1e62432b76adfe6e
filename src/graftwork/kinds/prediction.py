"""What a model says of an input, as users get it."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from graftwork.errors import AdapterError


@dataclass(frozen=True, kw_only=True)
class Span:
    """Words that tags mark as one.

    Attributes:
        type: what they are marked as, the tags' text after B- and I-.
        start, end: the places of its first word and of the one after its last.
        text: its words, with spaces between them.
    """

    type: str
    start: int
    end: int
    text: str


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """What an adapter says of one input. What does not apply to the kind of task is None.

    Attributes:
        label: the class; the number, for regression; of a multiple choice, the name of the choice, which is its place
            from 0 where the task names none.
        labels: where an input may have several, those that it has.
        score: the probability of the class or choice.
        scores: every class's or choice's probability.
        choice: the chosen text.
        words, tags: of token classification, the words and the tag of each.
        spans: what the tags mark, where they mark spans (B-PER, I-PER, O).
        generated: the generated text.
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
        """For JSON: without what does not apply."""
        return {name: value for name, value in asdict(self).items() if value is not None}


def check_finite(scores: Tensor) -> None:
    """Refuse scores of which nothing could be said, and that no JSON can hold.

    Raises:
        AdapterError: one is NaN or infinite.
    """
    wrong = scores[~scores.isfinite()]
    if wrong.numel():
        raise AdapterError(
            f"a score is {wrong[0].item()}, which is no finite number: the adapter's tensors have such numbers, or the "
            "backbone's precision does not hold its states",
            expected="finite scores",
            change="the adapter, or --dtype float32",
        )


def widen(found: Mapping[int, Tensor]) -> Float[Tensor, "N C"]:
    """The rows' logits as one tensor, in the order of their places; -inf where a row has fewer than another."""
    rows = [found[place] for place in range(len(found))]
    return torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=-torch.inf)


def best(labels: Sequence[str], row: Sequence[float]) -> Prediction:
    """The likeliest of labels, by their probabilities."""
    found = max(range(len(row)), key=row.__getitem__)
    return Prediction(label=labels[found], score=row[found], scores=dict(zip(labels, row, strict=True)))
