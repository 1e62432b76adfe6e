"""Adapters that are tuned already, for tasks that are to be added to a pool."""

from pathlib import Path

from graftwork.adapters import Adapter
from graftwork.backbones import Backbone
from graftwork.combine.poolfile import PoolSettings
from graftwork.distillation.teacher import other_labels
from graftwork.errors import AdapterError
from graftwork.methods import as_method
from graftwork.tasks import Task, load
from graftwork.training.recipe import Recipe

AnyAdapter = Adapter | str | Path
"""An adapter, or its folder."""


def as_adapter(given: AnyAdapter) -> Adapter:
    return given if isinstance(given, Adapter) else Adapter.load(given)


def tuned_already(given: AnyAdapter, recipe: Recipe, settings: PoolSettings, backbone: Backbone) -> Adapter:
    """The adapter of a task that is to be added, which was tuned before, on these data or others of the same form.

    Args:
        given: the adapter, or its folder.
        recipe: of the task's own run.
        settings: of the pool.
        backbone: the pool's.

    Raises:
        AdapterError: it is of another task, method or backbone, has other labels, or reads texts in another way.
        DataError: the task's data cannot be read.
    """
    task, adapter = recipe.find_task(), as_adapter(given)
    folder = "" if isinstance(given, Adapter) else f" in {str(given)!r}"
    where = f"the adapter{folder} that is given for task {task.name!r}"
    adapter.check(backbone)
    _refuse_another_task(where, adapter, task)
    method, own = as_method(settings.method), adapter.method
    if own != method:
        raise AdapterError(
            f"{where} has method {own.name} ({own.settings_text}), which is not that of the pool",
            expected=f"{method.name} ({method.settings_text})",
            change="--adapter",
        )
    if adapter.task.added_tokens:
        raise AdapterError(
            f"{where} has tokens of its own, which adapters of a pool have not: {', '.join(adapter.task.added_tokens)}",
            expected="an adapter without added tokens",
            change="--adapter",
        )
    _refuse_another_reading(where, adapter, recipe)
    _refuse_other_labels(where, adapter, task)
    return adapter


def _refuse_another_task(where: str, adapter: Adapter, task: Task) -> None:
    if adapter.task.name != task.name or adapter.kind != task.kind:
        raise AdapterError(
            f"{where} ({task.kind}) is of task {adapter.task.name!r} ({adapter.kind})",
            expected="the task's own adapter, or none, to tune one",
            change="--adapter",
        )
    forms = ("single texts", "pairs of texts")
    if adapter.task.pairs != (task.text_pair is not None):
        raise AdapterError(
            f"{where} reads {forms[adapter.task.pairs]}, and the task is of {forms[not adapter.task.pairs]}",
            expected=f"an adapter for {forms[not adapter.task.pairs]}, or none, to tune one",
            change="--adapter, or the task's text_pair",
        )


def _refuse_another_reading(where: str, adapter: Adapter, recipe: Recipe) -> None:
    """Refuse settings of how texts are read that are not the adapter's: its student reads them as it does."""
    length, pooling = adapter.task.max_length, adapter.head.pooled_by
    if recipe.train.max_length not in (None, length):
        raise AdapterError(
            f"{where} cuts texts at {length} tokens, and max_length is {recipe.train.max_length}",
            expected=f"max_length {length}, or none",
            change="--train.max_length, or --adapter",
        )
    if recipe.pooling not in ("auto", pooling):
        raise AdapterError(
            f"{where} has pooling {pooling}, and pooling is {recipe.pooling}",
            expected=f"pooling {pooling}, or auto",
            change="pooling, or --adapter",
        )


def _refuse_other_labels(where: str, adapter: Adapter, task: Task) -> None:
    wanted, known = load(task, test=False).task.labels, adapter.task.labels
    if wanted is None or known is None:
        return
    differences = other_labels(known, wanted)
    if differences:
        raise AdapterError(
            f"{where} has other labels than the task's data: {differences}",
            expected=f"the labels {', '.join(map(repr, wanted))}, in any order",
            change="--adapter, or the task's data or labels",
        )
