"""`tune_tasks`: several tasks train one adapter, each with a head of its own.

On the model there is an adapter in training for each task. They have the method's parameters in common, so that one
trainer, one optimizer and one series of checkpoints serve all of them, and rows of several tasks share a pass. What is
saved is an adapter for each task, so that each can be used by itself.

Caruana 1997, "Multitask Learning"; with adapters: Stickland & Murray 2019, "BERT and PALs", arXiv:1902.02671.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from transformers import TrainerCallback

from graftwork.adapters import Adapter
from graftwork.backbones import Backbone
from graftwork.backbones.quiet import quiet_transformers
from graftwork.errors import RecipeError
from graftwork.methods import Houlsby, Method, as_method
from graftwork.settings.yamlfile import RECIPE, read_yaml
from graftwork.tasks import Task, load
from graftwork.training.callbacks import Callback, checked_callbacks
from graftwork.training.display import shown_on_stderr
from graftwork.training.held_output import held_output
from graftwork.training.multi_task_folder import (
    TASKS_FILE,
    fill_tasks_folder,
    read_tasks_folder,
    read_tasks_recipe,
)
from graftwork.training.multi_task_recipe import TASKS, MultiTaskRecipe
from graftwork.training.multi_task_run import MultiTaskRun
from graftwork.training.outputs import Output, refuse_differences
from graftwork.training.recipe import Recipe
from graftwork.training.run_summary import joined, of_backbone, of_loading
from graftwork.training.settings import refuse_unsharded
from graftwork.training.tuning import adapted_for, refuse_idle


def tune_tasks(
    backbone: Backbone,
    tasks: Sequence[str | Task],
    *,
    method: Method | str | None = None,
    output: str | Path | None = None,
    sampling_temperature: float = 10.0,
    task_weights: Mapping[str, float] | None = None,
    pooling: str = "auto",
    add_tokens: Sequence[str] | None = None,
    resume: bool = False,
    overwrite: bool = False,
    progress: bool = False,
    callbacks: Sequence[Callback] = (),
    **training: Any,
) -> dict[str, Adapter]:
    """Tune one adapter for several tasks together: multi-task training.

    All parameters of the method are shared by the tasks, but for those that a method has of each task; each task has a
    head of its own. Batches have rows of several tasks. The loss is the mean over all rows of a step, those of a task
    times its weight.

    Args:
        backbone: the frozen model. It is unchanged when the call returns.
        tasks: two or more tasks, each the name of a built-in task, the path of a task file, or a `Task`.
        method: a method or its name. None: `Houlsby()`.
        output: folder to save the adapters in, one in a folder of each task's name, with `tasks.json`, which lists
            them; it must not exist. None: they are returned without being saved.
        sampling_temperature: T: a task with N training rows has a share of each epoch that is proportional to N^(1/T).
            1 is in proportion to the sizes. An epoch has as many rows as all tasks together.
        task_weights: factors of the tasks' losses, by name; 1 where nothing is said.
        pooling, add_tokens: as for `tune`.
        resume: continue an interrupted run to the same output.
        overwrite: replace an existing output, and discard an interrupted run.
        progress: report progress on standard error.
        callbacks: as for `tune`.
        training: fields of `TrainingSettings`. The checkpoint is chosen by the mean of the tasks' main metrics: those
            of which lower is better, such as a loss, count as 1 / (1 + value), and BLEU and chrF as a hundredth.

    Returns:
        By task, the adapter of the checkpoint with the best mean score, with the task's scores. Each can be used by
        itself.

    Raises:
        GraftworkError: a subclass that names what is wrong with the tasks, the settings or the output.
    """
    method = as_method(Houlsby() if method is None else method)
    recipe = MultiTaskRecipe.parse(
        {
            "backbone": backbone.name,
            TASKS: tasks if isinstance(tasks, str) else list(map(_as_value, tasks)),
            "method": {"name": method.name, **method.model_dump(mode="json")},
            "pooling": pooling,
            "add_tokens": add_tokens if add_tokens is None or isinstance(add_tokens, str) else list(add_tokens),
            "sampling_temperature": sampling_temperature,
            "task_weights": dict(task_weights or {}),
            "train": training,
        },
        origin="the arguments of tune_tasks",
    )
    return tune_multi_task_recipe(
        recipe,
        output=output,
        backbone=backbone,
        resume=resume,
        overwrite=overwrite,
        progress=progress,
        callbacks=callbacks,
    )


def _as_value(task: str | Task) -> Any:
    return task.model_dump(mode="json", exclude_none=True) if isinstance(task, Task) else task


def tune_multi_task_recipe(
    recipe: MultiTaskRecipe,
    *,
    output: str | Path | None = None,
    backbone: Backbone | None = None,
    resume: bool = False,
    overwrite: bool = False,
    progress: bool = False,
    callbacks: Sequence[Callback] = (),
) -> dict[str, Adapter]:
    """Tune one adapter for several tasks from a recipe.

    Args:
        recipe: the backbone, tasks, method and settings.
        output, resume, overwrite, progress, callbacks: as for `tune_tasks`.
        backbone: the backbone, if it is loaded already. None: the one that the recipe names is loaded.

    Returns:
        The adapters, as `tune_tasks` returns them.

    Raises:
        GraftworkError: as `tune_tasks`.
    """
    told = checked_callbacks(callbacks)
    with held_output(output, resume=resume, overwrite=overwrite, config=TASKS_FILE) as place:
        return _run(recipe, backbone, place, told, resume=resume, overwrite=overwrite, progress=progress)


def _run(
    recipe: MultiTaskRecipe,
    backbone: Backbone | None,
    place: Output,
    callbacks: Sequence[TrainerCallback],
    *,
    resume: bool,
    overwrite: bool,
    progress: bool,
) -> dict[str, Adapter]:
    _refuse_unusable(recipe.first)
    with shown_on_stderr(shown=progress) as display:
        if backbone is None:
            display.say(of_loading(recipe.first.backbone))
            backbone = Backbone.load(recipe.first.backbone, dtype=recipe.first.dtype)
        resolved = recipe.resolved(backbone)
        if resume:
            _refuse_other_tasks(resolved, place)
        if place.finished:
            return _finished(resolved, place)
        for own in recipe.recipes.values():
            refuse_idle(own, backbone)
        data = {name: load(own.find_task()) for name, own in resolved.recipes.items()}
        model = adapted_for(backbone, resolved.first.train)
        try:
            run = MultiTaskRun(model, resolved, data, place, resume=resume, display=display, callbacks=callbacks)
            display.say(joined(of_backbone(backbone), run.about), *run.summary(recipe.first))
            run.measure_baselines()
            with quiet_transformers():
                run.train()
            adapters, about, log = run.finish()
            content = resolved.as_file()
            place.put(lambda new: fill_tasks_folder(new, adapters, about, content, log), overwrite=overwrite)
            return adapters
        finally:
            model.detach()


def _refuse_unusable(recipe: Recipe) -> None:
    """Refuse sections and training settings that are of one task's run."""
    settings = recipe.train
    refuse_unsharded(settings, several=False)
    for section, what in (("start", "begin with the tensors of another adapter"), ("distill", "learn from teachers")):
        if getattr(recipe, section) is not None:
            raise RecipeError(
                f"tasks that train one adapter cannot {what}: {section} would do nothing",
                expected=f"a recipe of one task, or of several without {section}",
                change=section,
            )
    if settings.prefix_cache == "on":
        raise RecipeError(
            "tasks that train one adapter cannot have a prefix cache: passes that they share begin at the input",
            expected="auto or off",
            change="--train.prefix_cache",
        )
    if settings.tokens_per_batch is not None:
        raise RecipeError(
            "tasks that train one adapter have a number of rows in each batch, and no number of tokens",
            expected="--train.per_device_train_batch_size",
            change="--train.tokens_per_batch",
        )
    if settings.torch_compile:
        raise RecipeError(
            "tasks that train one adapter cannot have compiled layers: which of them share a pass changes from step to "
            "step, and each time another pass would be compiled",
            expected="false",
            change="--train.torch_compile",
        )


def _refuse_other_tasks(recipe: MultiTaskRecipe, place: Output) -> None:
    """Refuse to resume a run of other tasks."""
    for folder in (place.working, place.target):
        if (folder / RECIPE).is_file():
            begun = read_yaml(folder / RECIPE).get(TASKS)
            if not isinstance(begun, Mapping) or list(begun) != list(recipe.recipes):
                was = ", ".join(map(str, begun)) if isinstance(begun, Mapping) else "one task"
                raise RecipeError(
                    f"the run to resume was started with {was}, and now there are {', '.join(recipe.recipes)}",
                    expected="the same tasks in the same order",
                    change="--task, or --overwrite without --resume to start again",
                )
            return


def _finished(recipe: MultiTaskRecipe, place: Output) -> dict[str, Adapter]:
    """The adapters that are there already.

    Raises:
        RecipeError: they were tuned by another recipe.
    """
    adapters = read_tasks_folder(place.target)
    refuse_differences(
        read_tasks_recipe(place.target),
        recipe.as_file(),
        f"{str(place.target)!r} is finished, and was tuned by another recipe",
        expected=f"the settings in {place.target / RECIPE}",
        change="the named settings, another --output, or --overwrite without --resume to tune it again",
    )
    return adapters
