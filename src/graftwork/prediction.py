"""From texts to predictions: tokenising, padding, batches, labels."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from graftwork.adapters import Adapter
from graftwork.errors import DataError, RecipeError

if TYPE_CHECKING:
    from graftwork.model import AdaptedModel

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


def logits_of(model: "AdaptedModel", name: str, texts: Sequence[Text], batch_size: int) -> Float[Tensor, "N C"]:
    """What the named adapter's head says of N texts, in their order, on the CPU. Texts of like length share a batch.

    Raises:
        DataError: a pair where the task is over single texts, or the other way round.
        BackboneError: the backbone has no tokenizer.
        RecipeError: a batch size below 1.
    """
    if batch_size < 1:
        raise RecipeError(f"the batch size is {batch_size}", expected="1 or more", change="--batch-size")
    adapter, tokenizer = model.residents[name].adapter, model.backbone.require_tokenizer()
    logits = torch.empty(len(texts), adapter.head.num_outputs)
    if not texts:
        return logits
    encoded = encode(tokenizer, texts, pairs=adapter.task.pairs, max_length=adapter.task.max_length)
    # The longest first, so that what does not fit into memory fails at once.
    by_length = sorted(range(len(texts)), key=lambda i: -len(encoded["input_ids"][i]))
    with torch.inference_mode():
        for start in range(0, len(texts), batch_size):
            rows = by_length[start : start + batch_size]
            batch = tokenizer.pad({k: [v[i] for i in rows] for k, v in encoded.items()}, return_tensors="pt")
            logits[rows] = model(**batch.to(model.device), adapters=name).logits.cpu()
    return logits


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
