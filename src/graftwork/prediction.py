"""What stands on both sides of a forward pass over texts: token ids before it, labels after it."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from jaxtyping import Float
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from graftwork.adapters import Adapter
from graftwork.errors import DataError

Text = str | tuple[str, str]
"""One text, or a pair of texts for a task over pairs."""


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """What an adapter says of one text.

    Attributes:
        label: the class, or the number for regression.
        score: the class's probability; None for regression.
        scores: every class's probability; None for regression.
    """

    label: str | float
    score: float | None = None
    scores: dict[str, float] | None = None

    def as_dict(self) -> dict[str, Any]:
        """For JSON: without what does not apply."""
        return {name: value for name, value in vars(self).items() if value is not None}


def read_logits(adapter: Adapter, logits: Float[Tensor, "N C"]) -> list[Prediction]:
    """What the logits mean, by the adapter's labels."""
    if adapter.head.kind == "regression":
        return [Prediction(label=row[0]) for row in logits.tolist()]
    labels = adapter.task.labels or tuple(str(i) for i in range(adapter.head.num_outputs))
    found = []
    for row in logits.softmax(dim=-1).tolist():
        best = max(range(len(row)), key=row.__getitem__)
        found.append(Prediction(label=labels[best], score=row[best], scores=dict(zip(labels, row, strict=True))))
    return found


def encode(tokenizer: PreTrainedTokenizerBase, texts: Sequence[Text], *, pairs: bool, max_length: int) -> Any:
    """Token ids of texts or pairs, cut to max_length, unpadded.

    Raises:
        DataError: a pair where the task is over single texts, or the other way round.
    """
    for i, text in enumerate(texts):
        if isinstance(text, str) == pairs:
            given = "one text" if isinstance(text, str) else "a pair"
            raise DataError(f"text {i + 1} is {given}", expected="pairs of texts" if pairs else "single texts")
    first = [text if isinstance(text, str) else text[0] for text in texts]
    second = [text[1] for text in texts] if pairs else None
    return tokenizer(first, second, truncation=True, max_length=max_length)
