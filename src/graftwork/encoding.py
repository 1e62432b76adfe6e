"""From a task's inputs to what a backbone takes: one `Encoder` a kind of task.

Training, scoring and prediction all encode here, so that an adapter is asked in the very way in which it was taught.

Notation: B rows, C choices of a row, T tokens.
"""

import logging
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Int
from PIL import Image
from torch import Tensor
from transformers import DataCollatorForSeq2Seq, DataCollatorForTokenClassification, PreTrainedTokenizerBase

from graftwork.adapters import Adapter, TaskIdentity
from graftwork.backbones import Backbone
from graftwork.errors import BackboneError, DataError, RecipeError
from graftwork.heads import IGNORED
from graftwork.images import open_image

logger = logging.getLogger(__name__)

Text = str | tuple[str, str]
"""One text, or a pair of texts for a task over pairs."""

Words = str | Sequence[str]
"""The words of a sentence; or the sentence, which is then split at white space."""

Question = tuple[str, Sequence[str]] | Mapping[str, Any]
"""A question and its choices; or both by name: `text` and `choices`."""

Picture = str | Path | Image.Image
"""An image, or the file that holds one."""

Input = Text | Words | Question | Picture
"""What is asked about, by the kind of task."""

Row = dict[str, Any]
"""One input as the backbone takes it, unpadded; in training with its `labels`."""

Rows = Sequence[Any]
"""Rows, of which those of images are made when they are asked for."""

ABSENT = -1
"""The place of a word that has no word-piece among those that the backbone is given."""


