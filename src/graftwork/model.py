"""`AdaptedModel`: a frozen backbone with adapters on it, as one `nn.Module` with Hugging Face's forward signature."""

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn as nn
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor
from transformers import PretrainedConfig
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.utils.generic import ModelOutput

from graftwork.adapters import Adapter, Bank, Memory, Resident
from graftwork.backbones import Backbone
from graftwork.backbones.quiet import quiet_transformers
from graftwork.encoding import Encoder, GenerationEncoder, Input, TextEncoder, encoder_for, question_of, words_of
from graftwork.errors import AdapterError, DataError, RecipeError, SiteError, nearest
from graftwork.generating import generation_config
from graftwork.heads import States
from graftwork.heads.language import require_language_model
from graftwork.ops import Graft
from graftwork.ops.graft import Ops, check
from graftwork.ops.merging import put_into_weights
from graftwork.passes import Section, Share, Wanted, in_order, last_of, padded
from graftwork.prediction import Prediction, first_pieces, read_choices, read_logits, read_tags, tags_of, widen

DEFAULT_BATCH_SIZE = 32

MAIN_INPUTS = ("input_ids", "inputs_embeds", "pixel_values")
OTHER_INPUTS = ("attention_mask", "token_type_ids", "position_ids", "decoder_input_ids", "decoder_attention_mask")


@dataclass
class AdaptedOutput(ModelOutput):
    """What a pass gives.

    Shapes: loss (), logits (B, C), (B, T, C) for tags, (B, T, V) in generation. Where rows have adapters of their own,
    logits only if they are of one shape, last_hidden_state (B, T, d), rows (B times what one row has, None for the
    backbone alone) and losses (a scalar an adapter).
    """

    loss: Tensor | None = None
    logits: Tensor | None = None
    hidden_states: tuple[Tensor, ...] | None = None
    attentions: tuple[Tensor, ...] | None = None
    last_hidden_state: Tensor | None = None
    rows: tuple[Tensor | None, ...] | None = None
    losses: dict[str, Tensor] | None = None

    def require(self, name: Literal["loss", "logits"]) -> Tensor:
        """A tensor that is known to be there."""
        tensor = getattr(self, name)
        assert isinstance(tensor, Tensor)
        return tensor


