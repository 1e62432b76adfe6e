"""A pass of the backbone with adapters on it, and what their heads say of it."""

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers.utils.generic import ModelOutput

from graftwork.adapters import Resident
from graftwork.backbones import Backbone
from graftwork.errors import AdapterError
from graftwork.heads import States
from graftwork.ops import Graft
from graftwork.ops.graft import Ops
from graftwork.passes import Section, Share, Wanted, last_of, padded
from graftwork.starts import KEPT, HeadStart, LayerStart, Start


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


class Runner:
    """Runs passes.

    Args:
        backbone: the frozen model.
        graft: where ops act on it.
        acting: the ops that act in a share's pass, made anew for each.

    Attributes:
        start: where passes begin whose inputs have what is kept for it; None: there are none.
    """

    def __init__(self, backbone: Backbone, graft: Graft, acting: Callable[[Share], Ops]) -> None:
        self.backbone = backbone
        self.graft = graft
        self.acting = acting
        self.start: Start | None = None
        self._caches = "use_cache" in inspect.signature(backbone.model.forward).parameters
        # T5 with its language-model head is no T5 with a head on top: there is no inner model to run.
        self._decodes_whole = backbone.generates and not backbone.base_path

    def section(self, resident: Resident | None) -> Section:
        """What of the backbone has to run for an adapter's head."""
        if resident is None:
            return "base"
        reads = resident.adapter.head.reads
        if self.backbone.is_encoder_decoder and reads in ("tokens", "layers"):
            return "encoder"
        return "root" if reads == "vocabulary" else "base"

    def run(
        self,
        share: Share,
        inputs: Mapping[str, Tensor],
        wanted: Wanted,
        asked: Mapping[str, bool],
        *,
        training: bool = False,
    ) -> tuple[Any, list[AdaptedOutput]]:
        """One pass over a share's rows: the backbone's output, and what each of its adapters says of its rows. An
        adapter whose method asks for more passes in training runs them by itself."""
        output, results = self._pass(share, inputs, wanted, asked, training)
        for i, resident in enumerate(share.residents):
            if resident is None or results[i].loss is None or not (training and resident.trainable):
                continue
            method, head = resident.adapter.method, resident.adapter.head
            name, rows = share.by_slot()[i]
            labels, _ = wanted.of(name, rows)
            assert labels is not None  # there is a loss
            start, end = share.span(i)
            mine = {name: tensor[start:end] for name, tensor in inputs.items()}
            for _ in range(method.passes - 1):
                _, [again] = self._pass(share.alone(i), mine, wanted, {}, training)
                both = results[i].require("logits"), again.require("logits")
                apart = head.divergence(*both, labels, wanted.items.get(name))
                results[i].loss = results[i].require("loss") + apart
        return output, results

    def keep(self, share: Share, inputs: Mapping[str, Tensor]) -> Tensor:
        """What is to be kept of rows for passes that begin at the start, which is where this one ends."""
        if isinstance(self.start, HeadStart):
            return self.start.keep(self._states(share, self._with_decoder(inputs, share, []), {})[1])
        assert isinstance(self.start, LayerStart)
        with self.start.end():
            self._bare(inputs)
            assert self.start.read is not None
            return self.start.read

    def disprove_start(self, inputs: Mapping[str, Tensor]) -> str:
        """Why passes cannot begin at the start, in a clause; empty when they can. It is tried out on some rows."""
        if not isinstance(self.start, LayerStart):
            return ""
        return self.start.disprove(lambda: self._bare(inputs))

    def _bare(self, inputs: Mapping[str, Tensor]) -> Tensor:
        """The last states of a pass of the backbone alone."""
        rows = len(next(iter(inputs.values())))
        share = Share("base", (None,), (None,), tuple(range(rows)), (rows,))
        return last_of(self._states(share, inputs, {})[0])

    def generate_apart(self, shares: Sequence[Share], args: Sequence[Any], options: Mapping[str, Any]) -> Tensor:
        """Tokens that are generated in several passes, because adapters cannot share one; padded at the end."""
        total = sum(len(share.rows) for share in shares)
        made, places = [], []
        for share in shares:
            index = torch.tensor(share.rows, device=self.backbone.device)
            own = [given[index] if isinstance(given, Tensor) else given for given in args]
            rest = {
                n: v[index] if isinstance(v, Tensor) and v.dim() and len(v) == total else v for n, v in options.items()
            }
            with self.graft.run(self.acting(share)):
                found = self.backbone.model.generate(*own, **rest)  # type: ignore[operator]
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

    def _pass(
        self,
        share: Share,
        inputs: Mapping[str, Tensor],
        wanted: Wanted,
        asked: Mapping[str, bool],
        training: bool,
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
            if labels is not None and labels.dim() > 1:
                # Other rows of the pass may have more tokens.
                if states.scores is None:
                    own = own.shortened(labels.shape[-1])
                else:
                    labels = self._as_long(labels, states)
            parameters = resident.tensors()
            with resident.drawing():
                logits = head.logits(own, parameters, training=training and resident.trainable)
            if absent is not None and mine > 1:
                logits = logits.masked_fill((absent if places is None else absent[places]).view(-1, mine), -torch.inf)
            items = wanted.items.get(share.names[slot])
            loss = None if labels is None else head.loss(logits, labels, own, parameters, items)
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
            moved = self.backbone.model.prepare_decoder_input_ids_from_labels(labels=labels)  # type: ignore[operator]
            return {**inputs, "decoder_input_ids": moved}
        first = next(iter(inputs.values()))
        start = self.backbone.config.decoder_start_token_id
        return {**inputs, "decoder_input_ids": torch.full((len(first), 1), start, device=first.device)}

    def _states(self, share: Share, inputs: Mapping[str, Tensor], asked: Mapping[str, bool]) -> tuple[Any, States]:
        """The backbone's output, and what heads read of it; of what is kept, where the inputs have it."""
        if KEPT in inputs:
            return self._states_of_kept(share, {**inputs}, asked)
        mask, asked = inputs.get("attention_mask"), dict(asked)
        reads = {resident.adapter.head.reads for resident in share.residents if resident is not None}
        if "layers" in reads or (share.section != "root" and self._decodes_whole):
            asked["output_hidden_states"] = True
        if self._caches:
            asked["use_cache"] = False
        if share.section == "encoder":
            asked.pop("use_cache", None)
        with self.graft.run(self.acting(share)):
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

    def _states_of_kept(self, share: Share, inputs: dict[str, Tensor], asked: Mapping[str, bool]) -> tuple[Any, States]:
        kept = inputs.pop(KEPT)
        if isinstance(self.start, HeadStart):
            return {}, self.start.states(kept, inputs.get("attention_mask"), self._segments(inputs))
        assert isinstance(self.start, LayerStart)
        with self.start.begin(kept):
            return self._states(share, inputs, asked)

    def _segments(self, inputs: Mapping[str, Tensor]) -> Tensor | None:
        """Which text of a pair each token belongs to: as the tokenizer marks it, or else by the first separator, which
        ends the first text.
        """
        separator = getattr(self.backbone.tokenizer, "sep_token_id", None)
        if "token_type_ids" in inputs or "input_ids" not in inputs or separator is None:
            return inputs.get("token_type_ids")
        ends: Tensor = (inputs["input_ids"] == separator).long()
        return ((ends.cumsum(dim=1) - ends) > 0).long()

    def _padding(self, options: Mapping[str, Any]) -> int:
        """The token with which generation pads. It shows only where texts are of different lengths: an end token is
        known then.
        """
        config = options.get("generation_config") or self.backbone.model.generation_config
        own = (config.pad_token_id, config.eos_token_id, self.backbone.config.pad_token_id)
        known = (options.get("pad_token_id"), *own)
        found = next((token for token in known if token is not None), 0)
        return int(found[0] if isinstance(found, list) else found)
