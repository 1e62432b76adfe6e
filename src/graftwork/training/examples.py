"""From a task's rows to what its adapter's encoder takes, and to what the model is trained on."""

import logging
from collections.abc import Sequence

import datasets

from graftwork.encoding import Encoder, ImageEncoder, Row, Rows, TextEncoder
from graftwork.kinds import KINDS

logger = logging.getLogger(__name__)


def examples(encoder: Encoder, kind: str, rows: datasets.Dataset) -> Rows | datasets.Dataset:
    """The rows to train on, with `labels`, unpadded. How many texts were cut is logged."""
    encoded = encoder.encode(KINDS[kind].inputs_of(rows), KINDS[kind].labels_of(rows))
    if isinstance(encoder, TextEncoder):
        report_cut(encoded, encoder.max_length)
    return encoded if isinstance(encoder, ImageEncoder) else datasets.Dataset.from_list(list(encoded))


def lengths_of(encoder: Encoder, rows: Rows | datasets.Dataset) -> list[int]:
    """How long each row is. No image is read."""
    return encoder.lengths(list(rows) if isinstance(rows, datasets.Dataset) else rows)


def report_cut(encoded: Sequence[Row], max_length: int) -> None:
    """Log how many texts were cut, where they are many."""
    full = sum(len(row["input_ids"]) == max_length for row in encoded)
    if full > len(encoded) // 10:
        logger.warning(
            "%d of %d texts reach the limit of %d tokens; longer ones are truncated (--train.max_length)",
            full,
            len(encoded),
            max_length,
        )
