"""`tune`: from a task's data to a finished adapter.

A run works in a folder beside its output (`.NAME.tuning`), which holds the resolved recipe, a log and checkpoints. A
killed run leaves it there, and `resume` goes on from the last whole checkpoint to the same result. When the run ends,
the adapter appears at the output in one rename and the working folder goes.
"""

import logging
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

from datasets import Dataset
from transformers import TrainerCallback

from graftwork.adapters import Adapter, TaskIdentity
from graftwork.adapters.declared import counts, declare, refuse_nothing_to_train
from graftwork.adapters.new import identity_of
from graftwork.backbones import Backbone
from graftwork.backbones.devices import on
from graftwork.backbones.quiet import quiet_transformers
from graftwork.errors import RecipeError
from graftwork.kinds import KINDS
from graftwork.methods import Method
from graftwork.model import AdaptedModel
from graftwork.tasks import Task, TaskData
from graftwork.training.baseline import Scores, baseline
from graftwork.training.callbacks import Callback, checked_callbacks
from graftwork.training.compiling import compiled
from graftwork.training.coroutine import ThreadCoroutine
from graftwork.training.display import Display, shown_on_stderr
from graftwork.training.distilling import Lesson, load_lesson
from graftwork.training.finishing import finish
from graftwork.training.held_output import held_output
from graftwork.training.outputs import Output
from graftwork.training.prefix_cache import prefix_cache
from graftwork.training.processes import ALONE, Processes
from graftwork.training.progress import ProgressBar, json_lines, repeatable
from graftwork.training.recipe import Recipe, recipe_of
from graftwork.training.run_summary import joined, of_backbone, of_loading, of_pooling, of_task, of_training
from graftwork.training.scoring import Scorer
from graftwork.training.settings import TrainingSettings
from graftwork.training.sharding import load_backbone, parts_of, refuse_sharding
from graftwork.training.task_features import with_features
from graftwork.training.trainer import has_ended, last_checkpoint, tell_of_late_thawing
from graftwork.training.trainer_of_run import trainer_for

logger = logging.getLogger(__name__)


def tune(
    backbone: Backbone,
    *,
    task: str | Task,
    method: Method | str | Mapping[str, Any] | None = None,
    output: str | Path | None = None,
    data: str | None = None,
    pooling: str = "auto",
    add_tokens: Sequence[str] | None = None,
    resume: bool = False,
    overwrite: bool = False,
    progress: bool = False,
    callbacks: Sequence[Callback] = (),
    **training: Any,
) -> Adapter:
    """Tune an adapter for one task.

    Args:
        backbone: the frozen model. It is unchanged when the call returns.
        task: the name of a built-in task, the path of a task file, or a `Task`.
        method: a method, its name, or a mapping of `name` and settings, in which parts can be adapters' folders. None:
            `Houlsby()`.
        output: folder to save the adapter in; it must not exist. None: the adapter is returned without being saved.
        data: file, folder or hub id of the data, instead of the one that the task names.
        pooling: how a text becomes one vector for the head: `auto` (the backbone's pooling), `pooler`, `first`, `last`
            or `mean`.
        add_tokens: tokens to add to those of the backbone; their embeddings are trained and saved with the adapter.
        resume: continue an interrupted run to the same output.
        overwrite: replace an existing output, and discard an interrupted run.
        progress: report progress on standard error: with bars on a terminal, otherwise with a line every few seconds.
        callbacks: transformers' own (`transformers.TrainerCallback`), which are told of each step, evaluation and log,
            and can stop the run. They are no part of the recipe. What they raise ends the run.
        training: fields of `TrainingSettings`: seed, learning_rate, num_train_epochs, …

    Returns:
        The adapter of the checkpoint with the best validation score, with its scores.

    Raises:
        GraftworkError: a subclass that names what is wrong with the data, the settings or the output.
    """
    recipe = recipe_of(
        backbone, task=task, method=method, data=data, pooling=pooling, add_tokens=add_tokens, training=training
    )
    return tune_recipe(
        recipe,
        output=output,
        backbone=backbone,
        resume=resume,
        overwrite=overwrite,
        progress=progress,
        callbacks=callbacks,
    )


