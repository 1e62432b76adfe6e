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
    """A backbone and the adapters on it.

    Takes the place of a Hugging Face model with a task head: `forward` has its arguments and returns a ModelOutput
    with `loss` and `logits`. Only a trainable adapter has parameters that require gradients; all else is frozen. Starts
    in evaluation mode.

    What a name stands for is an immutable version. A call leases the versions that it needs when it begins, and answers
    by them from the first token to the label, whatever other threads put under the names meanwhile. One pass of the
    backbone runs at a time, and calls of several threads take turns at that.

    The backbone is this model's until `detach`, or until nobody holds the model any more.

    Args:
        backbone: the frozen model.
        adapters: adapters, or their folders, by the name under which they are to run.
        allow_backbone_mismatch: accept adapters made for other weights of the same shape.
        backbone_dropout: keep the backbone's own dropout in training mode. Off by default: a frozen part needs none,
            and without it the frozen part is deterministic.
        budget: bytes that adapters may take on the device; past it, those that were not used for longest are unloaded
            until they are used again. None: there is no bound.

    Raises:
        BackboneError: another model is on the backbone.
        AdapterError: an adapter is damaged, or does not suit the backbone.
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
    ) -> AdaptedOutput | tuple[Any, ...]:
        """One pass of the backbone with an adapter, and its head.

        Args:
            input_ids, attention_mask, token_type_ids, position_ids: (B, T); for multiple choice (B, C, T), where a
                choice whose attention mask is all 0 is none, and has the logit -inf. All but the first may be of one
                row, which is then that of all rows; so may what is for the decoder.
            inputs_embeds: (B, T, d), in the place of input_ids.
            pixel_values: (B, channels, height, width), for a backbone of images.
            decoder_input_ids, decoder_attention_mask: (B, T'), for an encoder-decoder. Left out, they follow from the
                labels in generation, and else are one start token a row.
            labels: (B,) class ids, choices, or numbers for regression; (B, T) tags or token ids, -100 where there is
                none. With them the output has a loss. With a name a row, such a tensor, of which each adapter is given
                its rows; or tensors by the name of the adapter.
            targets: (B, C, T), each choice's own tokens, -100 elsewhere, where choices are judged by likelihood; or by
                the name of the adapter, as labels.
            cached_states: (B, n) or (B, T, n), of multiple choice (B, C, n) or (B, C, T, n): what `states_to_cache`
                gave for these rows; the pass begins with them.
            adapters: name of the adapter; or, for each row, a name, or None for the backbone alone. May be left out
                when there is only one adapter.
            num_items_in_batch: what the loss is a mean over where gradients are accumulated: the number of labels in
                all batches of the step, as `transformers.Trainer` gives it, or the head's `step_counts` of them; with a
                name a row, those by the name of the adapter. Left out, the loss is the mean over this batch.

        Returns:
            loss (when labels are given), logits in float32 ((B, C), (B, T, C) for tags, (B, T, V) in generation),
            hidden_states and attentions when asked for. With a name a row: `rows`, the logits of each row; `losses`, of
            each adapter that was given labels, over its rows; `loss`, their sum; and last_hidden_state.

        Raises:
            AdapterError: no adapter of that name; arguments that the backbone does not take; labels, targets or counts
                by the name of an adapter that no row has.
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
            training=self.training,
            output_hidden_states=output_hidden_states,
            output_attentions=output_attentions,
        )
        result = self._runner.one(names[0], inputs, call) if one else self._runner.several(names, inputs, call)
        return result if return_dict is not False else result.to_tuple()

    def generate(self, *args: Any, adapters: str | Sequence[str | None] | None = None, **options: Any) -> Any:
        """The backbone's own `generate`, with an adapter, without dropout.

        Args:
            args, options: as transformers' `generate` takes them.
            adapters: as for `forward`.

        Raises:
            BackboneError: the backbone has no language-model head.
            AdapterError: no adapter of that name; or adapters that cannot share a search are asked for what cannot be
                joined.
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
        """How the inputs of an adapter's task are read.

        Raises:
            AdapterError: no adapter of that name.
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
            AdapterError: no adapter of that name; not one name for each input; or a score is NaN or infinite.
            DataError: one string in the place of a list; or an input is not what its adapter's task takes.
            BackboneError: the backbone has no tokenizer or image processor.
            RecipeError: a batch size below 1; or settings of generation for an adapter that does not generate.
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
        """What an adapter's head says of N inputs, in their order, on the CPU, without dropout: classes, numbers or
        choices, with -inf where an input has fewer choices than another.

        Inputs of like length share a pass.

        Raises:
            AdapterError: no adapter of that name; its task has no one row of logits for an input; or one of them is NaN
                or infinite.
            DataError, BackboneError, RecipeError: as `predict`.
        """
        return self.inference(adapter).logits(inputs, adapter, batch_size=batch_size)

    def tags(self, inputs: Sequence[Input], adapter: str, *, batch_size: int = DEFAULT_BATCH_SIZE) -> list[list[str]]:
        """The tag of each word of each input, by an adapter for token classification.

        A word that the model is not given, because the text is cut before it, is tagged O.

        Raises:
            AdapterError: no adapter of that name; it tags no words; or a score is NaN or infinite.
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
        """The text that is generated of each input, without white space around it, by an adapter for generation.

        The likeliest text is looked for, greedily or by beams; to sample, call `generate`.

        Args:
            max_new_tokens, num_beams: in the place of what the adapter was tuned with.

        Raises:
            AdapterError: no adapter of that name; it does not generate; or a score is NaN or infinite.
            DataError, BackboneError, RecipeError: as `predict`.
        """
        return self.inference(adapter).texts(
            inputs, adapter, batch_size=batch_size, max_new_tokens=max_new_tokens, num_beams=num_beams
        )

    def sharing(self, names: Sequence[str]) -> list[list[str]]:
        """The adapters of these names, those together whose rows can share a pass.

        Raises:
            AdapterError: no adapter of one of the names.
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
