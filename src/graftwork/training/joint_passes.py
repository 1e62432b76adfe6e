"""Passes that several adapters train in: the batches of all of them, joined as far as they can be.

Notation: B rows, C choices of a row, T tokens.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor
from transformers import PretrainedConfig

from graftwork.heads import Counts
from graftwork.model import AdaptedModel
from graftwork.training.seeds import seed_of

SHORT = 32
"""Texts of at most so many tokens share a pass whatever their lengths. Else none is padded to more than twice its
length."""

LABELS = ("labels", "targets")

OF_TOKENS = ("input_ids", "attention_mask", "token_type_ids")
"""Inputs that have something of each token, along their last dimension."""


class OneAdapter(nn.Module):
    """One adapter of an `AdaptedModel`, as the model of a trainer: its parameters are the adapter's own, so that what a
    trainer does to all parameters leaves other adapters alone. Passes are run by the whole model.
    """

    accepts_loss_kwargs = False

    def __init__(self, adapted: AdaptedModel, name: str) -> None:
        super().__init__()
        self._whole = [adapted]  # in a list, so that it is no part of this module
        self.adapter = adapted.in_training(name)

    @property
    def adapted(self) -> AdaptedModel:
        """The whole model."""
        return self._whole[0]

    @property
    def config(self) -> PretrainedConfig:
        """The backbone's configuration."""
        return self.adapted.config

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "OneAdapter":
        """What is moved is all of it: an adapter and its backbone are at one place."""
        self.adapted._apply(fn, recurse)
        return self


@dataclass(frozen=True)
class Step:
    """What a run is to be trained on next.

    Attributes:
        batch: as its encoder collates it, with labels.
        counts: what the terms of its loss are means over, where gradients are summed over several batches: those of all
            of them. None: of this one.
        moment: what tells this step from all others of the run.
    """

    batch: Mapping[str, Tensor]
    counts: Counts | None
    moment: tuple[int, ...]


def take(model: AdaptedModel, steps: Mapping[str, Step]) -> dict[str, Tensor]:
    """Take the steps of these adapters: afterwards each one's parameters have the gradients of its own batch, beside
    those that they had, as if it had been run alone.

    Returns:
        What each batch adds to the loss of its step.
    """
    if not model.training:
        model.train()
    found: dict[str, Tensor] = {}
    for names in passes(model, {name: step.batch for name, step in steps.items()}):
        # What the rows' own sources do not draw, such as masks over all of them, is drawn anew for each pass.
        torch.manual_seed(seed_of("pass", *(number for name in names for number in steps[name].moment)))
        own = {name: steps[name] for name in names}
        losses = losses_of(
            model, {n: s.batch for n, s in own.items()}, {n: s.counts for n, s in own.items() if s.counts is not None}
        )
        torch.stack(list(losses.values())).sum().backward()  # type: ignore[no-untyped-call]
        found |= {name: loss.detach() for name, loss in losses.items()}
    return found


def losses_of(
    model: AdaptedModel, batches: Mapping[str, Mapping[str, Tensor]], counts: Mapping[str, Counts]
) -> dict[str, Tensor]:
    """The loss of each adapter over its batch, by one pass over all of them.

    Args:
        batches: by adapter, such as `passes` puts together.
        counts: what each loss is a mean over, where that is more than its batch.
    """
    names = list(batches)
    batch, labels = join(list(batches.values()), _padding(model))
    output = model(
        **batch,
        **{kind: {n: own[kind] for n, own in zip(names, labels, strict=True) if kind in own} for kind in LABELS},
        adapters=[name for name in names for _ in range(rows_in(batches[name]))],
        num_items_in_batch=dict(counts),
    )
    return {name: output.losses[name] for name in names}


def passes(model: AdaptedModel, batches: Mapping[str, Mapping[str, Tensor]]) -> list[list[str]]:
    """Which of the adapters' batches share a pass: of adapters that can, with inputs of one kind and not too different
    lengths. Each group has its longest first.
    """
    found: list[list[str]] = []
    for sharing in model.sharing(list(batches)):
        kinds: dict[tuple[Any, ...], list[str]] = {}
        for name in sharing:
            kinds.setdefault(_kind(batches[name]), []).append(name)
        for names in kinds.values():
            longest = 0
            for name in sorted(names, key=lambda name: -_tokens(batches[name])):
                if max(2 * _tokens(batches[name]), SHORT) < longest or not longest:
                    longest = _tokens(batches[name])
                    found.append([])
                found[-1].append(name)
    return found


def join(
    batches: Sequence[Mapping[str, Tensor]], padding: Mapping[str, int]
) -> tuple[dict[str, Tensor], list[dict[str, Tensor]]]:
    """Batches of one kind as one, padded at the end to the longest, so that each token stands where it stood; and the
    labels and targets of each, as they are.

    Args:
        padding: what inputs are padded with, by name; 0 where nothing is said.
    """
    longest = max(_tokens(batch) for batch in batches)
    joined = {
        name: torch.cat(
            [
                _widened(batch[name], longest, padding.get(name, 0)) if name in OF_TOKENS else batch[name]
                for batch in batches
            ]
        )
        for name in batches[0]
        if name not in LABELS
    }
    labels = [{name: batch[name] for name in LABELS if name in batch} for batch in batches]
    return joined, labels


def _widened(tensor: Tensor, length: int, value: int) -> Tensor:
    """A tensor (…, T) with more behind what it has."""
    return F.pad(tensor, (0, length - tensor.shape[-1]), value=value)


def _kind(batch: Mapping[str, Tensor]) -> tuple[Any, ...]:
    """What batches have in common that can be joined. Questions have as many choices: whoever drew a mask over more of
    them would draw another one."""
    return tuple(
        (name, tensor.shape[1:-1] if name in OF_TOKENS else tensor.shape[1:])
        for name, tensor in sorted(batch.items())
        if name not in LABELS
    )


def _tokens(batch: Mapping[str, Tensor]) -> int:
    """How many tokens its texts have; 1 where it has none."""
    return batch["input_ids"].shape[-1] if "input_ids" in batch else 1


def rows_in(batch: Mapping[str, Tensor]) -> int:
    """How many rows a batch has."""
    return len(batch["labels"])


def _padding(model: AdaptedModel) -> dict[str, int]:
    """What the tokenizer pads with."""
    known = {"input_ids": "pad_token_id", "token_type_ids": "pad_token_type_id"}
    found = {name: getattr(model.backbone.tokenizer, setting, None) for name, setting in known.items()}
    return {name: value for name, value in found.items() if value is not None}