class Encoder(ABC):
    """How the inputs of one adapter's task are read.

    Args:
        backbone: whose tokenizer or image processor is used.
        task: the lengths at which texts are cut, and what else the adapter was taught with.
    """

    def __init__(self, backbone: Backbone, task: TaskIdentity) -> None:
        self.backbone = backbone
        self.task = task

    @abstractmethod
    def encode(self, inputs: Sequence[Any], labels: Sequence[Any] | None = None) -> Rows:
        """Rows for the backbone, unpadded, in the order of the inputs.

        Args:
            inputs: what the kind of task takes.
            labels: one for each, as `TaskData` has them; of generation, the targets.

        Raises:
            DataError: an input is not what the kind of task takes.
        """

    @abstractmethod
    def collate(self, rows: Sequence[Row]) -> dict[str, Tensor]:
        """One batch of rows, padded to the longest of them, as `AdaptedModel.forward` takes it."""

    def lengths(self, rows: Rows) -> list[int]:
        """How long each row is; rows of like length are put together."""
        return [len(row["input_ids"]) for row in rows]

    def batches(self, rows: Rows, batch_size: int) -> Iterator[tuple[list[int], dict[str, Tensor]]]:
        """All rows, those of like length together, each batch with the places of its rows.

        The longest come first, so that what does not fit into memory fails at once.

        Raises:
            RecipeError: a batch size below 1.
        """
        if batch_size < 1:
            raise RecipeError(f"the batch size is {batch_size}", expected="1 or more", change="--batch-size")
        lengths = self.lengths(rows)
        by_length = sorted(range(len(rows)), key=lambda i: -lengths[i])
        for start in range(0, len(rows), batch_size):
            places = by_length[start : start + batch_size]
            batch = self.collate([rows[i] for i in places])
            yield places, {name: value.to(self.backbone.device) for name, value in batch.items()}

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The backbone's.

        Raises:
            BackboneError: it has none.
        """
        return self.backbone.require_tokenizer()


class TextEncoder(Encoder):
    """Texts or pairs of texts, to be classified or measured."""

    def encode(self, inputs: Sequence[Any], labels: Sequence[Any] | None = None) -> list[Row]:
        pairs = self.task.pairs
        for i, text in enumerate(inputs):
            parts = text if isinstance(text, Sequence) and not isinstance(text, str) else ()
            of_pair = len(parts) == 2 and all(isinstance(part, str) for part in parts)
            if not (of_pair if pairs else isinstance(text, str)):
                given = "one text" if isinstance(text, str) else "a pair" if of_pair else _named(text)
                raise DataError(f"text {i + 1} is {given}", expected="pairs of texts" if pairs else "single texts")
        first = [text if isinstance(text, str) else text[0] for text in inputs]
        second = [text[1] for text in inputs] if pairs else None
        rows = _rows(self.tokenizer, first, second, self.task.max_length)
        return rows if labels is None else [{**row, "labels": said} for row, said in zip(rows, labels, strict=True)]

    def collate(self, rows: Sequence[Row]) -> dict[str, Tensor]:
        return _with_labels(dict(self.tokenizer.pad(_inputs(rows), return_tensors="pt")), rows)


class TagEncoder(Encoder):
    """Words to be tagged.

    A word's label stands at its first word-piece, -100 at all others. Rows have `places` besides: each word's first
    piece, or `ABSENT` for words that are cut off or of which the tokenizer makes nothing.
    """

    def encode(self, inputs: Sequence[Any], labels: Sequence[Sequence[int]] | None = None) -> list[Row]:
        if not self.tokenizer.is_fast:
            raise BackboneError(
                f"the tokenizer of backbone {self.backbone.name!r} does not tell which pieces are of which word",
                expected="a tokenizer of the tokenizers library",
            )
        sentences = [words_of(given, i) for i, given in enumerate(inputs)]
        if not sentences:
            return []
        # Pieces at a word's beginning are those of running text, which only some tokenizers give for words alone.
        texts = [" ".join(words) for words in sentences]
        encoded = self.tokenizer(texts, truncation=True, max_length=self.task.max_length)
        rows = []
        for i, words in enumerate(sentences):
            row = {name: values[i] for name, values in encoded.items()}
            row["places"] = _first_pieces(encoded, i, words)
            if labels is not None:
                row["labels"] = [IGNORED] * len(row["input_ids"])
                for place, label in zip(row["places"], labels[i], strict=True):
                    if place != ABSENT:
                        row["labels"][place] = label
            rows.append(row)
        absent = sum(place == ABSENT for row in rows for place in row["places"])
        if absent:
            logger.warning(
                "%d of %d words are not seen, most of them after token %d, and count as tagged O (--train.max_length)",
                absent,
                sum(map(len, sentences)),
                self.task.max_length,
            )
        return rows

    def collate(self, rows: Sequence[Row]) -> dict[str, Tensor]:
        features = [{name: value for name, value in row.items() if name != "places"} for row in rows]
        return dict(DataCollatorForTokenClassification(self.tokenizer)(features))


class ChoiceEncoder(Encoder):
    """Questions with choices: each choice is a text pair with its question, (B, C, T).

    A row with fewer choices than another of its batch gets some that are all padding, whose logits are -inf.
    """

    def encode(self, inputs: Sequence[Any], labels: Sequence[int] | None = None) -> list[Row]:
        asked = [question_of(given, i) for i, given in enumerate(inputs)]
        questions = [question for question, choices in asked for _ in choices]
        choices = [choice for _, several in asked for choice in several]
        return _grouped(self._pairs(questions, choices), [len(several) for _, several in asked], labels)

    def _pairs(self, questions: Sequence[str], choices: Sequence[str]) -> list[Row]:
        return _rows(self.tokenizer, questions, choices, self.task.max_length)

    def collate(self, rows: Sequence[Row]) -> dict[str, Tensor]:
        most = max(len(row["input_ids"]) for row in rows)
        flat = [choice for row in _inputs(rows) for choice in _ungrouped(row, most, self._blank())]
        batch = {name: value.view(len(rows), most, -1) for name, value in self._pad(flat).items()}
        return _with_labels(batch, rows)

    def _pad(self, rows: Sequence[Row]) -> dict[str, Tensor]:
        return dict(self.tokenizer.pad(list(rows), return_tensors="pt"))

    def _blank(self) -> Row:
        """What a choice that is none consists of."""
        return {"input_ids": self.tokenizer.pad_token_id}

    def lengths(self, rows: Rows) -> list[int]:
        return [max(map(len, row["input_ids"])) for row in rows]


class PromptEncoder(Encoder):
    """Sources and what a language model is to say of them.

    A causal model is given source, separator, target and the token that ends a text, with labels on the last two. An
    encoder-decoder is given the source, and the target as labels.
    """

    @property
    def causal(self) -> bool:
        """Whether source and target are one text."""
        return not self.backbone.is_encoder_decoder

    @property
    def end(self) -> int:
        """The token that ends a text.

        Raises:
            BackboneError: the tokenizer has none.
        """
        for token in (self.tokenizer.eos_token_id, self.tokenizer.sep_token_id):
            if token is not None:
                return int(token)
        raise BackboneError(
            f"the tokenizer of backbone {self.backbone.name!r} has no token that ends a text",
            expected="a tokenizer with an eos_token",
        )

    def sources(self, texts: Sequence[str]) -> list[Row]:
        """Each source, cut to `max_length` tokens; of a causal model with the separator, which is never cut."""
        if not self.causal:
            return _rows(self.tokenizer, texts, None, self.task.max_length)
        separator = self._ids([self.task.separator])[0] if self.task.separator else []
        if self.task.separator and not separator:
            raise RecipeError(
                f"the tokenizer of backbone {self.backbone.name!r} makes no token of the separator "
                f"{self.task.separator!r}",
                expected="a text between source and target that the model sees",
                change="--task.separator",
            )
        room = self.task.max_length - len(separator)
        if room < 1:
            raise RecipeError(
                f"the separator has {len(separator)} tokens, and source and separator have {self.task.max_length}",
                change="--train.max_length",
            )
        found = self.tokenizer(list(texts))["input_ids"] if texts else []
        ids = [_without_end(row, self.tokenizer) for row in found]
        _report_cut(sum(len(row) > room for row in ids), len(ids), "sources", self.task.max_length, "max_length")
        return [_unmasked(row[:room] + separator) for row in ids]

    def targets(self, texts: Sequence[str]) -> list[list[int]]:
        """Each target, cut to `max_target_length` tokens, the one that ends it among them."""
        longest = self.task.max_target_length
        if self.causal:
            found = [[*ids, self.end] for ids in self._ids(texts)]
            ids = [row if len(row) <= longest else [*row[: longest - 1], self.end] for row in found]
        else:
            found = self.tokenizer(text_target=list(texts))["input_ids"] if texts else []
            tokenized = self.tokenizer(text_target=list(texts), truncation=True, max_length=longest) if texts else {}
            ids = list(tokenized.get("input_ids", []))
        _report_cut(sum(len(row) > longest for row in found), len(found), "targets", longest, "max_target_length")
        return ids

    def join(self, source: Row, target: list[int]) -> Row:
        """A source and its target, with labels on the target."""
        if not self.causal:
            return {**source, "labels": target}
        ids = source["input_ids"]
        return {**_unmasked(ids + target), "labels": [IGNORED] * len(ids) + target}

    def _ids(self, texts: Sequence[str]) -> list[list[int]]:
        ids: list[list[int]] = self.tokenizer(list(texts), add_special_tokens=False)["input_ids"] if texts else []
        return ids


class GenerationEncoder(PromptEncoder):
    """Sources of which a text is to be made. Without targets they are padded on the left, so that a causal model goes
    on where they end."""

    def encode(self, inputs: Sequence[Any], labels: Sequence[str] | None = None) -> list[Row]:
        for i, text in enumerate(inputs):
            if not isinstance(text, str):
                raise DataError(f"input {i + 1} is {_named(text)}", expected="one text")
        rows = self.sources(inputs)
        if labels is None:
            return rows
        return [self.join(row, target) for row, target in zip(rows, self.targets(labels), strict=True)]

    def collate(self, rows: Sequence[Row]) -> dict[str, Tensor]:
        if "labels" in rows[0]:
            return dict(DataCollatorForSeq2Seq(self.tokenizer)(list(rows)))
        side = "left" if self.causal else "right"
        return dict(self.tokenizer.pad(list(rows), padding_side=side, return_tensors="pt"))

    def lengths(self, rows: Rows) -> list[int]:
        beside = 0 if self.causal else 1
        return [len(row["input_ids"]) + beside * len(row.get("labels", ())) for row in rows]

    def read(self, made: Int[Tensor, "B T"], prompts: dict[str, Tensor]) -> list[str]:
        """The texts that a model made of a batch of prompts, without white space around them."""
        new = made[:, prompts["input_ids"].shape[1] :] if self.causal else made
        return [text.strip() for text in self.tokenizer.batch_decode(new, skip_special_tokens=True)]


class LikelihoodEncoder(PromptEncoder, ChoiceEncoder):
    """Questions with choices whose likelihood a language model judges: (B, C, T) and `targets` of the same shape."""

    def _pairs(self, questions: Sequence[str], choices: Sequence[str]) -> list[Row]:
        joined = [self.join(*both) for both in zip(self.sources(questions), self.targets(choices), strict=True)]
        return [{**{k: v for k, v in row.items() if k != "labels"}, "targets": row["labels"]} for row in joined]

    def _pad(self, rows: Sequence[Row]) -> dict[str, Tensor]:
        renamed = [{"labels" if name == "targets" else name: value for name, value in row.items()} for row in rows]
        batch = dict(DataCollatorForSeq2Seq(self.tokenizer)(renamed))
        targets = batch.pop("labels")
        return {**batch, "targets": targets}

    def _blank(self) -> Row:
        return {**super()._blank(), "targets": IGNORED}


class ImageEncoder(Encoder):
    """Images, as the backbone's image processor makes them. A file is read when its row is asked for."""

    def encode(self, inputs: Sequence[Any], labels: Sequence[int] | None = None) -> Rows:
        return _Images(self.backbone, inputs, labels)

    def lengths(self, rows: Rows) -> list[int]:
        return [1] * len(rows)

    def collate(self, rows: Sequence[Row]) -> dict[str, Tensor]:
        return _with_labels({"pixel_values": torch.stack([row["pixel_values"] for row in rows])}, rows)


