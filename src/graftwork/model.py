"""AdaptedModel: a frozen backbone with adapters and their heads, called as one Hugging Face model."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import deepcopy
from pathlib import Path
from threading import Lock
from typing import Any
from weakref import finalize

import torch
import torch.nn as nn
from jaxtyping import Float
from torch import Tensor
from torch.nn.modules.module import _IncompatibleKeys
from transformers import GenerationConfig, PretrainedConfig

from graftwork.adapters import Adapter
from graftwork.backbones import Backbone
from graftwork.bank import Bank, Lease, Memory, Merged, Resident, Trained, Version
from graftwork.encoding import Encoder, Input
from graftwork.errors import AdapterError, DataError, SiteError, nearest
from graftwork.grafting import Graft, Recomputing
from graftwork.grafting.merging import merged_modules
from graftwork.heads import LanguageHead
from graftwork.heads.language import require_language_model
from graftwork.heads.losses import StepItems, of_one, of_several
from graftwork.inference.predicting import DEFAULT_BATCH_SIZE, Inference
from graftwork.inference.prediction import Prediction
from graftwork.inference.searching import generate, rows_of
from graftwork.passes.running import AdaptedOutput, Call, Runner
from graftwork.passes.sharing import for_each_row
from graftwork.passes.starts import KEPT, Start
from graftwork.saving import labelled, load_state, rebuilt, save_only_one, state_in_training, trained_of

MAIN_INPUTS = ("input_ids", "inputs_embeds", "pixel_values")
OTHER_INPUTS = ("attention_mask", "token_type_ids", "position_ids", "decoder_input_ids", "decoder_attention_mask")


class AdaptedModel(nn.Module):
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

    accepts_loss_kwargs = True

    def __init__(
        self,
        backbone: Backbone,
        adapters: Mapping[str, Adapter | str | Path] | None = None,
        *,
        allow_backbone_mismatch: bool = False,
        backbone_dropout: bool = False,
        budget: int | None = None,
    ) -> None:
        super().__init__()
        self.graft = Graft(backbone, dropout=backbone_dropout)
        backbone.take(self.graft)
        self.backbone = backbone
        self.model = backbone.model
        self.allow_backbone_mismatch = allow_backbone_mismatch
        self.backbone_dropout = backbone_dropout
        self.residents = Bank(budget)
        self.trained = nn.ModuleList()
        self._runner = Runner(backbone, self.graft, self.residents)
        self._recomputing = Recomputing(self.graft)
        self._noting = Lock()
        self._note_changes()
        # The model goes when nobody holds it any more, and gives the backbone its modules back.
        finalize(self, _let_go, self.graft, self._recomputing).atexit = False
        try:
            for name, adapter in (adapters or {}).items():
                self.add(name, adapter)
        except BaseException:
            self.detach()
            raise
        self.eval()

    # -- adapters ----------------------------------------------------------------------------------------------------

    def add(self, name: str, adapter: Adapter | str | Path, *, trainable: bool = False, pinned: bool = False) -> None:
        """Put an adapter on the backbone. Calls that run at the moment do not see it.

        Args:
            adapter: an adapter, or its folder, which is read once.
            trainable: its parameters become parameters of this module, and gradients reach them.
            pinned: it is never unloaded to keep within the budget of bytes.

        Raises:
            AdapterError: the name is taken; the adapter is damaged or does not suit the backbone; or there is no room
                for it. Nothing has changed then.
        """
        with self.residents.coming(name):
            self._put(name, adapter, trainable=trainable, pinned=pinned, replaced=None)

    def replace(self, name: str, adapter: Adapter | str | Path, *, pinned: bool | None = None) -> None:
        """Put an adapter in the place of one. Calls that run at the moment go on with the old one, and those that begin
        afterwards have the new one.

        Args:
            adapter: an adapter, or its folder, which is read once.
            pinned: it is never unloaded to keep within the budget of bytes; None: as it was for the old one.

        Raises:
            AdapterError: there is none of that name; it is merged; the new one is damaged or does not suit the
                backbone; or there is no room for it. The old one is in its place then.
        """
        self._put(name, adapter, trainable=False, pinned=pinned, replaced=self.residents.named(name))

    def _put(
        self,
        name: str,
        adapter: Adapter | str | Path,
        *,
        trainable: bool,
        pinned: bool | None,
        replaced: Resident | None,
    ) -> None:
        with self._taking():
            self.residents.require_unmerged(name)
            given = isinstance(adapter, Adapter)
            adapter = adapter if isinstance(adapter, Adapter) else Adapter.load(adapter)
            adapter.check(self.backbone, allow_mismatch=self.allow_backbone_mismatch)
            resident: Resident
            if trainable:
                resident = Trained(adapter, self.backbone).train(self.training)
            else:
                resident = Version(adapter, self.backbone, owned=not given, folder=self.residents.folder)
            with self.residents.room(resident, name, leaving=replaced), self.graft.lock:
                # Another thread may have detached the model meanwhile.
                self.backbone.require_taken(self.graft)
                self.graft.attach(resident.sites)
                self.residents.put(name, resident, pinned=pinned, replaced=replaced)
            self._note_changes()

    @contextmanager
    def _taking(self) -> Iterator[None]:
        """Inside, the backbone is this model's. After a failure it is not, where it was not so before and no other
        thread has put an adapter on it meanwhile."""
        held = self.backbone.is_taken_by(self.graft)
        self.backbone.take(self.graft)
        try:
            yield
        except BaseException:
            with self.graft.lock:
                if not held and not self.residents:
                    self.detach()
            raise

    def remove(self, name: str) -> None:
        """Take an adapter off. Calls that run at the moment go on with it.

        Raises:
            AdapterError: there is none of that name.
        """
        if self.merged == name:
            self.unmerge()
        self.residents.drop(name)
        self._note_changes()

    def memory(self) -> Memory:
        """What adapters take on the device, and which are unloaded."""
        return self.residents.memory()

    def adapter(self, name: str) -> Adapter:
        """The adapter of that name with its parameters as they are now.

        Raises:
            AdapterError: there is none of that name.
        """
        return self.residents.named(name).snapshot()

    def in_training(self, name: str) -> Trained:
        """The adapter of that name as the module whose parameters are trained.

        Raises:
            AdapterError: there is none of that name; or it is not being trained.
        """
        resident = self.residents.named(name)
        if not isinstance(resident, Trained):
            raise AdapterError(
                f"adapter {name!r} is not being trained", expected="an adapter that was added with trainable=True"
            )
        return resident

    @property
    def merged(self) -> str | None:
        """The name of the adapter that is in the backbone's weights; None when there is none."""
        merged = self.residents.merged
        return None if merged is None else merged.name

    def merge(self, name: str) -> None:
        """Put an adapter into the backbone's weights, so that it costs nothing in a pass. Its head acts as before.

        The new weights are computed in float64 and rounded once to the backbone's precision. The backbone's own are
        kept, untouched: other adapters go on beside those.

        Raises:
            AdapterError: there is none of that name; one is merged already; it is being trained; or one of its ops
                cannot be put into weights. Nothing has changed then.
        """
        version = self.residents.named(name)
        self.residents.require_none_merged()
        if not isinstance(version, Version):
            raise AdapterError(
                f"adapter {name!r} is being trained: in the weights, no gradient would reach it",
                expected="an adapter that was added without trainable=True",
            )
        try:
            with torch.inference_mode(False), torch.no_grad():
                modules = merged_modules(version.exact_ops(), self.backbone)
        except SiteError as error:
            raise AdapterError(
                f"adapter {name!r} of method {version.adapter.method.name!r} cannot be merged: {error.problem}",
                expected="run it without merge()",
            ) from error
        with self.graft.lock:
            self.residents.merge(Merged(name, version, modules))
            self.graft.rest(modules)

    def unmerge(self) -> None:
        """Give the backbone its own weights back, the very tensors. Does nothing when no adapter is merged."""
        with self.graft.lock:
            self.residents.merge(None)
            self.graft.rest()

    def detach(self) -> Backbone:
        """Take everything off. The backbone has its very modules back, and its outputs and state dict are bit for bit
        what they were; another model may take it. The pass that runs is waited for. If it is interrupted, call it
        again.

        Raises:
            SiteError: a pass of this very thread runs.
        """
        with self.graft.lock:
            self.graft.require_outside()
            self.unmerge()
            self.residents.clear()
            self._note_changes()
            _let_go(self.graft, self._recomputing)
        return self.backbone

    def _note_changes(self) -> None:
        """Have the parameters of what is trained be parameters of this module, and the configuration be that of what
        is here."""
        with self._noting:
            residents = self.residents.lease(self.residents).residents
            trained = list(trained_of(residents).values())
            if list(self.trained) != trained:
                self.trained = nn.ModuleList(trained)
            self._config = labelled(self.backbone.config, [resident.adapter for resident in residents.values()])

    # -- running -----------------------------------------------------------------------------------------------------

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
        kept: Tensor | None = None,
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
            kept: (B, n) or (B, T, n), of multiple choice (B, C, n) or (B, C, T, n): what `keep` gave of these rows; the
                pass begins with it.
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
        if kept is not None:
            inputs[KEPT] = kept
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
        """Inside, passes that are given what is `kept` begin at a start; afterwards none do, also after an exception.

        Raises:
            BackboneError: the layers above the start need more of those below than their states; or passes begin
                somewhere already.
        """
        with self._runner.beginning(start):
            yield

    def keep(self, adapter: str, **inputs: Tensor) -> Tensor:
        """What is to be kept of rows, for passes that begin where `beginning` says: (B, n) or (B, T, n). Without
        dropout and gradients.

        Args:
            inputs: as `forward` takes them; of multiple choice, a row for each choice.
        """
        with torch.no_grad():
            return self._runner.keep(adapter, inputs, self.residents.lease([adapter]))

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
                "a pass has no inputs", expected=" or ".join(name for name in MAIN_INPUTS if name in accepted)
            )

    def _lease(self, adapters: str | Sequence[str | None] | None, rows: int) -> tuple[list[str | None], Lease]:
        """One name a row, None for the backbone alone; and what the names stand for at this moment."""
        self.backbone.require_taken(self.graft)
        names: list[str | None]
        if adapters is None:
            there = list(self.residents)
            if len(there) != 1:
                raise AdapterError(
                    f"{len(there)} adapters are here, and none was named", expected=f"adapters={nearest('', there)}"
                )
            names = [*there] * rows
        elif isinstance(adapters, str):
            names = [adapters] * rows
        elif len(adapters) == rows:
            names = list(adapters)
        else:
            raise AdapterError(f"{len(adapters)} adapter names were given for {rows} rows", expected="one name a row")
        given = [adapters] if isinstance(adapters, str) else dict.fromkeys(names)
        return names, self.residents.lease(name for name in given if name is not None)

    # -- what nn.Module and Hugging Face expect ------------------------------------------------------------------------

    @property
    def config(self) -> PretrainedConfig:
        """The backbone's configuration; where one adapter is here, with its labels."""
        return self._config

    @property
    def device(self) -> torch.device:
        return self.backbone.device

    @property
    def generation_config(self) -> GenerationConfig | None:
        """The backbone's, with which `generate` begins; None where it does not generate."""
        return getattr(self.backbone.model, "generation_config", None)

    @generation_config.setter
    def generation_config(self, config: GenerationConfig | None) -> None:
        self.backbone.model.generation_config = config  # type: ignore[assignment] # as transformers has it

    def can_generate(self) -> bool:
        """Whether the backbone has a language-model head, with which it generates text."""
        return self.backbone.generates

    @property
    def loss_type(self) -> str | None:
        """Tells `transformers.Trainer` to leave the first token of each row out when it counts labels: where all that
        is trained is generation by a causal model, which says nothing of that token.
        """
        heads = [
            trained.adapter.head for trained in trained_of(self.residents.lease(self.residents).residents).values()
        ]
        shifted = [isinstance(head, LanguageHead) and head.shifted for head in heads]
        return "ForCausalLM" if shifted and all(shifted) else None

    def train(self, mode: bool = True) -> "AdaptedModel":
        """Training mode for adapters and heads; for the backbone's own dropout only when it was asked for. It holds for
        `forward`; predictions and generation are without dropout in either mode.
        """
        # The backbone's modules are in this mode for the length of a pass.
        self.training = mode
        self.trained.train(mode)
        return self

    def activation_checkpointing_enable(
        self, activation_checkpointing_kwargs: dict[str, Any] | None = None, **options: Any
    ) -> None:
        """Recompute layers in the backward pass instead of keeping their activations; ops act in the recomputation too.

        Raises:
            AdapterError: reentrant checkpointing, which cannot carry what acts into the recomputation.
            BackboneError: the backbone cannot recompute its layers.
        """
        self._recomputing.enable(activation_checkpointing_kwargs, **options)

    def activation_checkpointing_disable(self) -> None:
        """Keep activations again."""
        self._recomputing.disable()

    def gradient_checkpointing_enable(
        self, gradient_checkpointing_kwargs: dict[str, Any] | None = None, **options: Any
    ) -> None:
        """The older name of `activation_checkpointing_enable`."""
        self.activation_checkpointing_enable(gradient_checkpointing_kwargs, **options)

    def gradient_checkpointing_disable(self) -> None:
        """The older name of `activation_checkpointing_disable`."""
        self.activation_checkpointing_disable()

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "AdaptedModel":
        """Moves all, and casts the backbone; adapters stay float32, and are rounded for it anew."""
        with self.graft.lock:
            merged = self.merged
            self.unmerge()
            try:
                super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
            finally:
                self.residents.unload()
                if merged is not None:
                    self.merge(merged)
        return self

    def state_dict(  # type: ignore[override] # of torch's overloads, the one that there is
        self, *, destination: dict[str, Any] | None = None, prefix: str = "", keep_vars: bool = False
    ) -> dict[str, Any]:
        """The tensors of the adapters that are trained, as `NAME.TENSOR`: the backbone is not among them, so that a
        checkpoint of transformers' Trainer is the adapters. `backbone.model.state_dict()` is the backbone's.

        Raises:
            AdapterError: adapters are here, and none of them is trained.
        """
        found = {} if destination is None else destination
        for name, tensor in state_in_training(self.residents.lease(self.residents).residents).items():
            found[prefix + name] = tensor if keep_vars else tensor.detach()
        return found

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        """Overwrite the tensors of the adapters that are trained with what `state_dict` gave.

        Raises:
            AdapterError: names are missing or unknown, or adapters are here of which none is trained, and `strict` is
                on; or a shape is another one.
        """
        residents = self.residents.lease(self.residents).residents
        return _IncompatibleKeys(*load_state(residents, state_dict, strict=strict))

    def save_pretrained(self, save_directory: str | Path, *, overwrite: bool = False) -> None:
        """Write the folder of the one adapter that is here, as `Adapter.save` does. The backbone is not in it.

        Raises:
            AdapterError: there is none, or there are several.
            OutputError: the folder exists already.
        """
        save_only_one({name: self.adapter(name) for name in self.residents}, Path(save_directory), overwrite=overwrite)

    def __reduce_ex__(self, protocol: Any) -> Any:
        """A copy, and what is pickled, is made anew of a copy of the backbone and the adapters as they are now."""
        with self.graft.lock:
            lease = self.residents.lease(self.residents)
            recomputed = self._recomputing.on
            try:
                self.graft.rest()
                with self._recomputing.paused():
                    backbone = deepcopy(self.backbone)
            finally:
                self.graft.rest(None if lease.merged is None else lease.merged.modules)
        adapters = {
            name: (resident.snapshot(), resident.trainable, self.residents.pinned(name))
            for name, resident in lease.residents.items()
        }
        options = {
            "allow_backbone_mismatch": self.allow_backbone_mismatch,
            "backbone_dropout": self.backbone_dropout,
            "budget": self.residents.budget,
        }
        merged = None if lease.merged is None else lease.merged.name
        return rebuilt, (type(self), backbone, adapters, options, merged, recomputed, self.training)

    def __deepcopy__(self, memo: Any) -> "AdaptedModel":
        make, parts = self.__reduce_ex__(4)
        return make(*parts)  # type: ignore[no-any-return]


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


def _let_go(graft: Graft, recomputing: Recomputing) -> None:
    """Give a backbone its own modules back, and let another model take it."""
    graft.detach()
    recomputing.let_go()
    graft.backbone.release(graft)