def tune_recipe(
    recipe: Recipe,
    *,
    output: str | Path | None = None,
    backbone: Backbone | None = None,
    data: TaskData | None = None,
    resume: bool = False,
    overwrite: bool = False,
    progress: bool = False,
    callbacks: Sequence[Callback] = (),
) -> Adapter:
    """Tune an adapter from a recipe.

    Args:
        recipe: the backbone, task, method and training settings.
        output, resume, overwrite, progress, callbacks: as for `tune`.
        backbone: the backbone, if it is loaded already. None: the one that the recipe names is loaded.
        data: the task's data, if they are loaded already. None: they are read. Teachers, who may label rows, read them.

    Returns:
        The adapter, as `tune` returns it.

    Raises:
        GraftworkError: as `tune`.
    """
    told = checked_callbacks(callbacks)
    processes = Processes.here()
    if not processes.first:  # the first one writes, reports, and knows what is to be resumed
        output, resume, overwrite, progress = None, False, False, False
    with held_output(output, resume=resume, overwrite=overwrite) as place:
        adapter, log = _run(
            recipe, backbone, place, data, resume=resume, progress=progress, callbacks=told, processes=processes
        )
        if output is not None and not place.finished:
            place.write(adapter, log, overwrite=overwrite)
        return adapter


def _run(
    recipe: Recipe,
    backbone: Backbone | None,
    place: Output,
    given: TaskData | None,
    *,
    resume: bool,
    progress: bool,
    callbacks: Sequence[TrainerCallback],
    processes: Processes,
) -> tuple[Adapter, str]:
    """The finished adapter and its log, which is not told anew of one that was finished before."""
    method, task = recipe.find_method(), recipe.find_task()
    refuse_sharing(recipe, processes)
    with shown_on_stderr(shown=progress) as display:
        given_backbone = backbone is not None
        if backbone is None:
            display.say(of_loading(recipe.backbone))
            backbone = load_backbone(recipe)
        if processes.of_first(place.finished):
            resolved = recipe.resolved(backbone, task, method)
            return processes.by_first(lambda: place.finished_adapter(resolved)), ""
        refuse_idle(recipe, backbone)
        resolved = recipe.resolved(backbone, task, method)
        if resolved.distill is not None:  # teachers may be asked for hours, and what they say is kept
            place.begin(resolved, resume=resume)
        data, lesson = load_lesson(resolved, backbone, place.working, display, given)
        together = processes.by_all if recipe.train.fsdp else processes.by_first
        with parts_of(backbone, recipe, given=given_backbone):
            model = adapted_for(backbone, resolved.train)
            try:
                run = Run(
                    model,
                    task.name,
                    resolved,
                    data,
                    place,
                    resume=resume,
                    display=display,
                    lesson=lesson,
                    callbacks=callbacks,
                    processes=processes,
                )
                about, training = run.summary(recipe.train)
                parts = processes.count if recipe.train.fsdp else 1
                display.say(joined(of_backbone(backbone, parts=parts), about), training)
                run.baseline = together(run.measure_baseline)
                with quiet_transformers():
                    run.train()
                return together(run.finish)
            finally:
                model.detach()


def refuse_idle(recipe: Recipe, backbone: Backbone) -> None:
    """Refuse a method that leaves nothing to train for a task, before its data are read.

    Raises:
        MethodError: it does.
    """
    method, task = recipe.find_method(), recipe.find_task()
    if KINDS[task.kind].named:
        return  # there is a classifier, however many labels the data have
    declared = declare(backbone, method, recipe.head(task, method, backbone), added=len(recipe.add_tokens or ()))
    refuse_nothing_to_train(method, task.kind, backbone, sum(counts(declared).values()))


def refuse_sharing(recipe: Recipe, processes: Processes) -> None:
    """Refuse what several processes cannot do together.

    Raises:
        RecipeError: teachers are asked, or the states of a frozen prefix are to be cached; or as `refuse_sharding`.
    """
    refuse_sharding(recipe, processes)
    if not processes.several:
        return
    started = f"the run was started as {processes.count} processes"
    if recipe.distill is not None:
        raise RecipeError(f"{started}, which cannot ask teachers", expected="one process", change="the section distill")
    if recipe.train.prefix_cache == "on":
        raise RecipeError(
            f"{started}, which keep no states of a frozen prefix",
            expected="one process, or auto or off",
            change="--train.prefix_cache",
        )


def adapted_for(backbone: Backbone, settings: TrainingSettings) -> AdaptedModel:
    """The backbone with nothing on it yet, as resolved settings want it in training."""
    model = AdaptedModel(backbone, backbone_dropout=settings.backbone_dropout == "keep")
    if settings.gradient_checkpointing:
        model.gradient_checkpointing_enable()
    return model