class _Images(Sequence[Any]):
    """Rows of images that are read when they are asked for."""

    def __init__(self, backbone: Backbone, images: Sequence[Any], labels: Sequence[int] | None) -> None:
        self.processor = backbone.require_image_processor()
        self.mode = "L" if getattr(backbone.config, "num_channels", 3) == 1 else "RGB"
        self.images = images
        self.labels = labels

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, i: Any) -> Any:
        image = open_image(self.images[i], self.mode, place=i)
        pixels = self.processor(images=[image], return_tensors="pt")["pixel_values"][0]
        return {"pixel_values": pixels, **({} if self.labels is None else {"labels": self.labels[i]})}


_ENCODERS: dict[str, type[Encoder]] = {
    "classification": TextEncoder,
    "regression": TextEncoder,
    "token-classification": TagEncoder,
    "multiple-choice": ChoiceEncoder,
    "generation": GenerationEncoder,
    "image-classification": ImageEncoder,
}


def encoder_for(backbone: Backbone, adapter: Adapter) -> Encoder:
    """How the inputs of an adapter's task are read."""
    if adapter.kind == "multiple-choice" and adapter.head.reads == "vocabulary":
        return LikelihoodEncoder(backbone, adapter.task)
    return _ENCODERS[adapter.kind](backbone, adapter.task)


