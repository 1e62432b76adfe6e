"""What stands after a forward pass: what outputs mean, by an adapter's labels."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from graftwork.adapters import Adapter
from graftwork.encoding import ABSENT, Row
from graftwork.errors import AdapterError

OUTSIDE = "O"
"""The tag of a word that is in no span, and of one that the model is not given."""

_SPAN_TAG = re.compile(r"O|[BIES]-.+", re.DOTALL)


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
        score: the probability of the class or choice.
        scores: every class's or choice's probability.
        choice: the chosen text.
        words, tags: of token classification, the words and the tag of each.
        spans: what the tags mark, where they mark spans (B-PER, I-PER, O).
        generated: the generated text.
    """

    label: str | float | None = None
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


def read_logits(adapter: Adapter, logits: Float[Tensor, "N C"]) -> list[Prediction]:
    """What the logits of classes, or the numbers of a regression, mean.

    Raises:
        AdapterError: they are not finite.
    """
    check_finite(logits)
    if adapter.kind == "regression":
        return [Prediction(label=row[0]) for row in logits.tolist()]
    labels = adapter.task.labels or tuple(str(i) for i in range(logits.shape[-1]))
    return [_best(labels, row) for row in logits.softmax(dim=-1).tolist()]


def read_choices(adapter: Adapter, logits: Float[Tensor, "N C"], choices: Sequence[Sequence[str]]) -> list[Prediction]:
    """What the logits of N questions' choices mean; they are -inf where a question has fewer than C."""
    names = adapter.task.labels or tuple(str(i) for i in range(logits.shape[-1]))
    found = []
    for row, texts in zip(logits.softmax(dim=-1).tolist(), choices, strict=True):
        best = max(range(len(texts)), key=row.__getitem__)
        scores = dict(zip(names, row[: len(texts)], strict=False))
        found.append(Prediction(label=names[best], score=row[best], scores=scores, choice=texts[best]))
    return found


def first_pieces(rows: Sequence[Row], like: Float[Tensor, "B T C"]) -> Bool[Tensor, "B T"]:
    """Which tokens are judged: the first piece of each word that the model was given.

    Raises:
        AdapterError: what is said of them is not finite.
    """
    mask = torch.zeros(like.shape[:2], dtype=torch.bool)
    for i, row in enumerate(rows):
        mask[i, [place for place in row["places"] if place != ABSENT]] = True
    mask = mask.to(like.device)
    check_finite(like[mask])
    return mask


def tags_of(row: Row, ids: Sequence[int], labels: Sequence[str]) -> list[str]:
    """The tag of each word: of its first piece, or `OUTSIDE` where the model was not given it."""
    return [OUTSIDE if place == ABSENT else labels[ids[place]] for place in row["places"]]


def read_tags(adapter: Adapter, words: Sequence[str], tags: Sequence[str]) -> Prediction:
    """What the tags of a sentence mean."""
    marks = all(_SPAN_TAG.fullmatch(label) for label in adapter.task.labels or ("",))
    return Prediction(words=tuple(words), tags=tuple(tags), spans=spans_of(words, tags) if marks else None)


def spans_of(words: Sequence[str], tags: Sequence[str]) -> tuple[Span, ...]:
    """The spans that tags mark, as the CoNLL-2003 shared task counts them: an I-X that follows no X begins one."""
    spans: list[Span] = []
    start, kind = 0, ""
    for place, tag in enumerate([*tags, OUTSIDE]):
        prefix, _, now = tag.partition("-")
        before = tags[place - 1].partition("-")[0] if place else OUTSIDE
        if kind and (now != kind or prefix in "BS" or before in ("E", "S")):
            spans.append(Span(type=kind, start=start, end=place, text=" ".join(words[start:place])))
            kind = ""
        if now and not kind:
            start, kind = place, now
    return tuple(spans)


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


def _best(labels: Sequence[str], row: list[float]) -> Prediction:
    best = max(range(len(row)), key=row.__getitem__)
    return Prediction(label=labels[best], score=row[best], scores=dict(zip(labels, row, strict=True)))