class Run:
    """The tuning of one adapter on a model: made ready here, then trained, then finished.

    Args:
        model: it is given the adapter.
        name: the adapter's on the model.
        recipe: resolved.
        data: the task's.
        place: held, in whose working folder the run works.
        resume: go on from the last checkpoint there.
        display: where it shows how far it is.
        lesson: what the adapter learns from besides its rows' labels.
        callbacks: what is told of its steps.
        coroutine: what it runs in, where it is one of several.
        processes: those that train the adapter together.

    Attributes:
        baseline: what the adapter is compared with; empty for nothing.

    Raises:
        RecipeError: the run to resume was begun with another recipe.
    """

    def __init__(
        self,
        model: AdaptedModel,
        name: str,
        recipe: Recipe,
        data: TaskData,
        place: Output,
        *,
        resume: bool,
        display: Display,
        lesson: Lesson | None = None,
        callbacks: Sequence[TrainerCallback] = (),
        coroutine: ThreadCoroutine | None = None,
        processes: Processes = ALONE,
    ) -> None:
        self.processes = processes
        self.model, self.name, self.recipe, self.data, self.alone = model, name, recipe, data, coroutine is None
        self.display = display
        self.baseline: Scores = {}
        method, settings = recipe.find_method(), recipe.train
        head = recipe.head(data.task, method, model.backbone).fitted(KINDS[data.task.kind].labels_of(data.train))
        identity = identity_by(data.task, recipe, model.backbone)
        new = Adapter.create(model.backbone, method, head, identity, seed=settings.seed)
        new = with_features(new, model.backbone, data.train)
        if recipe.start is not None:
            new = recipe.start.begin(new)
        model.add(name, processes.of_first(new), trainable=True)
        place.begin(recipe, resume=resume)
        self.checkpoint = processes.of_first(last_checkpoint(place.working) if resume else None)
        self.scorer = self._scorer("validation", data.validation)
        self.trainer = trainer_for(
            model,
            name,
            data,
            settings,
            place.working,
            self.scorer,
            callbacks=callbacks,
            coroutine=coroutine,
            processes=processes,
        )
        if lesson is not None:
            model.in_training(name).learn(lesson.loss, lesson.loss.projection)
            self.trainer.lesson = lesson
        self.trainer.add_callback(ProgressBar(name, data.task.main_metric, display))
        tell_of_late_thawing(self.trainer, settings)

    def summary(self, given: TrainingSettings) -> tuple[str, str]:
        """What a run begins with: what is tuned on what, and how it is trained.

        Args:
            given: the training settings before defaults were filled in.
        """
        data, head = self.data, self.model.residents.named(self.name).adapter.head
        splits = {"train": data.train, "validation": data.validation, "test": data.test}
        rows = {split: len(own) for split, own in splits.items() if own is not None}
        pooling = of_pooling(head.pooled_by, self.recipe.pooling_source)
        about = joined(f"method {self.recipe.method['name']}", pooling, of_task(data.task, rows))
        return about, of_training(self.recipe.train, given, self.trainer.steps)

    def measure_baseline(self) -> Scores:
        """What the adapter is to be compared with, unless the recipe turns that off. Outside the model's own passes no
        adapter acts on the backbone."""
        if self.recipe.train.baseline == "off":
            return {}
        identity = self.model.residents.named(self.name).adapter.task
        return baseline(self.model.backbone, self.data, identity, self.display)

    def train(self) -> None:
        """From the start or the checkpoint to the end; the adapter is then the best one."""
        checkpoint = self.checkpoint
        if checkpoint is not None and has_ended(checkpoint):
            self.trainer.resume_from(checkpoint)
            return
        # Passes that several share begin where all of them begin: at the input.
        cache = partial(prefix_cache, self.trainer, self.scorer, self.recipe.train, self.display)
        kept = cache() if self.alone and not self.processes.several else nullcontext()
        if self.processes.several:
            self.processes.share_randomness()
        with on(self.model.device), compiled(self.model) if self.recipe.train.torch_compile else nullcontext(), kept:
            self.trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)

    def finish(self) -> tuple[Adapter, str]:
        """The finished adapter with its scores, and its log."""
        adapter = finish(
            self.model,
            self.name,
            self.trainer.adapter,
            self.data,
            self.scorer,
            self._scorer,
            recipe=self.recipe,
            baseline=self.baseline,
        )
        history = self.trainer.state.log_history
        return adapter, json_lines(repeatable(row for row in history if "step" in row))

    def _scorer(self, split: str, rows: Dataset) -> Scorer:
        settings = self.recipe.train
        return Scorer(
            self.model,
            self.name,
            self.data.task,
            rows,
            batch_size=settings.per_device_eval_batch_size,
            generation_examples=settings.generation_examples,
            split=split,
            display=self.display,
        )


def identity_by(task: Task, recipe: Recipe, backbone: Backbone) -> TaskIdentity:
    """What the adapter has to know of its task, by a resolved recipe."""
    settings = recipe.train
    return identity_of(
        backbone,
        kind=task.kind,
        pairs=task.text_pair is not None,
        separator=task.separator,
        max_length=settings.max_length,
        max_target_length=settings.max_target_length,
        name=task.name,
        labels=task.labels,
        added_tokens=recipe.add_tokens or (),
        max_new_tokens=settings.max_new_tokens,
        num_beams=settings.num_beams,
    )
