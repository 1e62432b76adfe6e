"""A model that says what adapters say of texts, words, questions and images."""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn as nn
from jaxtyping import Float
from torch import Tensor

from graftwork.adapters import Bank
from graftwork.backbones import Backbone
from graftwork.backbones.quiet import quiet_transformers
from graftwork.encoding import Encoder, GenerationEncoder, Input, TextEncoder, encoder_for, question_of, words_of
from graftwork.errors import AdapterError, DataError, RecipeError
from graftwork.generating import generation_config
from graftwork.prediction import Prediction, first_pieces, read_choices, read_logits, read_tags, tags_of, widen

DEFAULT_BATCH_SIZE = 32


class Predicting(nn.Module, ABC):
    """Predictions of raw inputs, over passes that its heir runs.

    Attributes:
        backbone: the frozen model.
        residents: the adapters by name.
    """

    backbone: Backbone
    residents: Bank

    @abstractmethod
    def generate(self, *args: Any, **options: Any) -> Any:
        """The backbone's own `generate`, with an adapter."""

    @abstractmethod
    def names(self, adapters: str | Sequence[str | None] | None, rows: int) -> list[str | None]:
        """One name a row; None for the backbone alone."""

    def predict(
        self,
        inputs: Sequence[Input],
        adapters: str | Sequence[str] | None = None,
        *,
        batch_size: int = DEFAULT_BATCH_SIZE,
        max_new_tokens: int | None = None,
        num_beams: int | None = None,
    ) -> list[Prediction]:
        """What adapters say of inputs.

        Args:
            inputs: by the kind of an adapter's task: strings, or pairs of strings for tasks over pairs; for token
                classification, lists of words, or strings, which are split at white space; for a multiple choice,
                `(question, [choice, ...])`, or the two in a dict as `text` and `choices`; for generation, strings; for
                images, PIL images or paths.
            adapters: one name for all inputs, or a name for each; may be left out when there is only one adapter.
            batch_size: inputs in one forward pass. Inputs of one adapter share passes, and so do all inputs of tasks of
                classification and regression of texts.
            max_new_tokens, num_beams: of generation, in the place of what the adapter was tuned with.

        Returns:
            One prediction an input, in their order.

        Raises:
            AdapterError: no adapter of that name; or not one name for each input.
            DataError: one string in the place of a list; or an input is not what its adapter's task takes.
            BackboneError: the backbone has no tokenizer or image processor.
            RecipeError: a batch size below 1; or settings of generation for an adapter that does not generate.
        """
        if isinstance(inputs, str):
            raise DataError("one string was given", expected="a list of texts")
        names = [name for name in self.names(adapters, len(inputs)) if name is not None]
        if len(names) < len(inputs):
            raise AdapterError("the backbone alone says nothing of an input", expected="a name for each input")
        options = {"max_new_tokens": max_new_tokens, "num_beams": num_beams}
        found: dict[int, Prediction] = {}
        if len(set(names)) > 1 and not any(option is not None for option in options.values()):
            together = [i for i, name in enumerate(names) if isinstance(self.encoder(name), TextEncoder)]
            judged = self._judge([inputs[i] for i in together], [names[i] for i in together], batch_size)
            found.update(zip(together, judged, strict=True))
        for name in dict.fromkeys(names):
            rows = [i for i, other in enumerate(names) if other == name and i not in found]
            if not rows:
                continue
            said = self._say(name, [inputs[i] for i in rows], batch_size, options)
            found.update(zip(rows, said, strict=True))
        return [found[i] for i in range(len(inputs))]

    def logits(
        self, inputs: Sequence[Input], adapter: str, *, batch_size: int = DEFAULT_BATCH_SIZE
    ) -> Float[Tensor, "N C"]:
        """What an adapter's head says of N inputs, in their order, on the CPU, without dropout: classes, numbers or
        choices, with -inf where an input has fewer choices than another.

        Inputs of like length share a pass.

        Raises:
            AdapterError: no adapter of that name; or its task has no one row of logits for an input.
            DataError, BackboneError, RecipeError: as `predict`.
        """
        kind, encoder = self.residents.named(adapter).adapter.kind, self.encoder(adapter)
        if kind in ("token-classification", "generation"):
            raise AdapterError(f"a {kind} task has no one row of logits for an input", expected="predict()")
        rows = encoder.encode(inputs)
        found: dict[int, Tensor] = {}
        with self.resting():
            for places, batch in encoder.batches(rows, batch_size):
                output = self(**batch, adapters=adapter)
                found.update(zip(places, output.logits.cpu(), strict=True))
        return widen(found) if found else torch.empty(0, self.residents.named(adapter).adapter.head.num_labels or 1)

    def decide(self, logits: Tensor, mask: Tensor | None, adapter: str) -> Tensor:
        """What an adapter's head chooses, given what it said. See `Head.decide`."""
        resident = self.residents.named(adapter)
        return resident.adapter.head.decide(logits, mask, resident.tensors())

    def tags(self, inputs: Sequence[Input], adapter: str, *, batch_size: int = DEFAULT_BATCH_SIZE) -> list[list[str]]:
        """The tag of each word of each input, by an adapter for token classification.

        A word that the model is not given, because the text is cut before it, is tagged O.

        Raises:
            AdapterError: no adapter of that name; or it tags no words.
            DataError, BackboneError, RecipeError: as `predict`.
        """
        encoder, labels = self.encoder(adapter), self._labels(adapter)
        rows = encoder.encode(inputs)
        found: dict[int, list[str]] = {}
        with self.resting():
            for places, batch in encoder.batches(rows, batch_size):
                logits = self(**batch, adapters=adapter).logits
                ids = self.decide(logits, first_pieces([rows[place] for place in places], logits), adapter).tolist()
                found |= {place: tags_of(rows[place], ids[i], labels) for i, place in enumerate(places)}
        return [found[i] for i in range(len(rows))]

    def texts(
        self,
        inputs: Sequence[str],
        adapter: str,
        *,
        batch_size: int = DEFAULT_BATCH_SIZE,
        max_new_tokens: int | None = None,
        num_beams: int | None = None,
    ) -> list[str]:
        """The text that is generated of each input, without white space around it, by an adapter for generation.

        The likeliest text is looked for, greedily or by beams; to sample, call `generate`.

        Args:
            max_new_tokens, num_beams: in the place of what the adapter was tuned with.

        Raises:
            AdapterError: no adapter of that name; or it does not generate.
            DataError, BackboneError, RecipeError: as `predict`.
        """
        encoder, task = self.encoder(adapter), self.residents.named(adapter).adapter.task
        if not isinstance(encoder, GenerationEncoder):
            raise AdapterError(f"adapter {adapter!r} does not generate", expected="one tuned on a generation task")
        config = generation_config(
            encoder,
            max_new_tokens=max_new_tokens or task.max_new_tokens or task.max_target_length,
            num_beams=num_beams or task.num_beams,
        )
        rows = encoder.encode(inputs)
        found: dict[int, str] = {}
        with self.resting(), quiet_transformers():
            for places, batch in encoder.batches(rows, batch_size):
                made = self.generate(**batch, adapters=adapter, generation_config=config)
                found.update(zip(places, encoder.read(made, batch), strict=True))
        return [found[i] for i in range(len(rows))]

    def encoder(self, adapter: str) -> Encoder:
        """How the inputs of an adapter's task are read.

        Raises:
            AdapterError: no adapter of that name.
        """
        return encoder_for(self.backbone, self.residents.named(adapter).adapter)

    @contextmanager
    def resting(self) -> Iterator[None]:
        """Without dropout and gradients inside; afterwards in the mode it was in, also after an exception."""
        training = self.training
        self.eval()
        try:
            with torch.inference_mode():
                yield
        finally:
            self.train(training)

    def _judge(self, inputs: Sequence[Any], names: Sequence[str], batch_size: int) -> list[Prediction]:
        """What adapters for classification and regression say of texts, those of like length in one pass."""
        encoders = {name: self.encoder(name) for name in names}
        rows: dict[int, Any] = {}
        for name, encoder in encoders.items():
            places = [i for i, other in enumerate(names) if other == name]
            rows.update(zip(places, encoder.encode([inputs[i] for i in places]), strict=True))
        found: dict[int, Prediction] = {}
        if not rows:
            return []
        with self.resting():
            encoded = [rows[i] for i in range(len(names))]
            for places, batch in next(iter(encoders.values())).batches(encoded, batch_size):
                output = self(**batch, adapters=[names[i] for i in places])
                for i, logits in zip(places, output.rows, strict=True):
                    [found[i]] = read_logits(self.residents.named(names[i]).adapter, logits[None].cpu())
        return [found[i] for i in range(len(names))]

    def _say(
        self, name: str, inputs: Sequence[Any], batch_size: int, options: Mapping[str, int | None]
    ) -> list[Prediction]:
        """The predictions of one adapter."""
        adapter = self.residents.named(name).adapter
        given = [option for option, value in options.items() if value is not None]
        if given and adapter.kind != "generation":
            raise RecipeError(
                f"adapter {name!r} does not generate, so that it has no {' and '.join(given)}",
                change=", ".join("--" + option.replace("_", "-") for option in given),
            )
        if adapter.kind == "generation":
            texts = self.texts(inputs, name, batch_size=batch_size, **options)
            return [Prediction(generated=text) for text in texts]
        if adapter.kind == "token-classification":
            tags = self.tags(inputs, name, batch_size=batch_size)
            words = [words_of(given, i) for i, given in enumerate(inputs)]
            return [read_tags(adapter, *both) for both in zip(words, tags, strict=True)]
        logits = self.logits(inputs, name, batch_size=batch_size)
        if adapter.kind == "multiple-choice":
            return read_choices(adapter, logits, [question_of(given, i)[1] for i, given in enumerate(inputs)])
        return read_logits(adapter, logits)

    def _labels(self, name: str) -> tuple[str, ...]:
        adapter = self.residents.named(name).adapter
        if adapter.kind != "token-classification":
            raise AdapterError(f"adapter {name!r} tags no words", expected="one tuned on a token-classification task")
        return adapter.task.labels or tuple(str(i) for i in range(adapter.head.num_labels or 0))
