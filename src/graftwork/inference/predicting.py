"""What adapters say of texts, words, questions and images: without dropout and gradients, in any mode of the model."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from transformers import LogitsProcessor, LogitsProcessorList

from graftwork.backbones.quiet import quiet_transformers
from graftwork.bank import Lease
from graftwork.encoding import Encoder, GenerationEncoder, Input, TextEncoder
from graftwork.errors import AdapterError, RecipeError
from graftwork.heads import Items
from graftwork.inference.generating import generation_config
from graftwork.inference.searching import generate
from graftwork.kinds import KINDS
from graftwork.kinds.kind import Request
from graftwork.kinds.prediction import Prediction, check_finite, widen
from graftwork.kinds.token_classification import first_pieces, tags_of
from graftwork.passes.call import AdaptedOutput, Call
from graftwork.passes.running import Runner

DEFAULT_BATCH_SIZE = 32


class _Finite(LogitsProcessor):
    """Refuses scores of tokens of which none is the likeliest; those that may not come are -inf."""

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        check_finite(scores.max(dim=-1).values)
        return scores


class Inference:
    """Predictions by adapters as they were when they were leased: one version from the encoding to the label.

    Args:
        runner: runs the passes.
        lease: what the adapters' names stand for.
        model: whose runner it is; the backbone is the model's for as long as this is held.
    """

    def __init__(self, runner: Runner, lease: Lease, model: object) -> None:
        self._runner = runner
        self._lease = lease
        self._model = model

    def encoder(self, adapter: str) -> Encoder:
        """How the inputs of an adapter's task are read."""
        return self._lease[adapter].encoder

    def output(
        self, batch: Mapping[str, Tensor], adapters: str | Sequence[str], items: Items | None = None
    ) -> AdaptedOutput:
        """One forward pass, as `AdaptedModel.forward` gives it.

        Args:
            batch: its tensors, with labels and targets among them where there are some.
            adapters: one name for all rows, or a name for each.
            items: with one name, what the loss is a mean over, where that is more than this batch.
        """
        inputs = {name: tensor for name, tensor in batch.items() if name not in ("labels", "targets")}
        known: dict[str | None, Items] = {} if items is None or not isinstance(adapters, str) else {adapters: items}
        call = Call.of(self._lease, labels=batch.get("labels"), targets=batch.get("targets"), items=known)
        with torch.inference_mode():
            if isinstance(adapters, str):
                return self._runner.one(adapters, inputs, call)
            return self._runner.several(adapters, inputs, call)

    def predict(
        self,
        inputs: Sequence[Any],
        names: Sequence[str | None],
        *,
        batch_size: int,
        max_new_tokens: int | None,
        num_beams: int | None,
    ) -> list[Prediction]:
        """See `AdaptedModel.predict`.

        Args:
            names: of each input's adapter.
        """
        known = [name for name in names if name is not None]
        if len(known) < len(inputs):
            raise AdapterError("the backbone alone makes no predictions", expected="a name for each input")
        options = {"max_new_tokens": max_new_tokens, "num_beams": num_beams}
        found: dict[int, Prediction] = {}
        if len(set(known)) > 1 and not any(option is not None for option in options.values()):
            together = [i for i, name in enumerate(known) if isinstance(self.encoder(name), TextEncoder)]
            predicted = self._predict_together([inputs[i] for i in together], [known[i] for i in together], batch_size)
            found.update(zip(together, predicted, strict=True))
        for name in dict.fromkeys(known):
            rows = [i for i, other in enumerate(known) if other == name and i not in found]
            if rows:
                said = self._say(name, [inputs[i] for i in rows], batch_size, options)
                found.update(zip(rows, said, strict=True))
        return [found[i] for i in range(len(inputs))]

    def logits(self, inputs: Sequence[Input], adapter: str, *, batch_size: int) -> Float[Tensor, "N C"]:
        """See `AdaptedModel.logits`."""
        resident, encoder = self._lease[adapter], self.encoder(adapter)
        kind = KINDS[resident.adapter.kind]
        if kind.generates or kind.by_token:
            raise AdapterError(f"a {kind.name} task does not have one row of logits per input", expected="predict()")
        rows = encoder.encode(inputs)
        found: dict[int, Tensor] = {}
        for places, batch in encoder.batches(rows, batch_size):
            logits = self.output(batch, adapter).require("logits")
            found.update(zip(places, logits.cpu(), strict=True))
        for given, own in zip(inputs, (found[place] for place in range(len(found))), strict=True):
            check_finite(own[: kind.outputs_for(given)])
        return widen(found) if found else torch.empty(0, resident.adapter.head.num_labels or 1)

    def decide(self, logits: Tensor, mask: Tensor | None, adapter: str) -> Tensor:
        """What an adapter's head chooses, given what it said. See `Head.decide`."""
        resident = self._lease[adapter]
        with self._runner.bank.use([resident]):
            return resident.adapter.head.decide(logits, mask, resident.head())

    def tags(self, inputs: Sequence[Input], adapter: str, *, batch_size: int) -> list[list[str]]:
        """See `AdaptedModel.tags`."""
        encoder, labels = self.encoder(adapter), self._labels(adapter)
        rows = encoder.encode(inputs)
        found: dict[int, list[str]] = {}
        for places, batch in encoder.batches(rows, batch_size):
            logits = self.output(batch, adapter).require("logits")
            mask = first_pieces([rows[place] for place in places], logits)
            with torch.inference_mode():
                ids = self.decide(logits, mask, adapter).tolist()
            found |= {place: tags_of(rows[place], ids[i], labels) for i, place in enumerate(places)}
        return [found[i] for i in range(len(rows))]

    def texts(
        self,
        inputs: Sequence[str],
        adapter: str,
        *,
        batch_size: int,
        max_new_tokens: int | None = None,
        num_beams: int | None = None,
        advance: Callable[[int], None] | None = None,
    ) -> list[str]:
        """See `AdaptedModel.texts`.

        Args:
            advance: called after each pass with the number of its inputs.
        """
        encoder, task = self.encoder(adapter), self._lease[adapter].adapter.task
        if not isinstance(encoder, GenerationEncoder):
            raise AdapterError(f"adapter {adapter!r} does not generate", expected="one tuned on a generation task")
        usual = task.max_target_length if task.max_new_tokens is None else task.max_new_tokens
        config = generation_config(
            encoder,
            max_new_tokens=usual if max_new_tokens is None else max_new_tokens,
            num_beams=task.num_beams if num_beams is None else num_beams,
        )
        rows = encoder.encode(inputs)
        found: dict[int, str] = {}
        with quiet_transformers(), torch.inference_mode():
            for places, batch in encoder.batches(rows, batch_size):
                options = {**batch, "generation_config": config, "logits_processor": LogitsProcessorList([_Finite()])}
                made = generate(self._runner, self._lease, [adapter] * len(places), (), options)
                found.update(zip(places, encoder.read(made, batch), strict=True))
                if advance is not None:
                    advance(len(places))
        return [found[i] for i in range(len(rows))]

    def _predict_together(self, inputs: Sequence[Any], names: Sequence[str], batch_size: int) -> list[Prediction]:
        """What adapters for classification and regression say of texts, those of like length in one pass."""
        encoders = {name: self.encoder(name) for name in names}
        rows: dict[int, Any] = {}
        for name, encoder in encoders.items():
            places = [i for i, other in enumerate(names) if other == name]
            rows.update(zip(places, encoder.encode([inputs[i] for i in places]), strict=True))
        found: dict[int, Prediction] = {}
        if not rows:
            return []
        encoded = [rows[i] for i in range(len(names))]
        for places, batch in next(iter(encoders.values())).batches(encoded, batch_size):
            output = self.output(batch, [names[i] for i in places])
            for i, logits in zip(places, output.rows or (), strict=True):
                assert logits is not None
                adapter = self._lease[names[i]].adapter
                [found[i]] = KINDS[adapter.kind].read(adapter.task, adapter.head, logits[None].cpu(), [inputs[i]])
        return [found[i] for i in range(len(names))]

    def _say(
        self, name: str, inputs: Sequence[Any], batch_size: int, options: Mapping[str, int | None]
    ) -> list[Prediction]:
        """The predictions of one adapter."""
        adapter = self._lease[name].adapter
        given = [option for option, value in options.items() if value is not None]
        kind = KINDS[adapter.kind]
        if given and not kind.generates:
            raise RecipeError(
                f"adapter {name!r} does not generate and has no {' and '.join(given)}",
                change=", ".join("--" + option.replace("_", "-") for option in given),
            )
        request = Request(
            predictor=self,
            adapter=name,
            task=adapter.task,
            head=adapter.head,
            inputs=inputs,
            batch_size=batch_size,
            options=options,
        )
        return kind.answers(request)

    def _labels(self, name: str) -> tuple[str, ...]:
        adapter = self._lease[name].adapter
        if not KINDS[adapter.kind].by_token:
            raise AdapterError(f"adapter {name!r} tags no words", expected="one tuned on a token-classification task")
        return adapter.task.labels or tuple(str(i) for i in range(adapter.head.num_labels or 0))
