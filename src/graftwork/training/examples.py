"""From a task's rows to what its adapter's encoder takes, and to what the model is trained on."""

import logging
from collections.abc import Sequence
from typing import Any

import datasets

from graftwork.encoding import Encoder, ImageEncoder, Row, Rows, TextEncoder

logger = logging.getLogger(__name__)


def inputs_of(kind: str, rows: datasets.Dataset) -> Sequence[Any]:
    """A split's inputs, as `AdaptedModel.predict` takes them. Images are read when they are asked for."""
    if kind == "image-classification":
        images: Sequence[Any] = rows["image"]
        return images
    if kind == "token-classification":
        return list(rows["words"])
    beside = {"multiple-choice": "choices", "generation": ""}.get(kind, "text_pair")
    if beside in rows.column_names:
        return list(zip(rows["text"], rows[beside], strict=True))
    return list(rows["text"])


def labels_of(kind: str, rows: datasets.Dataset) -> list[Any]:
    """A split's labels, one for each input; of generation the targets."""
    return list(rows[{"token-classification": "tags", "generation": "target"}.get(kind, "label")])


def each_target(rows: datasets.Dataset) -> tuple[list[str], list[str]]:
    """Of generation, the sources and targets with a place for each reference of a source."""
    pairs = zip(rows["text"], references_of(rows), strict=True)
    both = [(text, reference) for text, known in pairs for reference in known]
    return [text for text, _ in both], [reference for _, reference in both]


def references_of(rows: datasets.Dataset) -> list[list[str]]:
    """Of generation, what may be said of each source."""
    if "references" in rows.column_names:
        return list(rows["references"])
    return [[target] for target in rows["target"]]


def examples(encoder: Encoder, kind: str, rows: datasets.Dataset) -> Rows | datasets.Dataset:
    """The rows to train on, with `labels`, unpadded. How many texts were cut is logged."""
    encoded = encoder.encode(inputs_of(kind, rows), labels_of(kind, rows))
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
            "%d of %d texts have as many tokens as are read, %d: longer ones are cut there (--train.max_length)",
            full,
            len(encoded),
            max_length,
        )
