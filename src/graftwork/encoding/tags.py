"""Sentences whose words are tagged."""

import logging
from collections.abc import Sequence
from typing import Any

from torch import Tensor
from transformers import DataCollatorForTokenClassification

from graftwork.backbones.tokenizers import locked
from graftwork.encoding.encoder import Encoder, shortened
from graftwork.encoding.tokens import Row, not_empty
from graftwork.errors import BackboneError, DataError
from graftwork.heads import IGNORED

logger = logging.getLogger(__name__)

ABSENT = -1
"""The place of a word that has no word-piece among those that the backbone is given."""


class TagEncoder(Encoder):
    """Words to be tagged.

    A word's label stands at its first word-piece, -100 at all others. Rows have `places` besides: each word's first
    piece, or `ABSENT` for words that are cut off or of which the tokenizer makes nothing.
    """

    def encode(self, inputs: Sequence[Any], labels: Sequence[Sequence[int]] | None = None) -> list[Row]:
        if not self.tokenizer.is_fast:
            raise BackboneError(
                f"the tokenizer of backbone {self.backbone.name!r} does not say which tokens belong to which word",
                expected="a fast tokenizer (of the tokenizers library)",
            )
        sentences = [words_of(given, i) for i, given in enumerate(inputs)]
        if not sentences:
            return []
        # Pieces at a word's beginning are those of running text, which only some tokenizers give for words alone.
        texts = [" ".join(words) for words in sentences]
        with locked(self.tokenizer) as tokenizer:
            encoded = tokenizer(texts, truncation=True, max_length=self.max_length)
        rows = []
        for i, words in enumerate(sentences):
            row = not_empty({name: values[i] for name, values in encoded.items()}, self.tokenizer)
            row["places"] = first_pieces_of(encoded, i, words)
            if labels is not None:
                row["labels"] = [IGNORED] * len(row["input_ids"])
                for place, label in zip(row["places"], labels[i], strict=True):
                    if place != ABSENT:
                        row["labels"][place] = label
            rows.append(row)
        absent = sum(place == ABSENT for row in rows for place in row["places"])
        if absent:
            logger.warning(
                "%d of %d words are cut off, most of them after token %d, and count as tagged O (--train.max_length)",
                absent,
                sum(map(len, sentences)),
                self.max_length,
            )
        return rows

    def collate(self, rows: Sequence[Row]) -> dict[str, Tensor]:
        features = [{name: value for name, value in row.items() if name != "places"} for row in rows]
        return dict(DataCollatorForTokenClassification(self.tokenizer)(features))


def words_of(given: Any, place: int) -> list[str]:
    """The words of a sentence.

    Raises:
        DataError: there are none, or they are no words.
    """
    words = given.split() if isinstance(given, str) else given
    if isinstance(words, Sequence) and words and all(isinstance(word, str) and word.strip() for word in words):
        return list(words)
    raise DataError(
        f"input {place + 1} has no words" if isinstance(given, str) else f"input {place + 1} is {shortened(given)}",
        expected="a list of words, or a text with white space between them",
    )


def first_pieces_of(encoded: Any, row: int, words: Sequence[str]) -> list[int]:
    """The place of each word's first piece, where the words are parted by one space each."""
    places, start = [], 0
    for word in words:
        found = (encoded.char_to_token(row, at) for at in range(start, start + len(word)))
        places.append(next((place for place in found if place is not None), ABSENT))
        start += len(word) + 1
    return places
