"""Folders of adapters, or of fully fine-tuned models, merged into a folder of the same kind."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from graftwork.adapters import Adapter
from graftwork.adapters.folder import CONFIG, adapters_in, read_outline
from graftwork.arithmetic.adapters.finetuned import finetuned_adapter, is_model_folder, save_finetuned
from graftwork.arithmetic.adapters.heads import head_groups
from graftwork.arithmetic.adapters.merging import (
    HEADS,
    MergedAdapters,
    is_of_several_heads,
    named_adapters,
    refuse_output,
)
from graftwork.arithmetic.adapters.scores import score_table, scores_of_merged
from graftwork.arithmetic.data.keeping import put_by, working_folder
from graftwork.arithmetic.merging.adaptermethods import (
    AdapterOperands,
    AdapterResult,
    check_adapters,
    run_on_adapters,
)
from graftwork.arithmetic.merging.method import ChosenMethod
from graftwork.arithmetic.merging.recipe import MERGED, RECIPE, MergeRecipe
from graftwork.arithmetic.merging.result import MergeResult, Scores
from graftwork.arithmetic.values import saving
from graftwork.backbones import Backbone
from graftwork.errors import AdapterError, RecipeError
from graftwork.folders import replacing_folder, resolved_path
from graftwork.tasks import Task, find_task
from graftwork.training.display import Display, shown_on_stderr

INNER = ".model"

LARGE = 16 * 2**20
"""Bytes of an adapter from which on it is not held in memory."""


def merge_folders(
    recipe: MergeRecipe,
    target: Path,
    *,
    resume: bool = False,
    overwrite: bool = False,
    progress: bool = False,
) -> MergeResult:
    """Merge adapters' folders, or those of fully fine-tuned models, and write the result, completely or not at all.

    Args:
        recipe: what is merged, and how. Its base is the backbone; None: the one that the adapters name. Its tasks are
            one for each operand or one for all; models need them for methods that read data.
        target: where the result goes: an adapter's folder, or one with an adapter for each head; of models, a model's,
            or one with a model for each head.
        resume: go on with an interrupted merge to the same output.
        overwrite: replace an existing output, and discard an interrupted merge.
        progress: report progress on standard error.

    Raises:
        GraftworkError: the method, the folders or the output cannot be used; says what to change.
    """
    chosen, options = checked(recipe)
    paths = [Path(one.model) for one in recipe.models]
    models = [is_model_folder(path) and not (path / CONFIG).is_file() for path in paths]
    _refuse(target, of_models=all(models), overwrite=overwrite)
    each = tasks_of(recipe)
    with working_folder(target, resume=resume, overwrite=overwrite) as working:
        base = base_of(paths, models, recipe.base)
        frozen = Backbone.load(base, dtype="float32")
        # One at a time is in memory; then it is on disk.
        loaded = [
            _put_by(
                finetuned_adapter(path, frozen, task=task) if model else for_task(Adapter.load(path), task),
                working,
                f"operand-{i}",
            )
            for i, (path, model, task) in enumerate(zip(paths, models, each, strict=True))
        ]
        adapters = named(paths, loaded)
        operands = AdapterOperands(
            adapters=adapters, backbone=frozen, weights=recipe.weights, working=working, progress=progress, **options
        )
        with shown_on_stderr(shown=progress) as display:
            chosen, result, swept = _best(recipe, chosen, operands, display)
            merged = _saying(result.merged, recipe.resolved(_absolute(paths), _absolute([base])[0], chosen))
            if all(models):
                _save_models(merged, adapters, paths, frozen, target, overwrite=overwrite)
            else:
                merged.save(target, overwrite=overwrite)
            scores: Mapping[str, Scores] = {}
            if recipe.tasks:
                scores = score_table(adapters, merged, frozen, display=display)
    return MergeResult(target, chosen, scores, swept, merged=result.merged, said=result.said, details=result.details)


def checked(recipe: MergeRecipe) -> tuple[ChosenMethod, dict[str, Any]]:
    """The method, and what is asked for beside, after both are checked.

    Raises:
        MethodError, RecipeError: the method does not act on adapters, or has no use for what is asked for.
    """
    chosen = recipe.find_method()
    recipe.refuse({"--heads base": recipe.heads == "base" or None, "--dtype": recipe.dtype}, "of adapters")
    options: dict[str, Any] = {"rank": recipe.rank, "heads": recipe.heads or "auto", "align": recipe.align or "auto"}
    check_adapters(chosen, len(recipe.models), weights=recipe.weights, **options)
    recipe.check_sweep(scored=True)
    return chosen, options


def _put_by(adapter: Adapter, working: Path, name: str) -> Adapter:
    """An adapter; a large one with its tensors on disk in the place of memory."""
    if adapter.num_bytes < LARGE:
        return adapter
    return replace(adapter, tensors=put_by(working, name, adapter.tensors))


def tasks_of(recipe: MergeRecipe) -> list[Task | None]:
    """The task of each operand.

    Raises:
        RecipeError: there are several, and not one for each.
    """
    count = len(recipe.models)
    if len(recipe.tasks) > 1 and len(recipe.tasks) != count:
        raise RecipeError(
            f"{len(recipe.tasks)} tasks are given for {count} operands",
            expected="one task for all, or one for each, in the same order",
            change="--task",
        )
    found = [find_task(name) for name in recipe.tasks]
    return [*found] * count if len(found) == 1 else [*found] or [None] * count


def _best(
    recipe: MergeRecipe, chosen: ChosenMethod, operands: AdapterOperands, display: Display
) -> tuple[ChosenMethod, AdapterResult, list[tuple[Any, Scores]]]:
    """The merge; of a sweep, the one that scores best, and the scores of each."""
    if not recipe.sweep:
        return chosen, run_on_adapters(chosen, operands), []
    [(name, values)] = recipe.sweep.items()
    scored = _with_heads(recipe.each_of_sweep(chosen), operands)
    best: tuple[float, ChosenMethod, AdapterResult] | None = None
    swept: list[tuple[Any, Scores]] = []
    for value in values:
        one = chosen.with_settings({name: value})
        result = run_on_adapters(one, operands)
        scores, worth = scores_of_merged(
            operands.adapters, result.merged, operands.backbone, names=scored, display=display
        )
        swept.append((value, scores))
        if best is None or worth > best[0]:
            best = worth, one, result
    assert best is not None  # there is a value at least
    return best[1], best[2], swept


def _with_heads(each: Sequence[ChosenMethod], operands: AdapterOperands) -> list[str] | None:
    """The adapters whose heads some result of a sweep has, so that all are scored on the same tasks; None where the
    method says by itself which it has."""
    if any(one.method.over == "adapters" for one in each):
        return None
    own = operands.adapters
    groups = [head_groups(own, operands.heads, one.shares(operands.weights, len(own))) for one in each]
    names = {name for group in groups for head in group for name in head.names}
    return [name for name in own if name in names]


def _refuse(target: Path, *, of_models: bool, overwrite: bool) -> None:
    """Refuse an output before any work is done."""
    if of_models and not (overwrite and is_of_several_heads(target)):
        saving.refuse_existing(target, overwrite=overwrite)
    elif not of_models:
        refuse_output(target, overwrite=overwrite)


def base_of(paths: Sequence[Path], models: Sequence[bool], base: str | None) -> str:
    """The backbone of all operands.

    Args:
        paths: the operands' folders.
        models: which of them are models'.
        base: the one that is given.

    Raises:
        RecipeError: a model is merged, and it is not given.
        AdapterError: a folder is no adapter's.
    """
    if base is not None:
        return base
    if any(models):
        raise RecipeError(
            f"{str(paths[[*models].index(True)])!r} is a model, and the one that it was tuned from is not given",
            expected="its folder or name",
            change="--base",
        )
    several = next((path for path in paths if adapters_in(path)), None)
    if several is not None:
        raise AdapterError(
            f"{str(several)!r} holds several adapters",
            expected=f"one of them, such as {several / adapters_in(several)[0]}",
        )
    return str(read_outline(paths[0])["backbone"].name)


def for_task(adapter: Adapter, task: Task | None) -> Adapter:
    """An adapter whose data are those of a task.

    Raises:
        RecipeError: the task is of another kind.
    """
    if task is None:
        return adapter
    if task.kind != adapter.kind:
        raise RecipeError(
            f"adapter {adapter.task.name!r} is for {adapter.kind}, and task {task.name!r} is {task.kind}",
            expected=f"a task of {adapter.kind}",
            change="--task",
        )
    known = task.resolved().model_dump(mode="json", exclude_none=True)
    return replace(adapter, recipe={**adapter.recipe, "task": known})


def named(paths: Sequence[Path], adapters: Sequence[Adapter]) -> dict[str, Adapter]:
    """By the names of their tasks; where two have one task, by those of their folders."""
    names = [adapter.task.name for adapter in adapters]
    if len({*names}) < len(names):
        names = [path.resolve().name for path in paths]
    twice = next((name for i, name in enumerate(names) if name in names[:i]), None)
    if twice is not None:
        raise AdapterError(f"two folders are called {twice!r}", expected="different names", change="the folders")
    return named_adapters(dict(zip(names, adapters, strict=True)))


def _absolute(paths: Sequence[str | Path]) -> list[Path]:
    """Paths that are valid from any folder; names of backbones as they are."""
    return [Path(resolved_path(Path(path))) if Path(path).exists() else Path(path) for path in paths]


def _saying(merged: MergedAdapters, recipe: MergeRecipe) -> MergedAdapters:
    """With the merge's own recipe in that of each adapter."""
    found = {}
    for name, adapter in merged.adapters.items():
        own = {**adapter.recipe.get(MERGED, {}), "method": dict(recipe.method), RECIPE: recipe.plain()}
        found[name] = replace(adapter, recipe={**adapter.recipe, MERGED: own})
    return MergedAdapters(found, merged.members)


def _save_models(
    merged: MergedAdapters,
    adapters: Mapping[str, Adapter],
    paths: Sequence[Path],
    backbone: Backbone,
    target: Path,
    *,
    overwrite: bool,
) -> None:
    """Write a model for each head, each like the operand whose head it has; a single one as the folder itself."""
    like = dict(zip(adapters, paths, strict=True))
    with replacing_folder(target, overwrite=overwrite) as new:
        for name, adapter in merged.adapters.items():
            save_finetuned(adapter, backbone, like[merged.members[name][0]], new / name)
        if len(merged.adapters) > 1:
            (new / HEADS).write_text(merged.describe_heads(), encoding="utf-8")
            return
        [only] = new.iterdir()
        inner = only.rename(new / INNER)  # no file of a model is called so
        for path in inner.iterdir():
            path.rename(new / path.name)
        inner.rmdir()
