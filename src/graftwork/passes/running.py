"""A pass of the backbone with adapters on it, and what their heads say of it."""

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from graftwork.backbones import Backbone
from graftwork.backbones.families.proof import tiny_input
from graftwork.bank import Bank, Lease, Resident
from graftwork.errors import AdapterError, BackboneError
from graftwork.grafting import Graft
from graftwork.grafting.graft import Modules
from graftwork.heads import States
from graftwork.heads.objectives import LossInputs, supervised_loss
from graftwork.ops.op import Ops
from graftwork.passes.call import AdaptedOutput, Call
from graftwork.passes.sharing import RowGroup, Section, in_order, last_of, padded
from graftwork.passes.starts import CACHED_STATES, HeadStart, LayerStart, Start


@dataclass(frozen=True)
class HeadOutput:
    """The output of an adapter's head for its rows of one pass.

    Attributes:
        parameters: the adapter's, by name.
        states: what the head read.
        logits: what it says.
        labels: of the rows, where there are some.
    """

    parameters: Mapping[str, Tensor]
    states: States
    logits: Tensor
    labels: Tensor | None


class Runner:
    """Runs passes. Several threads may ask for them at once.

    Args:
        backbone: the frozen model.
        graft: where ops act on it.
        bank: where adapters are loaded.

    Attributes:
        start: where passes begin whose inputs have cached states; None: there are none.
        forward_arguments: what the backbone's forward takes.
    """

    def __init__(self, backbone: Backbone, graft: Graft, bank: Bank) -> None:
        self.backbone = backbone
        self.graft = graft
        self.bank = bank
        self.start: Start | None = None
        self.forward_arguments = set(inspect.signature(backbone.model.forward).parameters)
        self._caches = "use_cache" in self.forward_arguments
        # T5 with its language-model head is no T5 with a head on top: there is no inner model to run.
        self._decodes_whole = backbone.generates and not backbone.base_path

    # -- which rows share a pass ---------------------------------------------------------------------------------------

    def row_groups(self, lease: Lease, names: Sequence[str | None], section: Section | None = None) -> list[RowGroup]:
        """Which rows share a pass: those whose adapters can, and whose heads read the backbone in one way.

        Args:
            names: of each row.
            section: what of the backbone runs for all of them, where their heads do not say so.
        """
        distinct = list(dict.fromkeys(names))
        residents = {name: None if name is None else lease[name] for name in distinct}
        return [
            RowGroup.of_rows(names, {name: residents[name] for name in own_names}, own)
            for own, own_names in self.groups(residents, section)
        ]

    def groups(
        self, residents: Mapping[str | None, Resident | None], section: Section | None = None
    ) -> list[tuple[Section, list[str | None]]]:
        """Those of them that can share a pass, and what of the backbone runs in it."""
        groups: dict[tuple[Section, Resident | None], list[str | None]] = {}
        for name, resident in residents.items():
            apart = resident.acts_as if resident is not None and not resident.routed else None
            groups.setdefault((section or self.section(resident), apart), []).append(name)
        return [(own, group) for (own, _), group in groups.items()]

    def section(self, resident: Resident | None) -> Section:
        """What of the backbone has to run for an adapter's head."""
        if resident is None:
            return "base"
        reads = resident.adapter.head.reads
        if self.backbone.is_encoder_decoder and reads in ("tokens", "layers"):
            return "encoder"
        return "root" if reads == "vocabulary" else "base"

    # -- passes --------------------------------------------------------------------------------------------------------

    def one(self, name: str | None, inputs: Mapping[str, Tensor], call: Call) -> AdaptedOutput:
        """A pass in which one adapter serves all rows."""
        rows = len(next(iter(inputs.values())))
        [group] = self.row_groups(call.lease, [name] * rows)
        output, [result] = self._run(group, inputs, call)
        result.hidden_states, result.attentions = output.get("hidden_states"), output.get("attentions")
        return result

    def several(self, names: Sequence[str | None], inputs: Mapping[str, Tensor], call: Call) -> AdaptedOutput:
        """A pass, or as few as can be, in which each row has an adapter of its own."""
        logits: list[Tensor | None] = [None] * len(names)
        losses: dict[str, Tensor] = {}
        order: list[int] = []
        outputs = []
        for group in self.row_groups(call.lease, names):
            output, results = self._run(group, group.of(inputs), call)
            outputs.append(output)
            order += group.rows
            for (name, rows), result in zip(group.by_slot(), results, strict=True):
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

    @contextmanager
    def acting(
        self, make_ops: Callable[[], Ops], *, modules: Modules | None = None, training: bool = False
    ) -> Iterator[None]:
        """Inside, ops act beside the backbone's weights, or these modules run in the place of its own, and no other
        pass runs. The bank's room for them is taken before: who holds the graft's lock never waits for room.

        Raises:
            BackboneError: the model has let go of the backbone.
        """
        with self.graft.lock:
            self.backbone.require_taken(self.graft)
            with self.graft.run({} if modules is not None else make_ops(), modules=modules, training=training):
                yield

    # -- passes that begin with cached states --------------------------------------------------------------------------

    @contextmanager
    def beginning(self, start: Start) -> Iterator[None]:
        """Inside, passes that are given `cached_states` begin at a start; afterwards none do, also after an exception.

        Raises:
            BackboneError: the layers above the start need more of those below than their states; passes begin somewhere
                already; or the model has let go of the backbone.
        """
        with self.graft.lock:
            self.backbone.require_taken(self.graft)
            if self.start is not None:
                raise BackboneError(f"passes begin at {self.start.name} already", expected="one start at a time")
            self.start = start
        try:
            with self.graft.lock, torch.inference_mode():
                start.attach()
                why = self._disprove(start)
            if why:
                raise BackboneError(f"passes of backbone {self.backbone.name!r} cannot begin at {start.name}: {why}")
            yield
        finally:
            with self.graft.lock:
                self.start = None
                start.detach()

    def states_to_cache(self, name: str, inputs: Mapping[str, Tensor], lease: Lease) -> Tensor:
        """The states of rows that passes which begin at the start are given; this one ends there."""
        rows = len(next(iter(inputs.values())))
        [group] = self.row_groups(lease, [name] * rows)
        if isinstance(self.start, HeadStart):
            with self.bank.use(group.present):
                _, states = self._states(group, self._with_decoder(inputs, group, []), Call(lease))
                return self.start.states_to_cache(states)
        assert isinstance(self.start, LayerStart)
        with self.graft.lock, self.start.end():
            self._bare(inputs)
            assert self.start.read is not None
            return self.start.read

    def _disprove(self, start: Start) -> str:
        """Why passes cannot begin at a start, in a clause; empty when they can. It is tried out on some rows."""
        if not isinstance(start, LayerStart):
            return ""
        inputs = tiny_input(self.backbone.model)
        return start.disprove(lambda: self._bare(inputs))

    def _bare(self, inputs: Mapping[str, Tensor]) -> Tensor:
        """The last states of a pass of the backbone alone."""
        rows = len(next(iter(inputs.values())))
        group = RowGroup("base", (None,), (None,), tuple(range(rows)), (rows,))
        return last_of(self._states(group, inputs, Call(Lease({}, None)))[0])

    # -- one pass ------------------------------------------------------------------------------------------------------

    def _run(self, group: RowGroup, inputs: Mapping[str, Tensor], call: Call) -> tuple[Any, list[AdaptedOutput]]:
        """One pass over a group's rows: the backbone's output, and what each of its adapters says of its rows. An
        adapter whose method asks for more passes in training runs them by itself."""
        with self.bank.use(group.present):
            return self._run_loaded(group, inputs, call)

    def _run_loaded(self, group: RowGroup, inputs: Mapping[str, Tensor], call: Call) -> tuple[Any, list[AdaptedOutput]]:
        output, answers = self._pass(group, inputs, call)
        results = []
        for i, (resident, answer) in enumerate(zip(group.residents, answers, strict=True)):
            if resident is None or answer is None:
                results.append(AdaptedOutput())
                continue
            loss = None
            if answer.labels is not None:
                start, end = group.span(i)
                mine = {argument: tensor[start:end] for argument, tensor in inputs.items()}
                loss_inputs = LossInputs(
                    head=resident.adapter.head,
                    parameters=answer.parameters,
                    states=answer.states,
                    logits=answer.logits,
                    labels=answer.labels,
                    items=call.supervision.items.get(group.names[i]),
                    again=partial(self._again, group.alone(i), mine, call),
                    teacher=call.supervision.taught(group.by_slot()[i][1]),
                )
                loss = (resident.objective if call.training else supervised_loss)(loss_inputs)
            results.append(AdaptedOutput(loss=loss, logits=answer.logits))
        return output, results

    def _again(self, group: RowGroup, inputs: Mapping[str, Tensor], call: Call) -> Tensor:
        """What the one adapter of a group says in another pass."""
        _, [answer] = self._pass(group, inputs, replace(call, asked={}))
        assert answer is not None
        return answer.logits

    def _pass(self, group: RowGroup, inputs: Mapping[str, Tensor], call: Call) -> tuple[Any, list[HeadOutput | None]]:
        """One pass with what acts in it drawn anew."""
        choices = inputs["input_ids"].shape[1] if "input_ids" in inputs and inputs["input_ids"].dim() == 3 else 1
        inputs = {name: value.flatten(0, 1) if choices > 1 else value for name, value in inputs.items()}
        absent = None
        if choices > 1 and "attention_mask" in inputs:
            absent = ~inputs["attention_mask"].bool().any(dim=-1)
            # Something has to be attended to; what comes of it is not read.
            inputs["attention_mask"] = inputs["attention_mask"].masked_fill(absent[:, None], 1)
        asks = [call.supervision.of(name, rows) for name, rows in group.by_slot()]
        decoded = []
        for resident, (labels, targets) in zip(group.residents, asks, strict=True):
            if resident is not None:
                tokens = resident.adapter.head.labels_are_tokens
                decoded.append(labels if tokens else None if targets is None else targets.flatten(0, -2))
        output, states = self._states(group, self._with_decoder(inputs, group, decoded), call)
        answers: list[HeadOutput | None] = []
        for slot, (resident, (labels, targets)) in enumerate(zip(group.residents, asks, strict=True)):
            if resident is None:
                answers.append(None)
                continue
            head, own, start, end = resident.adapter.head, states, *group.span(slot)
            places: slice | None = None
            if len(group.residents) > 1 or (choices > 1 and not head.over_choices):
                # Of a row with one text, the first of the choices is that text.
                step = 1 if head.over_choices else choices
                places = slice(start * choices, end * choices, step)
                own = own.of(places)
            mine = choices if head.over_choices else 1
            flat = None if targets is None else self._as_long(targets.flatten(0, -2), states)
            own = replace(own, targets=flat, choices=mine)
            if labels is not None and labels.dim() > 1 and head.by_token:
                # Other rows of the pass may have more tokens.
                if states.scores is None:
                    own = own.shortened(labels.shape[-1])
                else:
                    labels = self._as_long(labels, states)
            parameters = resident.head()
            with resident.drawing():
                logits = head.logits(own, parameters, training=call.training and resident.trainable)
            if absent is not None and mine > 1:
                logits = logits.masked_fill((absent if places is None else absent[places]).view(-1, mine), -torch.inf)
            answers.append(HeadOutput(parameters, own, logits, labels))
        return output, answers

    def _as_long(self, tokens: Tensor, states: States) -> Tensor:
        """Token ids as long as the scores that are given of them: other rows of the pass may have longer ones."""
        length = None if states.scores is None else states.scores.shape[1]
        return tokens if length is None or tokens.shape[-1] >= length else padded(tokens, length)

    def _with_decoder(
        self, inputs: Mapping[str, Tensor], group: RowGroup, wanted: Sequence[Tensor | None]
    ) -> Mapping[str, Tensor]:
        """What an encoder-decoder needs besides: the wanted tokens moved by one place, or one start token a row."""
        if not self.backbone.is_encoder_decoder:
            return inputs
        if group.section == "encoder":
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
        if group.section == "root" and known and len(known) == len(group.residents):
            longest = max(tokens.shape[-1] for tokens in known)
            labels = torch.cat([padded(tokens, longest) for tokens in known])
            moved = self.backbone.model.prepare_decoder_input_ids_from_labels(labels=labels)  # type: ignore[operator]
            return {**inputs, "decoder_input_ids": moved}
        first = next(iter(inputs.values()))
        start = self.backbone.config.decoder_start_token_id
        return {**inputs, "decoder_input_ids": torch.full((len(first), 1), start, device=first.device)}

    def _states(self, group: RowGroup, inputs: Mapping[str, Tensor], call: Call) -> tuple[Any, States]:
        """The backbone's output, and what heads read of it; of cached states, where the inputs have them."""
        if CACHED_STATES in inputs:
            return self._states_from_cache(group, {**inputs}, call)
        mask, asked = inputs.get("attention_mask"), dict(call.asked)
        reads = {resident.adapter.head.reads for resident in group.present}
        if "layers" in reads or (group.section != "root" and self._decodes_whole):
            asked["output_hidden_states"] = True
        if self._caches:
            asked["use_cache"] = False
        if group.section == "encoder":
            asked.pop("use_cache", None)
        modules = call.lease.modules(group.residents[0]) if len(group.residents) == 1 else None
        make_ops = partial(group.ops, self.backbone, self.bank, training=call.training)
        with self.acting(make_ops, modules=modules, training=call.training):
            output = getattr(self.graft, group.section)(**inputs, **asked)
        if group.section == "root":
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

    def _states_from_cache(self, group: RowGroup, inputs: dict[str, Tensor], call: Call) -> tuple[Any, States]:
        cached, start = inputs.pop(CACHED_STATES), self.start
        if start is None:
            raise AdapterError(
                f"`{CACHED_STATES}` are given, and passes begin at the input", expected="beginning() around it"
            )
        for resident in group.present:
            start.check(resident.sites)
        if isinstance(start, HeadStart):
            return {}, start.states(cached, inputs.get("attention_mask"), self._segments(inputs))
        assert isinstance(start, LayerStart)
        with self.graft.lock, start.begin(cached):
            return self._states(group, inputs, call)

    def _segments(self, inputs: Mapping[str, Tensor]) -> Tensor | None:
        """Which text of a pair each token belongs to: as the tokenizer marks it, or else by the first separator, which
        ends the first text.
        """
        separator = getattr(self.backbone.tokenizer, "sep_token_id", None)
        if "token_type_ids" in inputs or "input_ids" not in inputs or separator is None:
            return inputs.get("token_type_ids")
        ends: Tensor = (inputs["input_ids"] == separator).long()
        return ((ends.cumsum(dim=1) - ends) > 0).long()
