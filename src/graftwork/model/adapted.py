"""AdaptedModel: a frozen backbone with adapters and their heads, called as one Hugging Face model."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from graftwork.bank import Lease, Resident
from graftwork.encoding import Encoder, Input
from graftwork.errors import AdapterError, DataError, nearest
from graftwork.heads.language import require_language_model
from graftwork.heads.losses import StepItems, of_one, of_several
from graftwork.inference.predicting import DEFAULT_BATCH_SIZE, Inference
from graftwork.inference.searching import generate, rows_of
from graftwork.kinds.prediction import Prediction
from graftwork.model.huggingface import HuggingFaceModel
from graftwork.passes.call import AdaptedOutput, Call
from graftwork.passes.sharing import for_each_row
from graftwork.passes.starts import CACHED_STATES, Start

MAIN_INPUTS = ("input_ids", "inputs_embeds", "pixel_values")
OTHER_INPUTS = ("attention_mask", "token_type_ids", "position_ids", "decoder_input_ids", "decoder_attention_mask")


class AdaptedModel(HuggingFaceModel):
    """A backbone with adapters, used like a Hugging Face model with a task head.

    `forward` takes the arguments of a Hugging Face model and returns a ModelOutput with `loss` and `logits`. Only
    adapters added with `trainable=True` have parameters that require gradients; everything else is frozen. The model
    starts in evaluation mode.

    The model can be used from several threads. Each adapter name refers to an immutable version. A call takes the
    versions that it needs when it begins and uses them until it ends, even if other threads replace or remove adapters
    in the meantime. One forward pass of the backbone runs at a time.

    A backbone belongs to one model, until `detach` is called or the model is no longer referenced.

    Args:
        backbone: the frozen model.
        adapters: adapters, or their folders, by name.
        allow_backbone_mismatch: accept adapters that were made for other weights of the same shape.
        backbone_dropout: keep the backbone's own dropout in training mode. Off by default, so that the frozen part is
            deterministic.
        budget: maximum number of bytes for adapters on the device. Beyond it, the adapters that have not been used for
            longest are unloaded until they are used again. None: no maximum.

    Raises:
        BackboneError: the backbone is in use by another model.
        AdapterError: an adapter is damaged or does not fit the backbone.
    """

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        pixel_values: Tensor | None = None,
        decoder_input_ids: Tensor | None = None,
        decoder_attention_mask: Tensor | None = None,
        labels: Tensor | Mapping[str, Tensor] | None = None,
        targets: Tensor | Mapping[str, Tensor] | None = None,
        cached_states: Tensor | None = None,
        adapters: str | Sequence[str | None] | None = None,
        num_items_in_batch: StepItems | None = None,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
        return_dict: bool | None = None,
        teacher_outputs: Mapping[str, Tensor] | None = None,
    ) -> AdaptedOutput | tuple[Any, ...]:
        """One forward pass of the backbone with an adapter and its head.

        Args:
            input_ids: (B, T) token ids; for multiple choice (B, C, T).
            attention_mask: (B, T), 0 for padding; for multiple choice (B, C, T), where a choice with only zeros is
                absent and has the logit -inf. A single row applies to all rows, as it does for `token_type_ids`,
                `position_ids` and the decoder's inputs.
            token_type_ids: (B, T) or (B, C, T), which text of a pair each token belongs to.
            position_ids: (B, T) or (B, C, T), the positions of the tokens.
            inputs_embeds: (B, T, d) embeddings, instead of `input_ids`.
            pixel_values: (B, channels, height, width), for image backbones.
            decoder_input_ids: (B, T'), for an encoder-decoder. By default derived from the labels in generation,
                otherwise one start token per row.
            decoder_attention_mask: (B, T'), 0 for padding of the decoder's inputs.
            labels: (B,) class ids, indices of choices, or numbers for regression; (B, T) ids of tags or tokens, with
                -100 where there is no label. If they are given, the output has a loss. If each row has its own adapter:
                such a tensor for all rows, or a mapping from adapter names to tensors.
            targets: (B, C, T), for multiple choice scored by likelihood: the tokens of each choice, -100 elsewhere. Or
                a mapping from adapter names, as for `labels`.
            cached_states: (B, n) or (B, T, n), for multiple choice (B, C, n) or (B, C, T, n): the result of
                `states_to_cache` for these rows; the pass begins with them.
            adapters: the name of the adapter; or one entry per row, a name or None for the backbone alone. Optional if
                there is only one adapter.
            num_items_in_batch: the number of items to average the loss over when gradients are accumulated: the number
                of labels in all batches of the step, as `transformers.Trainer` passes it, or the result of the head's
                `step_counts`. If each row has its own adapter, a mapping from adapter names. By default the loss is the
                mean over this batch.
            output_hidden_states: return `hidden_states`.
            output_attentions: return `attentions`.
            return_dict: False returns a tuple.
            teacher_outputs: what teachers say of these rows, for an adapter that learns from them: `logits` of the
                shape of its own, and `vectors` (B, d). Only a loss of distillation reads them.

        Returns:
            `loss` (if there are labels), `logits` in float32 (B, C), for tags (B, T, C), in generation (B, T, V), and
            `hidden_states` and `attentions` if requested. If each row has its own adapter: `rows`, the logits of each
            row; `losses`, the loss of each adapter that has labels, over its rows; `loss`, their sum; and
            `last_hidden_state`.

        Raises:
            AdapterError: no adapter has that name; the backbone does not take an argument; or labels, targets or counts
                are given for an adapter that no row uses.
        """
        given = {
            "input_ids": input_ids,
            "attention_mask": attention_mask,
            "token_type_ids": token_type_ids,
            "position_ids": position_ids,
            "inputs_embeds": inputs_embeds,
            "pixel_values": pixel_values,
            "decoder_input_ids": decoder_input_ids,
            "decoder_attention_mask": decoder_attention_mask,
        }
        inputs = {name: value for name, value in given.items() if value is not None}
        self._refuse(inputs)
        main = next((inputs[name] for name in MAIN_INPUTS if name in inputs), next(iter(inputs.values())))
        inputs = for_each_row(inputs, len(main))
        if cached_states is not None:
            inputs[CACHED_STATES] = cached_states
        names, lease = self._lease(adapters, len(main))
        one = adapters is None or isinstance(adapters, str)
        by_name = {"labels": labels, "targets": targets} | ({} if one else {"num_items_in_batch": num_items_in_batch})
        for argument, given_by_name in by_name.items():
            _refuse_unknown_names(argument, given_by_name, names)
        items = of_one(num_items_in_batch, names[0]) if one else of_several(num_items_in_batch, labels)
        call = Call.of(
            lease,
            labels=labels,
            targets=targets,
            items=items,
            teacher=teacher_outputs,
            training=self.training,
            output_hidden_states=output_hidden_states,
            output_attentions=output_attentions,
        )
        result = self._runner.one(names[0], inputs, call) if one else self._runner.several(names, inputs, call)
        return result if return_dict is not False else result.to_tuple()

    def generate(self, *args: Any, adapters: str | Sequence[str | None] | None = None, **options: Any) -> Any:
        """Generate tokens with the backbone's own `generate` and an adapter, without dropout.

        Args:
            args: positional arguments of transformers' `generate`.
            adapters: as for `forward`.
            options: keyword arguments of transformers' `generate`.

        Returns:
            The result of transformers' `generate`.

        Raises:
            BackboneError: the backbone has no language-model head.
            AdapterError: no adapter has that name; or some adapters cannot share one search, and an output was
                requested that cannot be joined from several.
        """
        require_language_model(self.backbone)
        names, lease = self._lease(adapters, rows_of(args, options))
        return generate(self._runner, lease, names, args, options)

    def inference(self, adapters: str | Iterable[str]) -> Inference:
        """Predictions by adapters as they are at this moment.

        Raises:
            AdapterError: no adapter of one of the names.
        """
        self.backbone.require_taken(self.graft)
        names = [adapters] if isinstance(adapters, str) else adapters
        return Inference(self._runner, self.residents.lease(names), self)

    def encoder(self, adapter: str) -> Encoder:
        """The encoder that turns inputs of an adapter's task into the backbone's inputs.

        Raises:
            AdapterError: no adapter has that name.
        """
        return self.residents.named(adapter).encoder

    def predict(
        self,
        inputs: Sequence[Input],
        adapters: str | Sequence[str] | None = None,
        *,
        batch_size: int = DEFAULT_BATCH_SIZE,
        max_new_tokens: int | None = None,
        num_beams: int | None = None,
    ) -> list[Prediction]:
        """Predict for a list of inputs.

        Args:
            inputs: depending on the kind of task: strings, or pairs of strings for tasks over pairs; for token
                classification, lists of words, or strings, which are split at white space; for multiple choice,
                `(question, [choice, ...])`, or a dict with `text` and `choices`; for generation, strings; for images,
                PIL images or paths.
            adapters: one adapter name for all inputs, or one for each. Optional if there is only one adapter.
            batch_size: number of inputs in a forward pass. Inputs of the same adapter share passes; so do all inputs of
                text classification and regression.
            max_new_tokens: for generation: maximum number of generated tokens. None: as in training.
            num_beams: for generation: number of beams. None: as in training.

        Returns:
            One prediction per input, in the same order.

        Raises:
            AdapterError: no adapter has that name; the number of names is not that of the inputs; or a score is NaN or
                infinite.
            DataError: a single string was given instead of a list; or an input does not suit the task.
            BackboneError: the backbone has no tokenizer or image processor.
            RecipeError: the batch size is below 1; or generation settings are given for an adapter that does not
                generate.
        """
        if isinstance(inputs, str):
            raise DataError("one string was given", expected="a list of texts")
        names, lease = self._lease(adapters, len(inputs))
        return Inference(self._runner, lease, self).predict(
            inputs, names, batch_size=batch_size, max_new_tokens=max_new_tokens, num_beams=num_beams
        )

    def logits(
        self, inputs: Sequence[Input], adapter: str, *, batch_size: int = DEFAULT_BATCH_SIZE
    ) -> Float[Tensor, "N C"]:
        """The logits of N inputs, in the same order, on the CPU, without dropout: one for each class, number or choice,
        with -inf where an input has fewer choices than another.

        Inputs of similar length share a forward pass.

        Args:
            inputs: as for `predict`.
            adapter: the name of the adapter.
            batch_size: number of inputs in a forward pass.

        Raises:
            AdapterError: no adapter has that name; its task does not have one row of logits per input; or a logit is
                NaN or infinite.
            DataError, BackboneError, RecipeError: as `predict`.
        """
        return self.inference(adapter).logits(inputs, adapter, batch_size=batch_size)

    def tags(self, inputs: Sequence[Input], adapter: str, *, batch_size: int = DEFAULT_BATCH_SIZE) -> list[list[str]]:
        """The tag of each word of each input, for token classification.

        Words beyond the maximum length are tagged O.

        Args:
            inputs: lists of words, or strings, which are split at white space.
            adapter: the name of the adapter.
            batch_size: number of inputs in a forward pass.

        Raises:
            AdapterError: no adapter has that name; it is not for token classification; or a score is NaN or infinite.
            DataError, BackboneError, RecipeError: as `predict`.
        """
        return self.inference(adapter).tags(inputs, adapter, batch_size=batch_size)

    def texts(
        self,
        inputs: Sequence[str],
        adapter: str,
        *,
        batch_size: int = DEFAULT_BATCH_SIZE,
        max_new_tokens: int | None = None,
        num_beams: int | None = None,
    ) -> list[str]:
        """The text generated from each input, without white space around it, for generation.

        The search is greedy, or a beam search; to sample, call `generate`.

        Args:
            inputs: the source texts.
            adapter: the name of the adapter.
            batch_size: number of inputs in a forward pass.
            max_new_tokens: maximum number of generated tokens. None: as in training.
            num_beams: number of beams. None: as in training.

        Raises:
            AdapterError: no adapter has that name; it does not generate; or a score is NaN or infinite.
            DataError, BackboneError, RecipeError: as `predict`.
        """
        return self.inference(adapter).texts(
            inputs, adapter, batch_size=batch_size, max_new_tokens=max_new_tokens, num_beams=num_beams
        )

    def sharing(self, names: Sequence[str]) -> list[list[str]]:
        """Group adapters by whether their rows can share a forward pass.

        Raises:
            AdapterError: an adapter of that name does not exist.
        """
        lease = self.residents.lease(names)
        residents: dict[str | None, Resident | None] = {name: lease[name] for name in names}
        return [[name for name in group if name is not None] for _, group in self._runner.groups(residents)]

    @contextmanager
    def beginning(self, start: Start) -> Iterator[None]:
        """Inside, passes that are given `cached_states` begin at a start; afterwards none do, also after an exception.

        Raises:
            BackboneError: the layers above the start need more of those below than their states; or passes begin
                somewhere already.
        """
        with self._runner.beginning(start):
            yield

    def states_to_cache(self, adapter: str, **inputs: Tensor) -> Tensor:
        """The states of rows that passes which begin where `beginning` says are given: (B, n) or (B, T, n).
        Without dropout and gradients.

        Args:
            inputs: as `forward` takes them; of multiple choice, a row for each choice.
        """
        with torch.no_grad():
            return self._runner.states_to_cache(adapter, inputs, self.residents.lease([adapter]))

    def _refuse(self, inputs: Mapping[str, Tensor]) -> None:
        accepted = self._runner.forward_arguments
        refused = sorted(inputs.keys() - accepted)
        if refused:
            raise AdapterError(
                f"the backbone's forward does not take {', '.join(refused)}",
                expected=", ".join(sorted(accepted & {*MAIN_INPUTS, *OTHER_INPUTS})),
            )
        if not inputs:
            raise AdapterError(
                "the forward pass has no inputs", expected=" or ".join(name for name in MAIN_INPUTS if name in accepted)
            )

    def _lease(self, adapters: str | Sequence[str | None] | None, rows: int) -> tuple[list[str | None], Lease]:
        """One name a row, None for the backbone alone; and what the names stand for at this moment."""
        self.backbone.require_taken(self.graft)
        names: list[str | None]
        if adapters is None:
            there = list(self.residents)
            if len(there) != 1:
                raise AdapterError(
                    f"the model has {len(there)} adapters, and none was named",
                    expected=f"adapters={nearest('', there)}",
                )
            names = [*there] * rows
        elif isinstance(adapters, str):
            names = [adapters] * rows
        elif len(adapters) == rows:
            names = list(adapters)
        else:
            raise AdapterError(f"{len(adapters)} adapter names were given for {rows} rows", expected="one name per row")
        given = [adapters] if isinstance(adapters, str) else dict.fromkeys(names)
        return names, self.residents.lease(name for name in given if name is not None)


def _refuse_unknown_names(argument: str, given: object, names: Sequence[str | None]) -> None:
    """Refuse a mapping by the names of adapters where no row has one of them.

    Raises:
        AdapterError: names them.
    """
    unknown = [] if not isinstance(given, Mapping) else sorted({str(name) for name in given} - {*map(str, names)})
    if unknown:
        here = sorted({name for name in names if name is not None})
        raise AdapterError(
            f"{argument} are given for {', '.join(unknown)}, and no row has such an adapter",
            expected=f"a mapping by {', '.join(here)}" if here else "rows with adapters",
        )
