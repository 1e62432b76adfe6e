"""Texts and pairs of texts."""

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from graftwork.encoding.encoder import Encoder, shortened, with_labels, without_labels
from graftwork.encoding.tokens import Row, tokenized
from graftwork.errors import DataError


class TextEncoder(Encoder):
    """Texts or pairs of texts, to be classified or measured."""

    def encode(self, inputs: Sequence[Any], labels: Sequence[Any] | None = None) -> list[Row]:
        pairs = self.task.pairs
        for i, text in enumerate(inputs):
            parts = text if isinstance(text, Sequence) and not isinstance(text, str) else ()
            of_pair = len(parts) == 2 and all(isinstance(part, str) for part in parts)
            if not (of_pair if pairs else isinstance(text, str)):
                given = "one text" if isinstance(text, str) else "a pair" if of_pair else shortened(text)
                raise DataError(f"text {i + 1} is {given}", expected="pairs of texts" if pairs else "single texts")
        first = [text if isinstance(text, str) else text[0] for text in inputs]
        second = [text[1] for text in inputs] if pairs else None
        between = self.task.pair_separator
        rows = tokenized(self.tokenizer, first, second, self.max_length, separator=between)
        return rows if labels is None else [{**row, "labels": said} for row, said in zip(rows, labels, strict=True)]

    def collate(self, rows: Sequence[Row]) -> dict[str, Tensor]:
        return with_labels(dict(self.tokenizer.pad(without_labels(rows), return_tensors="pt")), rows)
