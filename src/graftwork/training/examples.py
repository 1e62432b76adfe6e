"""From a task's rows to what the model is fed: token ids and labels."""

import logging
from typing import Any

import datasets

from graftwork.backbones import Backbone
from graftwork.prediction import Text, encode

logger = logging.getLogger(__name__)


def texts_of(rows: datasets.Dataset) -> list[Text]:
    """The texts, or pairs of texts, of a split."""
    if "text_pair" in rows.column_names:
        return list(zip(rows["text"], rows["text_pair"], strict=True))
    return list(rows["text"])


def examples(backbone: Backbone, rows: datasets.Dataset, *, max_length: int) -> datasets.Dataset:
    """A split as token ids and `labels`, unpadded. How many texts were cut is logged."""
    encoded: Any = encode(
        backbone.require_tokenizer(), texts_of(rows), pairs="text_pair" in rows.column_names, max_length=max_length
    )
    full = sum(len(ids) == max_length for ids in encoded["input_ids"])
    if full > len(rows) // 10:
        logger.warning(
            "%d of %d texts are of %d tokens or more, and are cut there (--train.max_length)",
            full,
            len(rows),
            max_length,
        )
    return datasets.Dataset.from_dict({**encoded, "labels": list(rows["label"])})
