"""`AdaptedModel`: a frozen backbone with adapters on it, as one `nn.Module` with Hugging Face's forward signature."""

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.nn as nn
from torch import Tensor
from transformers import PretrainedConfig

from graftwork.adapters import Adapter, Bank, Memory, Resident
from graftwork.backbones import Backbone
from graftwork.backbones.families.proof import tiny_input
from graftwork.errors import AdapterError, BackboneError, SiteError, nearest
from graftwork.heads import LanguageHead
from graftwork.heads.language import require_language_model
from graftwork.heads.losses import StepItems, of_one, of_several
from graftwork.ops import Graft
from graftwork.ops.graft import Ops
from graftwork.ops.merging import put_into_weights
from graftwork.passes import Section, Share, Wanted, in_order
from graftwork.predicting import Predicting
from graftwork.recomputing import Recomputing
from graftwork.running import AdaptedOutput, Runner
from graftwork.starts import KEPT, Start

MAIN_INPUTS = ("input_ids", "inputs_embeds", "pixel_values")
OTHER_INPUTS = ("attention_mask", "token_type_ids", "position_ids", "decoder_input_ids", "decoder_attention_mask")


class AdaptedModel(Predicting):
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

    accepts_loss_kwargs = True

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
        self._accepted = set(inspect.signature(backbone.model.forward).parameters)
        self._runner = Runner(backbone, self.graft, self._acting)
        self._recomputing = Recomputing(backbone.model, self.graft, dropout=backbone_dropout)
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
        self.residents.named(name)
        if name == self.merged:
            raise AdapterError(f"adapter {name!r} is merged into the backbone's weights", expected="unmerge() first")
        self._put(name, adapter, trainable=False, pinned=pinned)

    def _put(self, name: str, adapter: Adapter | str | Path, *, trainable: bool, pinned: bool) -> None:
        source = None if isinstance(adapter, Adapter) else Path(adapter)
        adapter = adapter if isinstance(adapter, Adapter) else Adapter.load(adapter)
        adapter.check(self.backbone, allow_mismatch=self.allow_backbone_mismatch)
        resident = Resident(adapter, self.backbone, trainable=trainable, source=None if trainable else source)
        with self.graft.lock:
            before = self.residents.get(name)
            self.residents.put(name, resident, pinned=pinned)
            self.graft.attach(resident.sites)
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
        return self.residents.named(name).snapshot()

    def merge(self, name: str) -> None:
        """Put an adapter into the backbone's weights, so that it costs nothing in a pass. Its head acts as before.

        The new weights are computed in float64 and rounded once to the backbone's precision. The backbone's own are
        kept beside them, untouched. Until `unmerge`, no other adapter can run.

        Raises:
            AdapterError: there is none of that name; one is merged already; it is being trained; or one of its ops
                cannot be put into weights. Nothing has changed then.
        """
        resident = self.residents.named(name)
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
        if self._recomputing.on:
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
                choice whose attention mask is all 0 is none, and has the logit -inf.
            inputs_embeds: (B, T, d), in the place of input_ids.
            pixel_values: (B, channels, height, width), for a backbone of images.
            decoder_input_ids, decoder_attention_mask: (B, T'), for an encoder-decoder. Left out, they follow from the
                labels in generation, and else are one start token a row.
            labels: (B,) class ids, choices, or numbers for regression; (B, T) tags or token ids, -100 where there is
                none. With them the output has a loss.
            targets: (B, C, T), each choice's own tokens, -100 elsewhere, where choices are judged by likelihood.
            kept: (B, n) or (B, T, n), of multiple choice (B, C, n) or (B, C, T, n): what `keep` gave of these rows; the
                pass begins with it.
            adapters: name of the adapter; or, for each row, a name, or None for the backbone alone. May be left out
                when there is only one adapter.
            labels, targets: with a name a row, tensors as they are for one adapter, of which each adapter is given its
                rows; or such tensors by the name of the adapter.
            num_items_in_batch: what the loss is a mean over where gradients are accumulated: the number of labels in
                all batches of the step, as `transformers.Trainer` gives it, or the head's `step_counts` of them; with a
                name a row, those by the name of the adapter. Left out, the loss is the mean over this batch.

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
        if not inputs:
            raise AdapterError(
                "a pass has no inputs", expected=" or ".join(name for name in MAIN_INPUTS if name in self._accepted)
            )
        if kept is not None:
            inputs[KEPT] = kept
        rows = next((len(inputs[name]) for name in MAIN_INPUTS if name in inputs), 1)
        wishes = {"output_hidden_states": output_hidden_states, "output_attentions": output_attentions}
        asked = {name: value for name, value in wishes.items() if value is not None}
        with self.graft.lock:
            names = self.names(adapters, rows)
            one = adapters is None or isinstance(adapters, str)
            items = of_one(num_items_in_batch, names[0]) if one else of_several(num_items_in_batch, labels)
            wanted = Wanted(labels, targets, items)
            result = self._one(names[0], inputs, wanted, asked) if one else self._several(names, inputs, wanted, asked)
        return result if return_dict is not False else result.to_tuple()

    def generate(self, *args: Any, adapters: str | Sequence[str | None] | None = None, **options: Any) -> Any:
        """The backbone's own `generate`, with an adapter.

        Args:
            args, options: as transformers' `generate` takes them.
            adapters: as for `forward`.

        Raises:
            BackboneError: the backbone has no language-model head.
            AdapterError: no adapter of that name.
        """
        require_language_model(self.backbone)
        given = args[0] if args else options.get("inputs", options.get("input_ids"))
        names = self.names(adapters, 1 if given is None else len(given))
        with self.graft.lock:
            shares = self._shares(names)
            if len(shares) == 1:
                with self.graft.run(self._acting(shares[0], in_order=True)):
                    return self.model.generate(*args, **options)  # type: ignore[operator]
            return self._runner.generate_apart(shares, args, options)

    def sharing(self, names: Sequence[str]) -> list[list[str]]:
        """The adapters of these names, those together whose rows can share a pass.

        Raises:
            AdapterError: no adapter of one of the names.
        """
        residents: dict[str | None, Resident | None] = {name: self.residents.named(name) for name in names}
        return [[name for name in group if name is not None] for _, group in self._groups(residents)]

    @contextmanager
    def beginning(self, start: Start) -> Iterator[None]:
        """Inside, passes that are given what is `kept` begin at a start; afterwards none do, also after an exception.

        Raises:
            BackboneError: the layers above the start need more of those below than their states.
        """
        try:
            with self.graft.lock, self.resting():
                self._runner.start = start
                start.attach()
                why = self._runner.disprove_start(tiny_input(self.model))
            if why:
                raise BackboneError(f"passes of backbone {self.backbone.name!r} cannot begin at {start.name}: {why}")
            yield
        finally:
            with self.graft.lock:
                self._runner.start = None
                start.detach()

    def keep(self, adapter: str, **inputs: Tensor) -> Tensor:
        """What is to be kept of rows, for passes that begin where `beginning` says: (B, n) or (B, T, n).

        Args:
            inputs: as `forward` takes them; of multiple choice, a row for each choice.
        """
        rows = len(next(iter(inputs.values())))
        with self.graft.lock:
            [share] = self._shares([adapter] * rows)
            return self._runner.keep(share, inputs)

    def names(self, adapters: str | Sequence[str | None] | None, rows: int) -> list[str | None]:
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

    # -- what nn.Module and Hugging Face expect ------------------------------------------------------------------------

    @property
    def config(self) -> PretrainedConfig:
        """The backbone's configuration."""
        return self.backbone.config

    @property
    def device(self) -> torch.device:
        return self.backbone.device

    @property
    def loss_type(self) -> str | None:
        """Tells `transformers.Trainer` to leave the first token of each row out when it counts labels: where all that
        is trained is generation by a causal model, which says nothing of that token.
        """
        heads = [resident.adapter.head for resident in self.residents.values() if resident.trainable]
        shifted = [isinstance(head, LanguageHead) and head.shifted for head in heads]
        return "ForCausalLM" if shifted and all(shifted) else None

    def train(self, mode: bool = True) -> "AdaptedModel":
        """Training mode for adapters and heads; for the backbone's own dropout only when it was asked for."""
        super().train(mode)
        self.model.train(mode and self.backbone_dropout)
        self._recomputing.train(mode)
        self.graft.train(mode)
        return self

    def activation_checkpointing_enable(
        self, activation_checkpointing_kwargs: dict[str, Any] | None = None, **options: Any
    ) -> None:
        """Recompute layers in the backward pass instead of keeping their activations; ops act in the recomputation too.

        Raises:
            AdapterError: reentrant checkpointing, which cannot carry what acts into the recomputation.
        """
        self._recomputing.enable(activation_checkpointing_kwargs, **options)
        self.train(self.training)

    def activation_checkpointing_disable(self) -> None:
        """Keep activations again."""
        self._recomputing.disable()
        self.train(self.training)

    def gradient_checkpointing_enable(
        self, gradient_checkpointing_kwargs: dict[str, Any] | None = None, **options: Any
    ) -> None:
        """The older name of `activation_checkpointing_enable`."""
        self.activation_checkpointing_enable(gradient_checkpointing_kwargs, **options)

    def gradient_checkpointing_disable(self) -> None:
        """The older name of `activation_checkpointing_disable`."""
        self.activation_checkpointing_disable()

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
        output, [result] = self._runner.run(share, inputs, wanted, asked, training=self.training)
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
            output, results = self._runner.run(share, share.of(inputs), wanted, asked, training=self.training)
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
        return [
            Share.of_rows(names, {name: residents[name] for name in group}, section)
            for section, group in self._groups(residents)
        ]

    def _groups(self, residents: Mapping[str | None, Resident | None]) -> list[tuple[Section, list[str | None]]]:
        """Those of them that can share a pass, and what of the backbone runs in it."""
        groups: dict[tuple[Section, str | None], list[str | None]] = {}
        for name, resident in residents.items():
            apart = name if resident is not None and not resident.routed else None
            groups.setdefault((self._runner.section(resident), apart), []).append(name)
        return [(section, group) for (section, _), group in groups.items()]

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

    # -- names ---------------------------------------------------------------------------------------------------------

    def _running(self, name: str) -> Resident:
        """The adapter of that name, unless the backbone's weights are another's at the moment."""
        resident = self.residents.named(name)
        if self.merged not in (None, name):
            raise AdapterError(
                f"adapter {name!r} cannot run while {self.merged!r} is merged into the backbone's weights",
                expected=f"{self.merged!r}, or unmerge() first",
            )
        return resident
