"""What a pool refuses, before anything is tuned."""

from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from graftwork.backbones import Backbone
from graftwork.combine.poolfile import PoolFile, read_member
from graftwork.errors import AdapterError, MethodError, RecipeError
from graftwork.heads import PooledHead
from graftwork.heads.head import Head
from graftwork.kinds import KINDS
from graftwork.kinds.several_tasks import SeveralHeads
from graftwork.methods import Method
from graftwork.tasks import Task
from graftwork.training.recipe import Recipe

TWO = ("one", "other")
"""Labels of a task that are not known before its data are read: heads of all numbers of classes are alike."""


def refuse_method(method: Method) -> None:
    """Refuse a method whose adapters cannot take in tasks.

    Raises:
        MethodError: it reads examples of one task; or it is made of finished adapters, whose tensors the pool has not.
    """
    for own in reversed([*_with_members(method)]):
        if own.reads_examples:
            raise MethodError(
                f"the pool takes no adapters of method {own.name!r}: they are made from examples of one task each",
                expected="a method that reads no examples",
                change="--method",
            )
    finished = [part.name for part in method.every_part() if not part.new]
    if finished:
        raise MethodError(
            f"the pool takes no adapters that are composed of finished ones, as {', '.join(finished)}: each would hold "
            "them all",
            expected="a method with tensors of its own; a composition can be distilled into one (graftwork distill)",
            change="--method",
        )


def _with_members(method: Method) -> Iterator[Method]:
    yield method
    for member in (*getattr(method, "methods", ()), *(part.method for part in getattr(method, "parts", ()))):
        yield from _with_members(member)


def refuse_tasks(pool: PoolFile, folder: Path, recipes: Sequence[Recipe], backbone: Backbone) -> None:
    """Refuse tasks that are to be added one after another, of which one could not be.

    Args:
        pool: what is in the pool.
        folder: the pool's.
        recipes: of the tasks' own runs.

    Raises:
        AdapterError: the pool has a task already, or is to have it twice.
        MethodError: the pool takes no tasks of this kind, or not with this method.
        RecipeError: the pool is full when a task comes, and chooses members by classes, which the task or a member has
            not.
    """
    taken = list(pool.tasks)
    members = [_has_classes(folder, member.adapter) for member in pool.members]
    capacity, selection = pool.settings.capacity, pool.settings.selection
    for recipe in recipes:
        task = recipe.find_task()
        if task.name in taken:
            there = task.name in pool.tasks
            raise AdapterError(
                f"the pool has the task {task.name!r} already" if there else f"task {task.name!r} is given twice",
                expected="a task that it has not" if there else "each task once",
                change="--task",
            )
        taken.append(task.name)
        head = _head(task, recipe, backbone)
        chosen = capacity is not None and len(members) >= max(capacity, 2)
        if chosen and selection != "random":
            _refuse_choice(task, selection, members)
        if capacity is None or len(members) < capacity:
            members.append(bool(head.num_labels))


def refuse_idle_training(
    pool: PoolFile, recipes: Sequence[Recipe], given: Collection[str], training: Mapping[str, Any]
) -> None:
    """Refuse settings of training by which nothing is trained: the adapters of all tasks are given, and the pool has
    room for them.

    Args:
        pool: what is in the pool.
        recipes: of all tasks that a call adds in turn; those that the pool has were added by such a call.
        given: names of those whose adapters are given.
        training: the settings.

    Raises:
        RecipeError: there are some.
    """
    names = [recipe.find_task().name for recipe in recipes]
    new = [name for name in names if name not in pool.tasks]
    capacity = pool.settings.capacity
    room = len(new) if capacity is None else max(0, capacity - len(pool.members))
    taken_in = [*new[room:], *(name for name in names if pool.was_consolidated(name))]
    if training and all(name in given and name not in taken_in for name in names):
        raise RecipeError(
            f"{', '.join(training)} would do nothing: the adapter of {', '.join(names)} is given, and the pool has "
            "room for it, so that nothing is trained",
            expected="no settings of training, or a task whose adapter is tuned or consolidated",
            change=", ".join(f"--train.{name}" for name in training),
        )


def _has_classes(folder: Path, digest: str) -> bool:
    """Whether a member has a head over classes, by which LEEP can measure it."""
    head = read_member(folder, digest).head
    assert isinstance(head, SeveralHeads)
    return any((part.num_labels or 0) > 1 for part in head.parts)


def _head(task: Task, recipe: Recipe, backbone: Backbone) -> Head:
    """The head that a task is to have in the pool.

    Raises:
        MethodError: it cannot be consolidated.
    """
    kind = KINDS[task.kind]
    if not kind.pooled or "text" not in kind.inputs:
        raise MethodError(
            f"the pool takes no task of kind {task.kind}: its adapters are consolidated by what they say of a text",
            expected=" or ".join(name for name, own in KINDS.items() if own.pooled and "text" in own.inputs),
            change="--task",
        )
    named = task.model_copy(update={"labels": task.labels or TWO}) if kind.named else task
    method = recipe.find_method()
    head = recipe.head(named, method, backbone)
    if not isinstance(head, PooledHead):
        raise MethodError(
            f"the pool takes no adapter of method {method.name!r}, whose head of kind {head.kind!r} cannot be "
            "consolidated",
            expected="a method whose adapters act on the backbone",
            change="--method",
        )
    return head


def _refuse_choice(task: Task, selection: str, members: Sequence[bool]) -> None:
    """Refuse a task for which no member could be chosen by its classes.

    Args:
        members: whether each has a head over classes.
    """
    if KINDS[task.kind].problem_type is not None:
        raise RecipeError(
            f"task {task.name!r} of kind {task.kind} has no single classes, by which the pool chooses an adapter "
            f"for it ({selection})",
            expected="a task with one class for each text, or a pool that chooses at random",
            change="--selection",
        )
    if selection == "leep" and not all(members):
        raise RecipeError(
            f"the pool chooses an adapter for task {task.name!r} by LEEP, which needs a head over classes, and adapter "
            f"{members.index(False)} has none",
            expected="a pool that chooses by transrate or at random",
            change="--selection",
        )
