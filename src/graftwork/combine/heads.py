"""From one adapter a task to one adapter with several heads, and back."""

from collections.abc import Sequence
from dataclasses import replace

from torch import Tensor

from graftwork.adapters import Adapter
from graftwork.combine.poolfile import PoolTask
from graftwork.encoding.identity import TaskIdentity
from graftwork.kinds.several_tasks import NAME, SeveralHeads, name_of_part, parameters_of_part


def several(adapter: Adapter, heads: Sequence[Adapter]) -> Adapter:
    """An adapter with the tensors of one and the heads of several.

    Args:
        adapter: gives the tensors of the method.
        heads: adapters, each of which gives its head.
    """
    tensors: dict[str, Tensor] = _body(adapter)
    for i, own in enumerate(heads):
        tensors |= {name_of_part(i, name): tensor for name, tensor in own.tensors.items() if name.startswith("head.")}
    return replace(
        adapter,
        head=SeveralHeads(parts=tuple(own.head for own in heads)),
        task=identity_of_several(adapter.task),
        tensors=tensors,
        metrics={},
        baseline={},
        rows={},
        recipe={},
    )


def identity_of_several(like: TaskIdentity) -> TaskIdentity:
    """What an adapter of several tasks is told of its inputs: to read them as one task's are."""
    return like.model_copy(update={"name": NAME, "kind": NAME, "labels": None})


def one_of(adapter: Adapter, place: int, task: PoolTask, others: Sequence[str] = ()) -> Adapter:
    """The adapter of one task: the tensors of the method, and that task's own head.

    Args:
        adapter: of several tasks.
        place: of the task's head among them.
        task: what else is known of it.
        others: names of the tasks with which it was consolidated. The recipe names them, as a run by it would make
            another adapter.
    """
    assert isinstance(adapter.head, SeveralHeads)
    recipe = dict(task.recipe)
    if others:
        recipe = {**task.added, **recipe, "task": task.added["task"], "consolidated_with": list(others)}
    return replace(
        adapter,
        head=adapter.head.parts[place],
        task=task.identity,
        tensors={**_body(adapter), **parameters_of_part(place, adapter.tensors)},
        metrics=task.metrics,
        rows=task.rows,
        recipe=recipe,
    )


def _body(adapter: Adapter) -> dict[str, Tensor]:
    return {name: tensor for name, tensor in adapter.tensors.items() if not name.startswith("head.")}