class AdaptedModel(nn.Module):
    """A backbone and the adapters on it.

    Takes the place of a Hugging Face model with a task head: `forward` has its arguments and returns a ModelOutput
    (loss, logits), so that a Trainer takes it as it is. The backbone's parameters stay frozen. Only one
    AdaptedModel can be on a backbone at a time; `detach` frees it, and it is then bit for bit what it was.

    Args:
        backbone: the frozen model.
        adapters: adapters by the name under which they are called.
        allow_backbone_mismatch: accept adapters made for other weights of the same shape.
        backbone_dropout: whether the backbone's own dropout acts in training. Off by default: a frozen backbone needs
            none.
        budget: bytes that adapters may take on the device. Past it, those that were not used for longest are put away,
            and read again when they are next used.

    Raises:
        AdapterError: an adapter was made for another backbone, or its tensors are not what its method declares.
    """

    def __init__(
        self,
        backbone: Backbone,
        adapters: Mapping[str, Adapter] | None = None,
        *,
        allow_backbone_mismatch: bool = False,
        backbone_dropout: bool = False,
        budget: int | None = None,
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.model = backbone.model
        self.allow_backbone_mismatch = allow_backbone_mismatch
        self.backbone_dropout = backbone_dropout
        self.graft = Graft(backbone)
        self.residents = Bank(budget)
        self.merged: str | None = None
        self.trained = nn.ModuleList()
        self._checkpointing = False
        self._accepted = set(inspect.signature(backbone.model.forward).parameters)
        self._caches = "use_cache" in self._accepted
        # T5 with its language-model head is no T5 with a head on top: there is no inner model to run.
        self._decodes_whole = backbone.generates and not backbone.base_path
        try:
            for name, adapter in (adapters or {}).items():
                self.add(name, adapter)
        except BaseException:
            self.graft.detach()
            raise
        self.eval()

    # -- adapters ----------------------------------------------------------------------------------------------------

    def add(self, name: str, adapter: Adapter | str | Path, *, trainable: bool = False, pinned: bool = False) -> None:
        """Put an adapter on the backbone. Passes that run at the moment are waited for.

        Args:
            adapter: an adapter, or its folder, which has to stay where it is: its tensors are then not kept twice.
            trainable: its parameters become parameters of this module, and gradients reach them.
            pinned: it is never put away to keep within the budget of bytes.

        Raises:
            AdapterError: the name is taken; the adapter does not suit the backbone; or there is no room for it.
        """
        if name in self.residents:
            raise AdapterError(
                f"an adapter named {name!r} is here already", expected="another name, or replace(), or remove() first"
            )
        self._put(name, adapter, trainable=trainable, pinned=pinned)

    def replace(self, name: str, adapter: Adapter | str | Path, *, pinned: bool = False) -> None:
        """Put an adapter in the place of one. A pass runs with the old one or with the new one.

        Raises:
            AdapterError: there is none of that name; it is merged; the new one does not suit the backbone; or there is
                no room for it. The old one is in its place then.
        """
        self._resident(name)
        if name == self.merged:
            raise AdapterError(f"adapter {name!r} is merged into the backbone's weights", expected="unmerge() first")
        self._put(name, adapter, trainable=False, pinned=pinned)

    def _put(self, name: str, adapter: Adapter | str | Path, *, trainable: bool, pinned: bool) -> None:
        source = None if isinstance(adapter, Adapter) else Path(adapter)
        adapter = adapter if isinstance(adapter, Adapter) else Adapter.load(adapter)
        adapter.check(self.backbone, allow_mismatch=self.allow_backbone_mismatch)
        resident = Resident(adapter, self.backbone, trainable=trainable, source=None if trainable else source)
        ops = resident.ops()
        check(ops, self.backbone.sites)
        with self.graft.lock:
            before = self.residents.get(name)
            self.residents.put(name, resident, pinned=pinned)
            self.graft.attach(ops)
            if trainable or (before is not None and before.trainable):
                self.trained = nn.ModuleList(r for r in self.residents.values() if r.trainable)
            resident.train(self.training)
            self.graft.train(self.training)

    def remove(self, name: str) -> None:
        """Take an adapter off. Passes that run at the moment are waited for.

        Raises:
            AdapterError: there is none of that name.
        """
        with self.graft.lock:
            if name == self.merged:
                self.unmerge()
            resident = self.residents.drop(name)
            if resident.trainable:
                self.trained = nn.ModuleList(r for r in self.trained if r is not resident)

    def memory(self) -> Memory:
        """What adapters take on the device, and which are put away."""
        return self.residents.memory()

    def adapter(self, name: str) -> Adapter:
        """The adapter of that name with its parameters as they are now.

        Raises:
            AdapterError: there is none of that name.
        """
        return self._resident(name).snapshot()

    def merge(self, name: str) -> None:
        """Put an adapter into the backbone's weights, so that it costs nothing in a pass. Its head acts as before.

        The new weights are computed in float64 and rounded once to the backbone's precision. The backbone's own are
        kept beside them, untouched. Until `unmerge`, no other adapter can run.

        Raises:
            AdapterError: there is none of that name; one is merged already; it is being trained; or one of its ops
                cannot be put into weights. Nothing has changed then.
        """
        resident = self._resident(name)
        if self.merged is not None:
            raise AdapterError(f"adapter {self.merged!r} is merged already", expected="unmerge() first")
        if resident.trainable:
            raise AdapterError(
                f"adapter {name!r} is being trained: in the weights, no gradient would reach it",
                expected="an adapter that was added without trainable=True",
            )
        try:
            with torch.inference_mode(False), torch.no_grad():
                self.graft.merge(put_into_weights(resident.exact_ops(), self.backbone))
        except SiteError as error:
            raise AdapterError(
                f"adapter {name!r} of method {resident.adapter.method.name!r} cannot be merged: {error.problem}",
                expected="it beside the weights, as it is now",
            ) from error
        self.merged = name

    def unmerge(self) -> None:
        """Give the backbone its own weights back, the very tensors. Does nothing when no adapter is merged."""
        self.graft.unmerge()
        self.merged = None

    def detach(self) -> Backbone:
        """Take everything off. The backbone has its very modules back, and its outputs and state dict are bit for bit
        what they were.
        """
        self.unmerge()
        self.residents.clear()
        self.trained = nn.ModuleList()
        self.graft.detach()
        if self._checkpointing:
            self.gradient_checkpointing_disable()
        self.model.train(False)
        return self.backbone

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
        adapters: str | Sequence[str | None] | None = None,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
        return_dict: bool | None = None,
    ) -> AdaptedOutput | tuple[Any, ...]:
        """One pass of the backbone with an adapter, and its head.

        Args:
            input_ids, attention_mask, token_type_ids, position_ids: (B, T); for multiple choice (B, C, T), where a
                choice whose attention mask is all 0 is none, and has the logit -inf.
            inputs_embeds: (B, T, d), in the place of input_ids.
            pixel_values: (B, channels, height, width), for a backbone of images.
            decoder_input_ids, decoder_attention_mask: (B, T'), for an encoder-decoder. Left out, they follow from the
                labels in generation, and else are one start token a row.
            labels: (B,) class ids, choices, or numbers for regression; (B, T) tags or token ids, -100 where there is
                none. With them the output has a loss.
            targets: (B, C, T), each choice's own tokens, -100 elsewhere, where choices are judged by likelihood.
            adapters: name of the adapter; or, for each row, a name, or None for the backbone alone. May be left out
                when there is only one adapter.
            labels, targets: with a name a row, tensors as they are for one adapter, of which each adapter is given its
                rows; or such tensors by the name of the adapter.

        Returns:
            loss (when labels are given), logits in float32 ((B, C), (B, T, C) for tags, (B, T, V) in generation),
            hidden_states and attentions when asked for. With a name a row: `rows`, the logits of each row; `losses`, of
            each adapter that was given labels, over its rows; `loss`, their sum; and last_hidden_state.

        Raises:
            AdapterError: no adapter of that name; another one is merged; arguments that the backbone does not take.
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
        rows = next((len(inputs[name]) for name in MAIN_INPUTS if name in inputs), 1)
        wishes = {"output_hidden_states": output_hidden_states, "output_attentions": output_attentions}
        asked = {name: value for name, value in wishes.items() if value is not None}
        with self.graft.lock:
            names = self._names(adapters, rows)
            one = adapters is None or isinstance(adapters, str)
            wanted = Wanted(labels, targets)
            result = self._one(names[0], inputs, wanted, asked) if one else self._several(names, inputs, wanted, asked)
        return result if return_dict is not False else result.to_tuple()

    def generate(self, *args: Any, adapters: str | Sequence[str | None] | None = None, **options: Any) -> Any:
        """The backbone's own `generate`, with an adapter.

        Args:
            args, options: as transformers' `generate` takes them.
            adapters: as for `forward`.

        Raises:
            BackboneError: the backbone has no language-model head.
            AdapterError: no adapter of that name; several names in one pass.
        """
        require_language_model(self.backbone)
        given = args[0] if args else options.get("inputs", options.get("input_ids"))
        names = self._names(adapters, 1 if given is None else len(given))
        with self.graft.lock:
            shares = self._shares(names)
            if len(shares) == 1:
                with self.graft.run(self._acting(shares[0], in_order=True)):
                    return self.model.generate(*args, **options)  # type: ignore[operator]
            return self._generate_apart(shares, args, options)

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
        names = [name for name in self._names(adapters, len(inputs)) if name is not None]
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
        kind, encoder = self._resident(adapter).adapter.kind, self.encoder(adapter)
        if kind in ("token-classification", "generation"):
            raise AdapterError(f"a {kind} task has no one row of logits for an input", expected="predict()")
        rows = encoder.encode(inputs)
        found: dict[int, Tensor] = {}
        with self.resting():
            for places, batch in encoder.batches(rows, batch_size):
                output = self(**batch, adapters=adapter)
                found.update(zip(places, output.logits.cpu(), strict=True))
        return widen(found) if found else torch.empty(0, self._resident(adapter).adapter.head.num_labels or 1)

    def decide(self, logits: Tensor, mask: Tensor | None, adapter: str) -> Tensor:
        """What an adapter's head chooses, given what it said. See `Head.decide`."""
        resident = self._resident(adapter)
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
        encoder, task = self.encoder(adapter), self._resident(adapter).adapter.task
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
        return encoder_for(self.backbone, self._resident(adapter).adapter)

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
                    [found[i]] = read_logits(self._resident(names[i]).adapter, logits[None].cpu())
        return [found[i] for i in range(len(names))]

    def _say(
        self, name: str, inputs: Sequence[Any], batch_size: int, options: Mapping[str, int | None]
    ) -> list[Prediction]:
        """The predictions of one adapter."""
        adapter = self._resident(name).adapter
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
        adapter = self._resident(name).adapter
        if adapter.kind != "token-classification":
            raise AdapterError(f"adapter {name!r} tags no words", expected="one tuned on a token-classification task")
        return adapter.task.labels or tuple(str(i) for i in range(adapter.head.num_labels or 0))

    # -- what nn.Module and Hugging Face expect ------------------------------------------------------------------------

    @property
    def config(self) -> PretrainedConfig:
        """The backbone's configuration."""
        return self.backbone.config

    @property
    def device(self) -> torch.device:
        return self.backbone.device

    def train(self, mode: bool = True) -> "AdaptedModel":
        """Training mode for adapters and heads; for the backbone's own dropout only when it was asked for."""
        super().train(mode)
        self.model.train(mode and self.backbone_dropout)
        for module in self._recomputed():
            # transformers recomputes only layers in training mode; `_recompute` runs them in the backbone's own.
            module.training = mode
        self.graft.train(mode)
        return self

    def activation_checkpointing_enable(
        self, activation_checkpointing_kwargs: dict[str, Any] | None = None, **options: Any
    ) -> None:
        """Recompute layers in the backward pass instead of keeping their activations; ops act in the recomputation too.

        Raises:
            AdapterError: reentrant checkpointing, which cannot carry what acts into the recomputation.
        """
        given = dict(activation_checkpointing_kwargs or {})
        if given.get("use_reentrant"):
            raise AdapterError("reentrant gradient checkpointing is not supported", expected="use_reentrant=False")
        given |= {"use_reentrant": False, "context_fn": lambda: (nullcontext(), self.graft.run_again())}
        # transformers named it anew
        name = "activation" if hasattr(self.model, "activation_checkpointing_enable") else "gradient"
        getattr(self.model, f"{name}_checkpointing_enable")(given, **options)
        self._checkpointing = True
        for layer in self._recomputed():
            inner: Any = layer._gradient_checkpointing_func
            layer._gradient_checkpointing_func = partial(self._recompute, inner)  # type: ignore[assignment]
        self.train(self.training)

    def activation_checkpointing_disable(self) -> None:
        """Keep activations again."""
        name = "activation" if hasattr(self.model, "activation_checkpointing_disable") else "gradient"
        getattr(self.model, f"{name}_checkpointing_disable")()
        self.model.disable_input_require_grads()  # type: ignore[no-untyped-call]
        self._checkpointing = False
        self.train(self.training)

    def gradient_checkpointing_enable(
        self, gradient_checkpointing_kwargs: dict[str, Any] | None = None, **options: Any
    ) -> None:
        """The older name of `activation_checkpointing_enable`."""
        self.activation_checkpointing_enable(gradient_checkpointing_kwargs, **options)

    def gradient_checkpointing_disable(self) -> None:
        """The older name of `activation_checkpointing_disable`."""
        self.activation_checkpointing_disable()

    def _recomputed(self) -> list[GradientCheckpointingLayer]:
        """The layers that are recomputed in the backward pass."""
        found = self.model.modules() if self._checkpointing else ()
        return [module for module in found if isinstance(module, GradientCheckpointingLayer)]

    def _recompute(self, checkpoint: Callable[..., Any], forward: partial[Any], *args: Any) -> Any:
        """A layer run by a checkpointing function, with the backbone's own dropout as it was asked for."""
        layer = forward.args[0]

        def run(*inputs: Any) -> Any:
            mode, layer.training = layer.training, self.backbone_dropout
            try:
                return forward(*inputs)
            finally:
                layer.training = mode

        return checkpoint(run, *args)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "AdaptedModel":
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        for resident in self.residents.values():
            if not resident.trainable:
                resident._apply(fn)
        self.graft.apply(fn)
        return self

    # -- a pass --------------------------------------------------------------------------------------------------------

    def _refuse(self, inputs: Mapping[str, Tensor]) -> None:
        refused = sorted(inputs.keys() - self._accepted)
        if refused:
            raise AdapterError(
                f"the backbone's forward does not take {', '.join(refused)}",
                expected=", ".join(sorted(self._accepted & {*MAIN_INPUTS, *OTHER_INPUTS})),
            )

    def _one(
        self, name: str | None, inputs: Mapping[str, Tensor], wanted: Wanted, asked: Mapping[str, bool]
    ) -> AdaptedOutput:
        """A pass in which one adapter serves all rows."""
        rows = len(next(iter(inputs.values())))
        [share] = self._shares([name] * rows)
        output, [result] = self._run(share, inputs, wanted, asked)
        result.hidden_states, result.attentions = output.get("hidden_states"), output.get("attentions")
        return result

    def _several(
        self, names: Sequence[str | None], inputs: Mapping[str, Tensor], wanted: Wanted, asked: Mapping[str, bool]
    ) -> AdaptedOutput:
        """A pass, or as few as can be, in which each row has an adapter of its own."""
        logits: list[Tensor | None] = [None] * len(names)
        losses: dict[str, Tensor] = {}
        order: list[int] = []
        outputs = []
        for share in self._shares(names):
            output, results = self._run(share, share.of(inputs), wanted, asked)
            outputs.append(output)
            order += share.rows
            for (name, rows), result in zip(share.by_slot(), results, strict=True):
                if name is not None and result.loss is not None:
                    losses[name] = result.loss
                if result.logits is not None:
                    for row, own in zip(rows, result.logits, strict=True):
                        logits[row] = own
        known = [own for own in logits if own is not None]
        same = len(known) == len(names) and len({own.shape for own in known}) == 1
        return AdaptedOutput(
            loss=torch.stack(list(losses.values())).sum() if losses else None,
            logits=torch.stack(known) if same else None,
            **in_order(outputs, order),
            rows=tuple(logits),
            losses=losses or None,
        )

    def _shares(self, names: Sequence[str | None]) -> list[Share]:
        """Which rows share a pass: those whose adapters can, and whose heads read the backbone in one way."""
        distinct = list(dict.fromkeys(names))
        residents = dict.fromkeys(distinct) | {name: self._running(name) for name in distinct if name is not None}
        if None in residents and self.merged is not None:
            raise AdapterError(
                f"rows of the backbone alone cannot run while {self.merged!r} is merged into its weights",
                expected="unmerge() first",
            )
        self.residents.use([name for name in distinct if name is not None])
        groups: dict[tuple[Section, str | None], list[str | None]] = {}
        for name in distinct:
            resident = residents[name]
            apart = name if resident is not None and not resident.routed else None
            groups.setdefault((self._section_for(resident), apart), []).append(name)
        return [
            Share.of_rows(names, {name: residents[name] for name in group}, section)
            for (section, _), group in groups.items()
        ]

    def _section_for(self, resident: Resident | None) -> Section:
        """What of the backbone has to run for a head."""
        if resident is None:
            return "base"
        reads = resident.adapter.head.reads
        if self.backbone.is_encoder_decoder and reads in ("tokens", "layers"):
            return "encoder"
        return "root" if reads == "vocabulary" else "base"

    def _run(
        self, share: Share, inputs: Mapping[str, Tensor], wanted: Wanted, asked: Mapping[str, bool]
    ) -> tuple[Any, list[AdaptedOutput]]:
        """One pass over a share's rows: the backbone's output, and what each of its adapters says of its rows. An
        adapter whose method asks for more passes in training runs them by itself."""
        output, results = self._pass(share, inputs, wanted, asked)
        for i, resident in enumerate(share.residents):
            if resident is None or results[i].loss is None or not (self.training and resident.trainable):
                continue
            method, head = resident.adapter.method, resident.adapter.head
            start, end = share.span(i)
            mine = {name: tensor[start:end] for name, tensor in inputs.items()}
            for _ in range(method.passes - 1):
                _, [again] = self._pass(share.alone(i), mine, wanted, {})
                apart = head.divergence(results[i].require("logits"), again.require("logits"))
                results[i].loss = results[i].require("loss") + apart
        return output, results

    def _pass(
        self, share: Share, inputs: Mapping[str, Tensor], wanted: Wanted, asked: Mapping[str, bool]
    ) -> tuple[Any, list[AdaptedOutput]]:
        """One pass with what acts in it drawn anew."""
        choices = inputs["input_ids"].shape[1] if "input_ids" in inputs and inputs["input_ids"].dim() == 3 else 1
        inputs = {name: value.flatten(0, 1) if choices > 1 else value for name, value in inputs.items()}
        absent = None
        if choices > 1 and "attention_mask" in inputs:
            absent = ~inputs["attention_mask"].bool().any(dim=-1)
            # Something has to be attended to; what comes of it is not read.
            inputs["attention_mask"] = inputs["attention_mask"].masked_fill(absent[:, None], 1)
        asks = [wanted.of(name, rows) for name, rows in share.by_slot()]
        decoded = []
        for resident, (labels, targets) in zip(share.residents, asks, strict=True):
            if resident is not None:
                of_generation = resident.adapter.head.kind == "generation"
                decoded.append(labels if of_generation else None if targets is None else targets.flatten(0, -2))
        output, states = self._states(share, self._with_decoder(inputs, share, decoded), asked)
        results = []
        for slot, (resident, (labels, targets)) in enumerate(zip(share.residents, asks, strict=True)):
            if resident is None:
                results.append(AdaptedOutput())
                continue
            head, own, start, end = resident.adapter.head, states, *share.span(slot)
            places: slice | None = None
            if len(share.residents) > 1 or (choices > 1 and head.task_kind != "multiple-choice"):
                # Of a row with one text, the first of the choices is that text.
                step = 1 if head.task_kind == "multiple-choice" else choices
                places = slice(start * choices, end * choices, step)
                own = own.of(places)
            mine = choices if head.task_kind == "multiple-choice" else 1
            flat = None if targets is None else self._as_long(targets.flatten(0, -2), states)
            own = replace(own, targets=flat, choices=mine)
            parameters = resident.tensors()
            logits = head.logits(own, parameters, training=self.training)
            if absent is not None and mine > 1:
                logits = logits.masked_fill((absent if places is None else absent[places]).view(-1, mine), -torch.inf)
            if labels is not None and head.kind == "generation":
                labels = self._as_long(labels, states)
            loss = None if labels is None else head.loss(logits, labels, own, parameters)
            results.append(AdaptedOutput(loss=loss, logits=logits))
        return output, results

    def _as_long(self, tokens: Tensor, states: States) -> Tensor:
        """Token ids as long as the scores that are given of them: other rows of the pass may have longer ones."""
        length = None if states.scores is None else states.scores.shape[1]
        return tokens if length is None or tokens.shape[-1] >= length else padded(tokens, length)

    def _with_decoder(
        self, inputs: Mapping[str, Tensor], share: Share, wanted: Sequence[Tensor | None]
    ) -> Mapping[str, Tensor]:
        """What an encoder-decoder needs besides: the wanted tokens moved by one place, or one start token a row."""
        if not self.backbone.is_encoder_decoder:
            return inputs
        if share.section == "encoder":
            given = sorted(name for name in inputs if name.startswith("decoder_"))
            if given:
                raise AdapterError(
                    f"{', '.join(given)} cannot be used: the adapter's head reads the encoder alone",
                    expected="the encoder's inputs only",
                )
            return inputs
        if "decoder_input_ids" in inputs:
            return inputs
        known = [tokens for tokens in wanted if tokens is not None]
        if share.section == "root" and known and len(known) == len(share.residents):
            longest = max(tokens.shape[-1] for tokens in known)
            labels = torch.cat([padded(tokens, longest) for tokens in known])
            moved = self.model.prepare_decoder_input_ids_from_labels(labels=labels)  # type: ignore[operator]
            return {**inputs, "decoder_input_ids": moved}
        first = next(iter(inputs.values()))
        start = self.config.decoder_start_token_id
        return {**inputs, "decoder_input_ids": torch.full((len(first), 1), start, device=first.device)}

    def _states(self, share: Share, inputs: Mapping[str, Tensor], asked: Mapping[str, bool]) -> tuple[Any, States]:
        """The backbone's output, and what heads read of it."""
        mask, asked = inputs.get("attention_mask"), dict(asked)
        reads = {resident.adapter.head.reads for resident in share.residents if resident is not None}
        if "layers" in reads or (share.section != "root" and self._decodes_whole):
            asked["output_hidden_states"] = True
        if self._caches:
            asked["use_cache"] = False
        if share.section == "encoder":
            asked.pop("use_cache", None)
        with self.graft.run(self._acting(share)):
            output = getattr(self.graft, share.section)(**inputs, **asked)
        if share.section == "root":
            return output, States(scores=output.logits, mask=mask)
        last, pooled = last_of(output), output.get("pooler_output")
        if last.dim() == 4:
            # A convolutional network's map of features: its places are the tokens.
            last = last.flatten(2).transpose(1, 2)
        layers = output.get("hidden_states") if "layers" in reads else None
        if reads & {"tokens", "layers"}:
            # A prompt's own rows come first in an encoder's output.
            length = next((inputs[name].shape[1] for name in ("input_ids", "inputs_embeds") if name in inputs), 0)
            last = last[:, -length:]
            layers = layers and tuple(layer[:, -length:] for layer in layers)
        return output, States(
            last=last,
            pooled=None if pooled is None else pooled.flatten(1),
            layers=layers,
            mask=None if "decoder_input_ids" in inputs else mask,
            segments=self._segments(inputs) if "layers" in reads else None,
        )

    def _acting(self, share: Share, *, in_order: bool = False) -> Ops:
        """What acts beside the weights: nothing when it is in them.

        Args:
            in_order: for rows as they come, and not sorted by slot.
        """
        if self.merged is not None:
            return {}
        if len(share.residents) == 1:
            [only] = share.residents
            return {} if only is None else only.ops()
        return share.ops(self.backbone, in_order=in_order)

    def _generate_apart(self, shares: Sequence[Share], args: Sequence[Any], options: Mapping[str, Any]) -> Tensor:
        """Tokens that are generated in several passes, because adapters cannot share one; padded at the end."""
        total = sum(len(share.rows) for share in shares)
        made, places = [], []
        for share in shares:
            index = torch.tensor(share.rows, device=self.device)
            own = [given[index] if isinstance(given, Tensor) else given for given in args]
            rest = {
                n: v[index] if isinstance(v, Tensor) and v.dim() and len(v) == total else v for n, v in options.items()
            }
            with self.graft.run(self._acting(share)):
                found = self.model.generate(*own, **rest)  # type: ignore[operator]
            if not isinstance(found, Tensor):
                raise AdapterError(
                    "these adapters cannot share a pass, so that only tokens can be generated for all of them",
                    expected="no return_dict_in_generate, or adapters of methods that are no fine-tuning",
                )
            several = len(found) // len(share.rows)
            made.append(found)
            places += [row * several + i for row in share.rows for i in range(several)]
        longest, padding = max(found.shape[1] for found in made), self._padding(options)
        joined = torch.cat([F.pad(found, (0, longest - found.shape[1]), value=padding) for found in made])
        return joined[torch.tensor(places, device=joined.device).argsort()]

    def _padding(self, options: Mapping[str, Any]) -> int:
        """The token with which generation pads. It shows only where texts are of different lengths: an end token is
        known then.
        """
        config = options.get("generation_config") or self.model.generation_config
        known = (options.get("pad_token_id"), config.pad_token_id, config.eos_token_id, self.config.pad_token_id)
        found = next((token for token in known if token is not None), 0)
        return int(found[0] if isinstance(found, list) else found)

    def _segments(self, inputs: Mapping[str, Tensor]) -> Tensor | None:
        """Which text of a pair each token belongs to: as the tokenizer marks it, or else by the first separator, which
        ends the first text.
        """
        separator = getattr(self.backbone.tokenizer, "sep_token_id", None)
        if "token_type_ids" in inputs or "input_ids" not in inputs or separator is None:
            return inputs.get("token_type_ids")
        ends: Tensor = (inputs["input_ids"] == separator).long()
        return ((ends.cumsum(dim=1) - ends) > 0).long()

    # -- names ---------------------------------------------------------------------------------------------------------

    def _resident(self, name: str) -> Resident:
        return self.residents.named(name)

    def _running(self, name: str) -> Resident:
        """The adapter of that name, unless the backbone's weights are another's at the moment."""
        resident = self._resident(name)
        if self.merged not in (None, name):
            raise AdapterError(
                f"adapter {name!r} cannot run while {self.merged!r} is merged into the backbone's weights",
                expected=f"{self.merged!r}, or unmerge() first",
            )
        return resident

    def _names(self, adapters: str | Sequence[str | None] | None, rows: int) -> list[str | None]:
        """One name a row; None for the backbone alone."""
        if adapters is None:
            if len(self.residents) != 1:
                raise AdapterError(
                    f"{len(self.residents)} adapters are here, and none was named",
                    expected=f"adapters={nearest('', self.residents)}",
                )
            return [*self.residents] * rows
        if isinstance(adapters, str):
            return [adapters] * rows
        if len(adapters) != rows:
            raise AdapterError(f"{len(adapters)} adapter names were given for {rows} rows", expected="one name a row")
        return list(adapters)
