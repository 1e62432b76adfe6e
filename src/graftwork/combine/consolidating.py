"""Double distillation: two adapters become one, with the heads of all their tasks (Ermis et al. 2022, "Memory Efficient
Continual Learning with Transformers").

The student begins as the old adapter with the old heads and the new one. It learns the outputs of both teachers on
inputs of the new task, without labels: those of classes centred for each text and head. No other text is read.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from graftwork.adapters import Adapter
from graftwork.backbones import Backbone
from graftwork.combine.heads import several
from graftwork.combine.selecting import outputs_of
from graftwork.folders import write_whole
from graftwork.kinds.several_tasks import NAME, SeveralHeads, parameters_of_part
from graftwork.training.recipe import Recipe

BEGINNING, TARGETS = "beginning", "targets.jsonl"

Tune = Callable[[Recipe, Path], Adapter]
"""Runs a recipe, or goes on with it, in a folder."""


def distilled(
    old: Adapter,
    new: Adapter,
    backbone: Backbone,
    *,
    inputs: Sequence[Any],
    training: Mapping[str, Any],
    working: Path,
    tune: Tune,
) -> Adapter:
    """The student of two teachers.

    Args:
        old: with the heads of the member's tasks, whose method the student has.
        new: with the head of the new task.
        backbone: of both, held by no model.
        inputs: texts, or pairs of texts, of the new task.
        training: settings of the student's training.
        working: a folder for what is made on the way.
        tune: how the student is trained.

    Returns:
        An adapter with the heads of the member's tasks, and that of the new one.
    """
    assert isinstance(old.head, SeveralHeads)
    beginning = several(old, [*heads_of(old), new])
    assert isinstance(beginning.head, SeveralHeads)
    said = torch.cat([outputs_of(own, backbone, new.task, inputs) for own in (old, several(new, [new]))], dim=-1)
    beginning.save(working / BEGINNING, overwrite=True)
    _write_targets(working / TARGETS, inputs, beginning.head.targets(said))
    task = {"name": NAME, "kind": NAME, "text": "text", "data": str(working / TARGETS)}
    recipe = Recipe.parse(
        {
            "backbone": backbone.name,
            "dtype": str(backbone.dtype).removeprefix("torch."),
            "task": {**task, **({"text_pair": "text_pair"} if new.task.pairs else {})},
            "method": {"name": old.method.name, **old.method.model_dump(mode="json")},
            "start": str(working / BEGINNING),
            # The cache at the head is for one head; and the linear model has nothing to say of several.
            "train": {**training, "max_length": new.task.max_length, "prefix_cache": "off", "baseline": "off"},
        },
        origin="the pool",
    )
    return tune(recipe, working / "student")


def heads_of(adapter: Adapter) -> list[Adapter]:
    """An adapter of several tasks as one for each of its heads, which has no more than that."""
    assert isinstance(adapter.head, SeveralHeads)
    return [
        replace(adapter, head=part, tensors=parameters_of_part(i, adapter.tensors))
        for i, part in enumerate(adapter.head.parts)
    ]


def _write_targets(file: Path, inputs: Sequence[Any], targets: Tensor) -> None:
    """A line for each input: its text, or pair, and the outputs that it is to have."""
    lines = []
    for given, own in zip(inputs, targets.tolist(), strict=True):
        texts = {"text": given} if isinstance(given, str) else {"text": given[0], "text_pair": given[1]}
        lines.append(json.dumps({**texts, "label": own}))
    write_whole(file, "\n".join(lines) + "\n")


def agreement(head: SeveralHeads, before: Tensor, after: Tensor) -> list[float | None]:
    """Of each head, the share of texts for which it decides as before; None of numbers.

    Args:
        before, after: (N, C), of all its parts.
    """
    found: list[float | None] = []
    for part, one, other in zip(head.parts, head.split(before), head.split(after), strict=True):
        same = (part.decide(one, None, {}) == part.decide(other, None, {})).float()
        found.append(None if part.output_type == "numbers" else round(float(same.mean()), 6))
    return found
