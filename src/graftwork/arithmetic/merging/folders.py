"""Folders of adapters, or of fully fine-tuned models, merged into a folder of the same kind."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from graftwork.adapters import Adapter
from graftwork.adapters.folder import CONFIG, adapters_in
from graftwork.arithmetic.adapters.finetuned import finetuned_adapter, is_model_folder, save_finetuned
from graftwork.arithmetic.adapters.merging import (
    HEADS,
    MergedAdapters,
    is_of_several_heads,
    named_adapters,
    refuse_output,
)
from graftwork.arithmetic.adapters.scores import score_table
from graftwork.arithmetic.data.keeping import working_folder
from graftwork.arithmetic.merging.adaptermethods import (
    AdapterMethod,
    AdapterOperands,
    AdapterResult,
    make_adapter_method,
)
from graftwork.arithmetic.values import saving
from graftwork.backbones import Backbone
from graftwork.errors import AdapterError, RecipeError
from graftwork.folders import replacing_folder
from graftwork.tasks import Task, find_task
from graftwork.training.display import shown_on_stderr

INNER = ".model"


@dataclass(frozen=True)
class FolderMerge:
    """What a merge of folders gives.

    Attributes:
        output: the folder.
        result: the adapters, and what was chosen or learned.
        scores: of the result and of each operand, by name, then by task and metric; empty without tasks.
    """

    output: Path
    result: AdapterResult
    scores: Mapping[str, Mapping[str, float]]


def merge_folders(
    method: Mapping[str, Any],
    folders: Sequence[str | Path],
    output: str | Path,
    *,
    base: str | None = None,
    tasks: Sequence[str] = (),
    resume: bool = False,
    overwrite: bool = False,
    progress: bool = False,
    **options: Any,
) -> FolderMerge:
    """Merge adapters' folders, or those of fully fine-tuned models, and write the result, completely or not at all.

    Args:
        method: `name` and settings of the method.
        folders: of adapters, or of Hugging Face models.
        output: where the result goes: an adapter's folder, or one with an adapter for each head; of models, a model's,
            or one with a model for each head.
        base: the backbone. None: the one that the adapters name.
        tasks: tasks of which the result and the operands are scored, one for each or one for all. Models need them for
            methods that read data.
        resume: go on with an interrupted merge to the same output.
        overwrite: replace an existing output, and discard an interrupted merge.
        progress: report progress on standard error.
        options: fields of `AdapterOperands`.

    Raises:
        GraftworkError: the method, the folders or the output cannot be used; says what to change.
    """
    target = Path(output)
    paths = [Path(folder) for folder in folders]
    settings = dict(method)
    chosen: AdapterMethod = make_adapter_method(str(settings.pop("name", "")), settings)
    models = [is_model_folder(path) and not (path / CONFIG).is_file() for path in paths]
    of_models = all(models)
    _refuse(target, of_models=of_models, overwrite=overwrite)
    if len(tasks) > 1 and len(tasks) != len(paths):
        raise RecipeError(
            f"{len(tasks)} tasks are given for {len(paths)} operands",
            expected="one task for all, or one for each, in the same order",
            change="--task",
        )
    found = [find_task(name) for name in tasks]
    each: list[Task | None] = [*found] * len(paths) if len(found) == 1 else [*found] or [None] * len(paths)
    with working_folder(target, resume=resume, overwrite=overwrite) as working:
        frozen = Backbone.load(_base(paths, models, base), dtype="float32")
        loaded = [
            finetuned_adapter(path, frozen, task=task) if model else _for_task(Adapter.load(path), task)
            for path, model, task in zip(paths, models, each, strict=True)
        ]
        adapters = _named(paths, loaded)
        result = chosen.run(
            AdapterOperands(adapters=adapters, backbone=frozen, working=working, progress=progress, **options)
        )
        merged = _saying(result.merged, {"name": method["name"], **settings}, options)
        if of_models:
            _save_models(merged, adapters, paths, frozen, target, overwrite=overwrite)
        else:
            merged.save(target, overwrite=overwrite)
        scores: Mapping[str, Mapping[str, float]] = {}
        if tasks:
            with shown_on_stderr(shown=progress) as display:
                scores = score_table(adapters, merged, frozen, display=display)
    return FolderMerge(target, result, scores)


def _refuse(target: Path, *, of_models: bool, overwrite: bool) -> None:
    """Refuse an output before any work is done."""
    if of_models and not (overwrite and is_of_several_heads(target)):
        saving.refuse_existing(target, overwrite=overwrite)
    elif not of_models:
        refuse_output(target, overwrite=overwrite)


def _base(paths: Sequence[Path], models: Sequence[bool], base: str | None) -> str:
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
    return Adapter.load(paths[0]).backbone.name


def _for_task(adapter: Adapter, task: Task | None) -> Adapter:
    """An adapter whose data are those of a task."""
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


def _named(paths: Sequence[Path], adapters: Sequence[Adapter]) -> dict[str, Adapter]:
    """By the names of their tasks; where two have one task, by those of their folders."""
    names = [adapter.task.name for adapter in adapters]
    if len({*names}) < len(names):
        names = [path.resolve().name for path in paths]
    twice = next((name for i, name in enumerate(names) if name in names[:i]), None)
    if twice is not None:
        raise AdapterError(f"two folders are called {twice!r}", expected="different names", change="the folders")
    return named_adapters(dict(zip(names, adapters, strict=True)))


def _saying(merged: MergedAdapters, method: Mapping[str, Any], options: Mapping[str, Any]) -> MergedAdapters:
    """With the method and what was asked for in the recipe of each adapter."""
    asked = {name: value for name, value in options.items() if value not in (None, "auto")}
    found = {}
    for name, adapter in merged.adapters.items():
        own = {**adapter.recipe.get("merged", {}), "method": dict(method), **asked}
        found[name] = replace(adapter, recipe={**adapter.recipe, "merged": own})
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