# Inputs


def words_of(given: Any, place: int) -> list[str]:
    """The words of a sentence.

    Raises:
        DataError: there are none, or they are no words.
    """
    words = given.split() if isinstance(given, str) else given
    if isinstance(words, Sequence) and words and all(isinstance(word, str) and word.strip() for word in words):
        return list(words)
    raise DataError(
        f"input {place + 1} has no words" if isinstance(given, str) else f"input {place + 1} is {_named(given)}",
        expected="a list of words, or a text with white space between them",
    )


def question_of(given: Any, place: int) -> tuple[str, list[str]]:
    """A question and its choices.

    Raises:
        DataError: they are none.
    """
    if isinstance(given, Mapping):
        question, choices = (given.get("text"), given.get("choices")) if len(given) == 2 else (None, None)
    else:
        question, choices = given if isinstance(given, Sequence) and len(given) == 2 else (None, None)
    several = isinstance(choices, Sequence) and not isinstance(choices, str) and len(choices) > 1
    if isinstance(question, str) and several and all(isinstance(choice, str) for choice in choices or ()):
        return question, list(choices or ())
    raise DataError(
        f"input {place + 1} is {_named(given)}",
        expected='("question", ["choice", "choice", ...]), or {"text": "question", "choices": [...]}',
    )


