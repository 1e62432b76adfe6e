"""Prompts of a language model: a source, and the text that is to follow it."""

import logging
from collections.abc import Sequence
from typing import Any

from jaxtyping import Int
from torch import Tensor
from transformers import DataCollatorForSeq2Seq, PreTrainedTokenizerBase

from graftwork.backbones.tokenizers import locked, pieces
from graftwork.encoding.choices import ChoiceEncoder
from graftwork.encoding.encoder import Encoder, Rows, shortened
from graftwork.encoding.tokens import Row, not_empty, tokenized
from graftwork.errors import BackboneError, DataError, RecipeError
from graftwork.heads import IGNORED

logger = logging.getLogger(__name__)


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
            f"the tokenizer of backbone {self.backbone.name!r} has no end-of-text token",
            expected="a tokenizer with an eos_token",
        )

    def sources(self, texts: Sequence[str]) -> list[Row]:
        """Each source, cut to `max_length` tokens; of a causal model with the separator, which is never cut."""
        if not self.causal:
            return tokenized(self.tokenizer, texts, None, self.max_length)
        separator = pieces(self.tokenizer, [self.task.separator])[0] if self.task.separator else []
        if self.task.separator and not separator:
            raise RecipeError(
                f"the tokenizer of backbone {self.backbone.name!r} makes no token from the separator "
                f"{self.task.separator!r}",
                expected="a text between source and target that the model sees",
                change="--task.separator, or separator= of Adapter.new",
            )
        room = self.max_length - len(separator)
        if room < 1:
            raise RecipeError(
                f"the separator has {len(separator)} tokens, and source and separator may have {self.max_length}",
                change="--train.max_length",
            )
        ids = [_without_end(row, self.tokenizer) for row in pieces(self.tokenizer, texts, special=True)]
        _report_cut(sum(len(row) > room for row in ids), len(ids), "sources", room, "max_length")
        return [not_empty(_unmasked(row[:room] + separator), self.tokenizer) for row in ids]

    def targets(self, texts: Sequence[str]) -> list[list[int]]:
        """Each target, cut to `max_target_length` tokens, the one that ends it among them. None is empty.

        Raises:
            DataError: there is an added token in one, for which the language-model head has no scores.
        """
        longest = self.task.max_target_length
        if self.causal:
            found = [[*ids, self.end] for ids in pieces(self.tokenizer, texts)]
            ids = [row if len(row) <= longest else [*row[: longest - 1], self.end] for row in found]
        elif not texts:
            return []
        else:
            with locked(self.tokenizer) as tokenizer:
                found = tokenizer(text_target=list(texts), verbose=False)["input_ids"]
                cut = tokenizer(text_target=list(texts), truncation=True, max_length=longest)["input_ids"]
            ids = [row or [self.end] for row in cut]
        self._refuse_added(found)
        _report_cut(sum(len(row) > longest for row in found), len(found), "targets", longest, "max_target_length")
        return ids

    def _refuse_added(self, targets: Sequence[list[int]]) -> None:
        added = {self.tokenizer.convert_tokens_to_ids(token): token for token in self.task.added_tokens}
        for i, ids in enumerate(targets):
            named = [added[token] for token in ids if token in added]
            if named:
                raise DataError(
                    f"target {i + 1} has the added token {named[0]!r}: added tokens can be read but not generated",
                    expected="added tokens in sources only",
                    change="--add-tokens",
                )

    def join(self, source: Row, target: list[int]) -> Row:
        """A source and its target, with labels on the target."""
        if not self.causal:
            return {**source, "labels": target}
        ids = source["input_ids"]
        return {**_unmasked(ids + target), "labels": [IGNORED] * len(ids) + target}


class GenerationEncoder(PromptEncoder):
    """Sources of which a text is to be made. Without targets they are padded on the left, so that a causal model goes
    on where they end."""

    def encode(self, inputs: Sequence[Any], labels: Sequence[str] | None = None) -> list[Row]:
        for i, text in enumerate(inputs):
            if not isinstance(text, str):
                raise DataError(f"input {i + 1} is {shortened(text)}", expected="one text")
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
        with locked(self.tokenizer) as tokenizer:
            return [text.strip() for text in tokenizer.batch_decode(new, skip_special_tokens=True)]


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


def _unmasked(ids: list[int]) -> Row:
    return {"input_ids": ids, "attention_mask": [1] * len(ids)}


def _without_end(ids: list[int], tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """A source is not ended by what a tokenizer ends every text with."""
    ends = {tokenizer.eos_token_id, tokenizer.sep_token_id} - {None}
    return ids[:-1] if ids and ids[-1] in ends else ids


def _report_cut(cut: int, total: int, what: str, longest: int, setting: str) -> None:
    if cut > total // 10:
        logger.warning(
            "%d of %d %s have more than %d tokens and are truncated (--train.%s)", cut, total, what, longest, setting
        )
