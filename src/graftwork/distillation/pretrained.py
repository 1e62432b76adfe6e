"""A Hugging Face model with a task head as a teacher: a full fine-tuned model of any size, with its own tokenizer."""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForSequenceClassification, AutoModelForTokenClassification, AutoTokenizer

from graftwork.backbones.checkpoints import UNREADABLE
from graftwork.backbones.positions import longest_of
from graftwork.backbones.quiet import quiet_transformers
from graftwork.distillation.teacher import BATCH, Advance, Teacher, of_words
from graftwork.encoding.tags import first_pieces_of, words_of
from graftwork.encoding.tokens import Row, tokenized
from graftwork.errors import RecipeError, first_line
from graftwork.heads import Head, States
from graftwork.heads.pooled import pool
from graftwork.kinds import KINDS, default_kind

ENDLESS = 10**9
"""Tokenizers without a longest text say a number beyond this one."""


class PretrainedTeacher(Teacher):
    """A model with a head over a text (classes, labels, or one number) or over its words.

    Args:
        folder: with its configuration, weights and tokenizer.
        kind: of the task that it is to teach.
        pairs: whether the task's inputs are pairs of texts.
        max_length: at how many tokens a text is cut, where the model has that many positions.
        device: where it runs.

    Raises:
        RecipeError: it cannot be loaded, lacks weights, or has a head for another kind of task.
    """

    def __init__(self, folder: str, *, kind: str, pairs: bool, max_length: int, device: torch.device) -> None:
        self.pairs, self.by_token = pairs, KINDS[kind].by_token
        auto = AutoModelForTokenClassification if self.by_token else AutoModelForSequenceClassification
        try:
            with quiet_transformers():
                self.tokenizer: Any = AutoTokenizer.from_pretrained(folder)
                model, report = auto.from_pretrained(folder, dtype="auto", output_loading_info=True)
        except UNREADABLE as error:
            raise RecipeError(
                f"teacher {folder!r} cannot be loaded: {first_line(error)}",
                expected="a Hugging Face model's folder with config.json, weights and a tokenizer",
                change="--teacher",
            ) from error
        lacking = sorted(report["missing_keys"])
        config = model.config
        if lacking or not config.architectures[0].endswith(auto.__name__.removeprefix("AutoModel")):
            what = f"lacks {', '.join(lacking[:3])}" if lacking else f"is a {config.architectures[0]}"
            raise RecipeError(
                f"teacher {folder!r} {what}, and the task is {kind}",
                expected=f"a model {auto.__name__.removeprefix('AutoModel')} with its head",
                change="--teacher",
            )
        self._check_head(folder, kind, config)
        if device.type == "cpu" and model.dtype == torch.float16:
            model = model.float()
        self.tokenizer.padding_side = "right"  # the places of words are counted from the beginning
        if self.tokenizer.pad_token is None:  # a decoder's: padding is masked, whatever it is
            self.tokenizer.pad_token = self.tokenizer.eos_token
            config.pad_token_id = self.tokenizer.pad_token_id
        self.model = model.to(device).eval()
        named = KINDS[kind].named
        labels = tuple(str(config.id2label[i]) for i in range(config.num_labels)) if named else None
        super().__init__(folder, labels, config.hidden_size)
        positions = longest_of(model) or getattr(config, "max_position_embeddings", None) or ENDLESS
        longest = min(positions, self.tokenizer.model_max_length)
        self.max_length = min(max_length, int(longest) if longest < ENDLESS else max_length)

    def _check_head(self, folder: str, kind: str, config: Any) -> None:
        """Refuse a head whose outputs mean something else than the task's labels."""
        own, wanted = (
            config.problem_type or KINDS[default_kind(config.num_labels)].problem_type,
            KINDS[kind].problem_type,
        )
        if self.by_token or (own or _SINGLE) == (wanted or _SINGLE):
            return
        raise RecipeError(
            f"teacher {folder!r} has {config.num_labels} outputs of problem type {own or _SINGLE}, and the task is "
            f"{kind}",
            expected=f"problem type {wanted or _SINGLE}",
            change="--teacher, or --kind",
        )

    def logits(self, inputs: Sequence[Any], advance: Advance) -> list[Tensor]:
        found: dict[int, Tensor] = {}
        rows = self._rows(inputs)
        for places, batch in self._batches(rows):
            with torch.inference_mode():
                said = self.model(**batch).logits.float().cpu()
            for place, own in zip(places, said, strict=True):
                found[place] = of_words(own, rows[place]["places"]) if self.by_token else own[None]
            advance(len(places))
        return [found[place] for place in range(len(inputs))]

    def vectors(self, inputs: Sequence[Any], head: Head, advance: Advance) -> list[Tensor]:
        found: dict[int, Tensor] = {}
        rows = self._rows(inputs)
        for places, batch in self._batches(rows):
            with torch.inference_mode():
                states = self.model(**batch, output_hidden_states=True).hidden_states[-1]
                said = states.float() if self.by_token else self._pooled(states, batch["attention_mask"], head)
            for place, own in zip(places, said.cpu(), strict=True):
                found[place] = of_words(own, rows[place]["places"]) if self.by_token else own[None]
            advance(len(places))
        return [found[place] for place in range(len(inputs))]

    def _pooled(self, states: Tensor, mask: Tensor, head: Head) -> Tensor:
        assert head.pooled_by is not None  # it has been let pass
        return pool(States(last=states, mask=mask), head.pooled_by)

    def check_vectors(self, head: Head) -> None:
        if self.model.config.is_encoder_decoder:
            raise RecipeError(
                f"teacher {self.folder!r} has an encoder and a decoder: no one stack of layers makes its vectors",
                expected="hidden 0, or a teacher that is an encoder or a decoder",
                change="--hidden, or --teacher",
            )
        if not self.by_token and head.pooled_by in (None, "pooler"):
            raise RecipeError(
                f"teacher {self.folder!r} does not pool texts by a layer of the student's backbone",
                expected="pooling first, last or mean",
                change="--pooling, or --hidden 0",
            )

    def _rows(self, inputs: Sequence[Any]) -> list[Row]:
        if not self.by_token:
            first = [text[0] for text in inputs] if self.pairs else list(inputs)
            return tokenized(
                self.tokenizer, first, [text[1] for text in inputs] if self.pairs else None, self.max_length
            )
        sentences = [words_of(given, i) for i, given in enumerate(inputs)]
        encoded = self.tokenizer([" ".join(words) for words in sentences], truncation=True, max_length=self.max_length)
        rows = []
        for i, words in enumerate(sentences):
            own = {name: values[i] for name, values in encoded.items()}
            rows.append({**own, "places": first_pieces_of(encoded, i, words)})
        return rows

    def _batches(self, rows: Sequence[Row]) -> Iterator[tuple[list[int], dict[str, Tensor]]]:
        """Rows of like length together, the longest first."""
        order = sorted(range(len(rows)), key=lambda i: -len(rows[i]["input_ids"]))
        for start in range(0, len(rows), BATCH):
            places = order[start : start + BATCH]
            own = [{name: value for name, value in rows[i].items() if name != "places"} for i in places]
            batch = self.tokenizer.pad(own, return_tensors="pt")
            yield places, {name: tensor.to(self.model.device) for name, tensor in batch.items()}


_SINGLE = "single_label_classification"
"""What a configuration calls one of several classes, unless it calls it nothing."""
