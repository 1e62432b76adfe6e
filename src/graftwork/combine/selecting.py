"""Which member of a pool a new task goes to when the pool is full."""

from collections.abc import Sequence
from dataclasses import replace
from random import Random
from typing import Any

import numpy as np
import torch
from torch import Tensor

from graftwork.adapters import Adapter
from graftwork.backbones import Backbone
from graftwork.combine.heads import identity_of_several
from graftwork.combine.poolfile import PoolSettings
from graftwork.combine.transferability import leep, transrate
from graftwork.distillation.teachers import AdapterTeacher
from graftwork.encoding.identity import TaskIdentity
from graftwork.errors import RecipeError
from graftwork.heads import Head
from graftwork.kinds.several_tasks import SeveralHeads


def choose(
    members: Sequence[Adapter],
    backbone: Backbone,
    settings: PoolSettings,
    *,
    task: Adapter,
    inputs: Sequence[Any],
    labels: Sequence[Any],
    number: int,
) -> tuple[int, dict[int, float]]:
    """The place of the member, and the score of each; none where it is drawn, or there is only one.

    Args:
        members: the adapters of the pool, each with the heads of its tasks.
        backbone: of all of them, held by no model.
        settings: the pool's.
        task: the adapter that was tuned for the new task.
        inputs, labels: examples of the new task.
        number: of the tasks that the pool has, which decides the draw at random.

    Raises:
        RecipeError: LEEP is asked for, and a member has no head over classes.
    """
    if len(members) == 1:
        return 0, {}
    if settings.selection == "random":
        return Random(f"{settings.seed} {number}").randrange(len(members)), {}
    classes = np.asarray(labels)
    scores: dict[int, float] = {}
    for place, adapter in enumerate(members):
        if settings.selection == "leep":
            scores[place] = _leep(adapter, backbone, task.task, inputs, classes)
        else:
            features = vectors_of(adapter, backbone, task.task, task.head, inputs).numpy()
            scores[place] = transrate(features, classes, weighting=settings.weighting, scaling=settings.scaling)
    return max(scores, key=lambda place: (scores[place], -place)), scores


def _leep(
    adapter: Adapter, backbone: Backbone, identity: TaskIdentity, inputs: Sequence[Any], classes: "np.ndarray[Any, Any]"
) -> float:
    """The highest LEEP of a member's heads over classes."""
    head = adapter.head
    assert isinstance(head, SeveralHeads)
    each = head.split(outputs_of(adapter, backbone, identity, inputs).double())
    found = [
        leep(own.softmax(dim=-1).numpy(), classes)
        for part, own in zip(head.parts, each, strict=True)
        if part.output_type == "classes" and own.shape[-1] > 1
    ]
    if not found:
        raise RecipeError(
            "LEEP needs a head over classes, and a member has none",
            expected="transrate or random",
            change="--selection",
        )
    return max(found)


def outputs_of(adapter: Adapter, backbone: Backbone, identity: TaskIdentity, inputs: Sequence[Any]) -> Tensor:
    """(N, C): what an adapter of several tasks says of inputs, read as one task's are; float32, without dropout."""
    return torch.cat(_asked(adapter, backbone, identity).logits(inputs, _unseen))


def vectors_of(
    adapter: Adapter, backbone: Backbone, identity: TaskIdentity, head: Head, inputs: Sequence[Any]
) -> Tensor:
    """(N, d): the vectors into which a head pools inputs under an adapter."""
    return torch.cat(_asked(adapter, backbone, identity).vectors(inputs, head, _unseen))


def _asked(adapter: Adapter, backbone: Backbone, identity: TaskIdentity) -> AdapterTeacher:
    """The adapter, which reads inputs as those of a task."""
    return AdapterTeacher("a member", replace(adapter, task=identity_of_several(identity)), backbone)


def _unseen(more: int) -> None:
    """How far it is, which nobody is shown."""
