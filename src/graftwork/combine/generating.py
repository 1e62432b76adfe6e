"""Generation: from a hypernetwork and a task to an ordinary adapter.

A task that trained the hypernetwork has all that it takes: its bottlenecks or grids are written out as they are. For
another task, from some labelled examples, what each task has of its own is trained, and the hypernetwork stays as it
is: of HyperFormer and HyperGrid the embedding and the head, of BiHNet the head alone, since the vectors are features of
the examples.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from graftwork.adapters import Adapter
from graftwork.adapters.contents import size_of_file
from graftwork.adapters.declared import usable_sites
from graftwork.adapters.folder import refuse_existing
from graftwork.backbones import Backbone
from graftwork.backbones.quiet import quiet_transformers
from graftwork.errors import AdapterError, DataError, RecipeError, nearest
from graftwork.methods import METHODS, Method
from graftwork.methods.hypernetwork import Hypernetwork
from graftwork.tasks import Task, TaskData, load
from graftwork.training.display import Display, shown_on_stderr
from graftwork.training.held_output import held_output
from graftwork.training.multi_task_folder import TASKS_FILE, read_tasks_folder
from graftwork.training.outputs import Output
from graftwork.training.recipe import Recipe
from graftwork.training.run_summary import joined, of_backbone, of_loading
from graftwork.training.tuning import Run, adapted_for

FEW_SHOT = {"max_steps": 200, "eval_strategy": "steps", "eval_steps": 20, "baseline": "off", "prefix_cache": "off"}
"""Training settings for a task of which there are some examples, where others are not given: an epoch of them is a step
or two."""


@dataclass(frozen=True)
class Generated:
    """What a hypernetwork makes for a task.

    Attributes:
        adapter: an ordinary adapter, with bottlenecks or grids as they were generated.
        source: the same as an adapter of the hypernetwork's method, which generates them in each pass; None where
            `resume` found an output that was finished before, which holds the ordinary one alone.
        hypernetwork: name of the method that generated it.
        own_parameters: how many numbers the task has of its own: its embedding or vectors, and its head.
        own_bytes: of a file with these alone.
    """

    adapter: Adapter
    source: Adapter | None
    hypernetwork: str
    own_parameters: int
    own_bytes: int


def generate_adapter(
    hypernetwork: Adapter | str | Path,
    task: str | Task | None = None,
    *,
    examples: str | Path | None = None,
    backbone: Backbone | None = None,
    dtype: str = "auto",
    output: str | Path | None = None,
    resume: bool = False,
    overwrite: bool = False,
    progress: bool = False,
    **training: Any,
) -> Generated:
    """Generate an adapter for a task by a hypernetwork.

    Args:
        hypernetwork: an adapter of a method with a hypernetwork, or its folder, or a folder of several tasks
            (`tune_tasks`).
        task: the name of a task that trained it; may be left out where there is only one. With `examples`, another
            task: a `Task`, the name of a built-in one, or the path of a task file.
        examples: a file of labelled examples of the other task, with its columns. Their scores choose the checkpoint,
            as there are no other rows, and are saved under `train`.
        backbone: the backbone, if it is loaded already. None: the one that the adapter names; without examples, no
            weights are loaded.
        dtype: with examples, precision of the backbone that is loaded.
        output: folder to save the adapter in; it must not exist. None: the adapter is returned without being saved.
        resume: with examples, continue an interrupted run to the same output.
        overwrite: replace an existing output, and discard an interrupted run.
        progress: report progress on standard error.
        training: with examples, fields of `TrainingSettings`.

    Raises:
        AdapterError: there is no such task, the adapter's method has no hypernetwork, or it is for another backbone.
        OutputError: the output exists already, or there is nothing to resume.
        RecipeError: the run to resume was begun with other settings, or with another hypernetwork.
        GraftworkError: with examples, as `tune`.
    """
    known = {hypernetwork.task.name: hypernetwork} if isinstance(hypernetwork, Adapter) else _read(Path(hypernetwork))
    for adapter in known.values():
        _method_of(adapter)
    if backbone is not None and dtype != "auto":
        raise RecipeError(
            f"dtype={dtype!r} would do nothing: the backbone is loaded already", expected="one of dtype and backbone"
        )
    if examples is None:
        idle = [*training, *(["dtype"] if dtype != "auto" else []), *(["resume"] if resume else [])]
        if idle:
            raise RecipeError(
                f"{', '.join(idle)} would do nothing: without examples nothing is trained",
                change="--examples, or leave them out",
            )
        return _of_known_task(_chosen(known, task), backbone, output, overwrite=overwrite)
    with (
        held_output(output, resume=resume, overwrite=overwrite) as place,
        shown_on_stderr(shown=progress) as display,
    ):
        first = next(iter(known.values()))
        if backbone is None:
            display.say(of_loading(first.backbone.name))
            backbone = Backbone.load(first.backbone.name, dtype=dtype)
        first.check(backbone)
        data = _load(task, Path(examples))
        recipe = _recipe(known, data.task, backbone, training)
        if place.finished:
            return _found(place.finished_adapter(recipe), recipe.find_method(), backbone)
        source, log = _trained(known, recipe, data, backbone, place, display, resume=resume)
        found = _generated(source, backbone)
        if output is not None:
            place.write(found.adapter, log, overwrite=overwrite)
        return found


def _of_known_task(
    source: Adapter, backbone: Backbone | None, output: str | Path | None, *, overwrite: bool
) -> Generated:
    """What is generated for a task that trained the hypernetwork."""
    if output is not None:
        refuse_existing(Path(output), overwrite=overwrite)
    if backbone is None:
        backbone = Backbone.outline(source.backbone.name)
        source.backbone.check_shape(backbone)
    else:
        source.check(backbone)
    found = _generated(source, backbone)
    if output is not None:
        found.adapter.save(output, overwrite=overwrite)
    return found


def _trained(
    known: Mapping[str, Adapter],
    recipe: Recipe,
    data: TaskData,
    backbone: Backbone,
    place: Output,
    display: Display,
    *,
    resume: bool,
) -> tuple[Adapter, str]:
    """The adapter of the hypernetwork's method with what the new task has of its own, and the run's log."""
    model = adapted_for(backbone, recipe.train)
    try:
        run = Run(model, data.task.name, recipe, data, place, resume=resume, display=display)
        _begin_with(run, known)
        display.say(joined(of_backbone(backbone), *run.summary(recipe.train)))
        with quiet_transformers():
            run.train()
        tuned, log = run.finish()
    finally:
        model.detach()
    scores, rows = tuned.metrics["validation"], tuned.rows["validation"]
    return replace(tuned, metrics={"train": scores}, rows={"train": rows}), log


def _read(folder: Path) -> dict[str, Adapter]:
    """The adapters of a folder, by task."""
    if (folder / TASKS_FILE).is_file():
        return read_tasks_folder(folder)
    adapter = Adapter.load(folder)
    return {adapter.task.name: adapter}


def _method_of(adapter: Adapter) -> Hypernetwork:
    if not isinstance(adapter.method, Hypernetwork) or not adapter.method.generates:
        suitable = ", ".join(name for name, method in METHODS.items() if issubclass(method, Hypernetwork))
        raise AdapterError(
            f"the adapter of task {adapter.task.name!r} is of method {adapter.method.name!r}, which generates nothing",
            expected=f"an adapter, or a folder of several tasks, of method {suitable}",
        )
    return adapter.method


def _chosen(known: Mapping[str, Adapter], task: str | Task | None) -> Adapter:
    """The adapter of a task that trained the hypernetwork."""
    if task is None and len(known) == 1:
        return next(iter(known.values()))
    name = task.name if isinstance(task, Task) else task
    if name is None or name not in known:
        what = "no task is given, and there are several" if name is None else f"no task {name!r} trained it"
        raise AdapterError(
            f"the hypernetwork cannot be asked for an adapter: {what}",
            expected=f"{nearest(name or '', known)}; or --examples of another task",
            change="--task",
        )
    return known[name]


def _load(task: str | Task | None, examples: Path) -> TaskData:
    """The examples, as the rows to train on and to choose the checkpoint by."""
    if not examples.is_file():
        raise DataError(f"there is no file {str(examples)!r}", expected="a file of examples", change="--examples")
    if task is None:
        raise RecipeError("examples are given, and no task", expected="a task, such as a file", change="--task")
    found = task if isinstance(task, Task) else Recipe.parse({"task": task}).find_task()
    file = examples.resolve()
    return load(
        found.override(
            data=str(file.parent),
            splits={"train": file.name, "validation": file.name},
            layout="table",
            source=None,
            subset=None,
            header=None,
            homepage=None,
            test_fraction=0.0,
        )
    )


def _recipe(known: Mapping[str, Adapter], task: Task, backbone: Backbone, training: Mapping[str, Any]) -> Recipe:
    """By which what the task has of its own is trained. It names the hypernetwork, by all that the run begins with."""
    first = next(iter(known.values()))
    method = _method_of(first)
    method = type(method).model_validate({**method.model_dump(mode="json"), "trains": "task"})
    own = {name: value for name, value in FEW_SHOT.items() if name != "max_steps" or "num_train_epochs" not in training}
    if "eval_strategy" in training:
        own.pop("eval_steps")
    recipe = Recipe.parse(
        {
            "backbone": backbone.name,
            "task": task.model_dump(mode="json", exclude_none=True),
            "method": {"name": method.name, **method.model_dump(mode="json")},
            "pooling": first.head.pooled_by or "auto",
            "add_tokens": list(first.task.added_tokens) or None,
            "train": {**own, **training},
        },
        origin="the arguments of generate_adapter",
        given=[f"train.{name}" for name in training],
    )
    by = {name: adapter.digest for name, adapter in known.items()}
    return recipe.resolved(backbone, task, method).model_copy(update={"generated_by": by})


def _begin_with(run: Run, known: Mapping[str, Adapter]) -> None:
    """Have the new task begin with the trained hypernetwork, and with the mean of the known tasks' embeddings.

    Raises:
        AdapterError: the new task's head reads other layers of the backbone than those of the known tasks.
    """
    resident = run.model.in_training(run.name)
    first = next(iter(known.values()))
    declared = first.declared(run.model.backbone)
    tensors = {name: tensor.detach().clone() for name, tensor in resident.tensors().items()}
    common = {name for name, p in declared.items() if p.group != "head"}
    if common != {name for name in tensors if not name.startswith("head.")}:
        raise AdapterError(
            f"the hypernetwork cannot make an adapter for task {run.data.task.name!r}: its head reads other layers of "
            "the backbone than the tasks that trained the hypernetwork",
            expected=f"a task of kind {first.kind}",
            change="--kind",
        )
    for name in common:
        if not declared[name].of_task:
            tensors[name] = first.tensors[name]
        elif declared[name].trained:
            tensors[name] = torch.stack([adapter.tensors[name] for adapter in known.values()]).mean(dim=0)
    resident.assign(tensors)


def _generated(source: Adapter, backbone: Backbone) -> Generated:
    """What is written out of an adapter of a hypernetwork."""
    usable = usable_sites(backbone, source.head)
    method, tensors = _method_of(source).written_out(source.tensors, source.method.sites(usable))
    acting = tuple(site.name for site in method.sites(usable))
    adapter = replace(source, method=method, tensors=tensors, sites=acting, fixed=())
    return replace(_found(adapter, source.method, backbone), source=source)


def _found(adapter: Adapter, method: Method, backbone: Backbone) -> Generated:
    """An adapter that was written out, by a method with a hypernetwork."""
    own = {name: p.shape for name, p in adapter.declared(backbone, method).items() if p.of_each_task}
    return Generated(
        adapter=adapter,
        source=None,
        hypernetwork=method.name,
        own_parameters=sum(int(torch.Size(shape).numel()) for shape in own.values()),
        own_bytes=size_of_file(own),
    )