def _named(given: Any) -> str:
    text = repr(given)
    return text if len(text) <= 80 else text[:79] + "…"


# Rows


def _rows(
    tokenizer: PreTrainedTokenizerBase, first: Sequence[str], second: Sequence[str] | None, max_length: int
) -> list[Row]:
    if not first:
        return []
    encoded = tokenizer(list(first), None if second is None else list(second), truncation=True, max_length=max_length)
    return [{name: values[i] for name, values in encoded.items()} for i in range(len(first))]


def _unmasked(ids: list[int]) -> Row:
    return {"input_ids": ids, "attention_mask": [1] * len(ids)}


def _inputs(rows: Sequence[Row]) -> list[Row]:
    return [{name: value for name, value in row.items() if name != "labels"} for row in rows]


def _with_labels(batch: dict[str, Tensor], rows: Sequence[Row]) -> dict[str, Tensor]:
    return {**batch, "labels": torch.tensor([row["labels"] for row in rows])} if "labels" in rows[0] else batch


def _first_pieces(encoded: Any, row: int, words: Sequence[str]) -> list[int]:
    """The place of each word's first piece, where the words are parted by one space each."""
    places, start = [], 0
    for word in words:
        found = (encoded.char_to_token(row, at) for at in range(start, start + len(word)))
        places.append(next((place for place in found if place is not None), ABSENT))
        start += len(word) + 1
    return places


def _grouped(rows: Sequence[Row], counts: Sequence[int], labels: Sequence[int] | None) -> list[Row]:
    """One row for each `count` of them running, its values lists."""
    found, start = [], 0
    for count in counts:
        several = rows[start : start + count]
        found.append({name: [row[name] for row in several] for name in several[0]})
        start += count
    return found if labels is None else [{**row, "labels": said} for row, said in zip(found, labels, strict=True)]


def _ungrouped(row: Row, count: int, blank: Row) -> list[Row]:
    """The rows that one row was made of, and blank ones of one token up to the count."""
    found = [dict(zip(row, values, strict=True)) for values in zip(*row.values(), strict=True)]
    return found + [{name: [blank.get(name, 0)] for name in row}] * (count - len(found))


def _without_end(ids: list[int], tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """A source is not ended by what a tokenizer ends every text with."""
    ends = {tokenizer.eos_token_id, tokenizer.sep_token_id} - {None}
    return ids[:-1] if ids and ids[-1] in ends else ids


def _report_cut(cut: int, total: int, what: str, longest: int, setting: str) -> None:
    if cut > total // 10:
        logger.warning(
            "%d of %d %s are of more than %d tokens, and are cut there (--train.%s)", cut, total, what, longest, setting
        )
