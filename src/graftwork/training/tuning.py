"""`tune`: from a task's data to a finished adapter.

A run works in a folder beside its output (`.NAME.tuning`), which holds the resolved recipe, a log and checkpoints. A
killed run leaves it there, and `resume` goes on from the last whole checkpoint to the same result. When the run ends,
the adapter appears at the output in one rename and the working folder goes.
"""

import logging
import os
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import yaml
from datasets import Dataset
from transformers import EarlyStoppingCallback
from transformers.trainer_callback import PrinterCallback

from graftwork.adapters import Adapter, TaskIdentity
from graftwork.adapters.folder import RECIPE, make_folder, refuse_existing, write_adapter
from graftwork.backbones import Backbone
from graftwork.backbones.quiet import quiet_transformers
from graftwork.errors import OutputError, RecipeError
from graftwork.methods import Houlsby, Method
from graftwork.model import AdaptedModel
from graftwork.tasks import METRICS, Task, TaskData, load
from graftwork.training.examples import examples, lengths_of
from graftwork.training.prefix_cache import prefix_cache
from graftwork.training.progress import Log, ProgressBar, json_lines, repeatable
from graftwork.training.recipe import Recipe
from graftwork.training.scoring import Judge
from graftwork.training.settings import TrainingSettings
from graftwork.training.trainer import AdapterTrainer, has_ended, last_checkpoint
from graftwork.yamlfile import read_yaml

LOG = "log.jsonl"

logger = logging.getLogger(__name__)


def tune(
    backbone: Backbone,
    *,
    task: str | Task,
    method: Method | None = None,
    output: str | Path | None = None,
    data: str | None = None,
    pooling: str = "auto",
    resume: bool = False,
    overwrite: bool = False,
    progress: bool = False,
    **training: Any,
) -> Adapter:
    """Tune a backbone on a task.

    Args:
        backbone: the frozen model. It is as it was when the call returns.
        task: a built-in task's name, a task file's path, or a `Task`.
        method: Houlsby adapters when left out.
        output: folder to save the adapter in; it must not exist. None only returns the adapter.
        data: where the task's data are, in the place of what the task says.
        pooling: how the head's input is made: `auto`, `pooler`, `first`, `last` or `mean`.
        resume: go on with a run to the same output that was killed.
        overwrite: replace an output that exists, and discard what a killed run left.
        progress: show a progress bar.
        training: fields of `TrainingSettings`: seed, learning_rate, num_train_epochs, …

    Returns:
        The adapter with the best validation score, with its scores.

    Raises:
        GraftworkError: a subclass that says what is wrong with the data, settings or output.
    """
    fields = (task if isinstance(task, Task) else Recipe.parse({"task": task}).find_task()).model_dump(mode="json")
    changes = {} if data is None else {"data": data}
    method = method or Houlsby()
    recipe = Recipe.parse(
        {
            "backbone": backbone.name,
            "task": {name: value for name, value in {**fields, **changes}.items() if value is not None},
            "method": {"name": method.name, **method.model_dump(mode="json")},
            "pooling": pooling,
            "train": training,
        },
        origin="the arguments of tune",
    )
    return tune_recipe(recipe, output=output, backbone=backbone, resume=resume, overwrite=overwrite, progress=progress)


def tune_recipe(
    recipe: Recipe,
    *,
    output: str | Path | None = None,
    backbone: Backbone | None = None,
    resume: bool = False,
    overwrite: bool = False,
    progress: bool = False,
) -> Adapter:
    """Tune as a recipe says. See `tune`."""
    if output is None:
        if resume:
            raise OutputError("a run without an output cannot be resumed", change="--output")
        with tempfile.TemporaryDirectory(prefix="graftwork.") as folder:
            return _run(recipe, backbone, Path(folder), resume=False, progress=progress)[0]
    # Out of links and independent of the current folder: the working folder stands beside the real output.
    target = Path(output).resolve()
    refuse_existing(target, overwrite=overwrite)
    working = target.parent / f".{target.name}.tuning"
    _refuse_interrupted(working, target, resume=resume, overwrite=overwrite)
    try:
        adapter, log = _run(recipe, backbone, working, resume=resume, progress=progress)
    except BaseException:
        # A run that failed before its first checkpoint has nothing to be resumed.
        if last_checkpoint(working) is None:
            shutil.rmtree(working, ignore_errors=True)
        raise
    write_adapter(adapter, target, overwrite=overwrite, beside={LOG: log})
    shutil.rmtree(working)
    return adapter


def _run(
    recipe: Recipe, backbone: Backbone | None, working: Path, *, resume: bool, progress: bool
) -> tuple[Adapter, str]:
    """The finished adapter and its log."""
    method, task = recipe.find_method(), recipe.find_task()
    backbone = backbone or Backbone.load(recipe.backbone, dtype=recipe.dtype)
    data = load(task)
    recipe = recipe.resolved(backbone, task, method)
    settings = recipe.train
    identity = _identity(data.task, settings)
    head = recipe.head(data.task, method, backbone)
    model = AdaptedModel(backbone, backbone_dropout=settings.backbone_dropout == "keep")
    try:
        model.add(task.name, Adapter.create(backbone, method, head, identity, seed=settings.seed), trainable=True)
        _begin(working, recipe, resume=resume)
        if settings.gradient_checkpointing:
            model.gradient_checkpointing_enable()
        checkpoint = last_checkpoint(working) if resume else None
        judge = _judge(model, data.task, data.validation, settings)
        trainer = _trainer(model, data, settings, working, judge)
        _tell_of_late_thawing(trainer, settings)
        bar = ProgressBar(task.name, task.main_metric)
        if progress:
            trainer.add_callback(bar)
        try:
            if checkpoint is not None and has_ended(checkpoint):
                trainer.take_up(checkpoint)
            else:
                with quiet_transformers(), prefix_cache(trainer, judge, settings):
                    trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
        finally:
            bar.close()
        # What is scored and saved is what the method makes of what was trained; checkpoints hold the latter.
        finished = trainer.adapter.finished(backbone)
        model.remove(task.name)
        model.add(task.name, finished)
        metrics = {"validation": judge()}
        if data.test is not None:
            metrics["test"] = _judge(model, data.task, data.test, settings)()
        adapter = replace(finished, metrics=metrics, recipe=recipe.model_dump(mode="json"))
        return adapter, json_lines(repeatable(row for row in trainer.state.log_history if "step" in row))
    finally:
        model.detach()


def _identity(task: Task, settings: TrainingSettings) -> TaskIdentity:
    """What the adapter has to know of its task, by resolved settings."""
    given: dict[str, Any] = {name: getattr(settings, name) for name in ("max_length", "max_target_length")}
    given["separator"] = task.separator
    return TaskIdentity(
        name=task.name,
        kind=task.kind,
        pairs=task.text_pair is not None,
        labels=task.labels,
        max_new_tokens=settings.max_new_tokens,
        num_beams=settings.num_beams,
        **{name: value for name, value in given.items() if value is not None},
    )


def _judge(model: AdaptedModel, task: Task, rows: Dataset, settings: TrainingSettings) -> Judge:
    return Judge(
        model,
        task.name,
        task,
        rows,
        batch_size=settings.per_device_eval_batch_size,
        generation_examples=settings.generation_examples,
    )


def _trainer(
    model: AdaptedModel, data: TaskData, settings: TrainingSettings, working: Path, judge: Judge
) -> AdapterTrainer:
    task, encoder = data.task, model.encoder(data.task.name)
    arguments = settings.arguments(
        working,
        metric=task.main_metric,
        greater_is_better=METRICS[task.main_metric].greater_is_better,
        cpu=model.backbone.device.type == "cpu",
    )
    rows = examples(encoder, task.kind, data.train)
    grouped = settings.train_sampling_strategy == "group_by_length"
    # Generating is slow: unless it chooses the checkpoint, it is done once, at the end.
    trainer = AdapterTrainer(
        model=model,
        args=arguments,
        adapter_name=task.name,
        lengths=lengths_of(encoder, rows) if grouped else None,
        schedule=settings.schedule,
        judge=partial(judge, generate=task.main_metric != "loss"),
        train_dataset=rows,
        eval_dataset=judge.encoded,
        data_collator=encoder.collate,
        callbacks=[Log(working / LOG)],
    )
    trainer.remove_callback(PrinterCallback)
    if settings.early_stopping_patience is not None:
        trainer.add_callback(EarlyStoppingCallback(settings.early_stopping_patience))
    return trainer


def _tell_of_late_thawing(trainer: AdapterTrainer, settings: TrainingSettings) -> None:
    """Say so when a run ends before everything in it is trained."""
    epochs = 1 + max((parameter.thaws for _, parameter in trainer.declared()), default=0)
    if settings.max_steps == -1 and (settings.num_train_epochs or epochs) < epochs:
        logger.warning(
            "a run of %g epochs ends before all layers are unfrozen, one an epoch: the last of them are trained from "
            "epoch %d (--train.num_train_epochs)",
            settings.num_train_epochs,
            epochs,
        )


def _begin(working: Path, recipe: Recipe, *, resume: bool) -> None:
    """Make the working folder, or check that a resumed run is the one that was begun there.

    Raises:
        RecipeError: the recipe is another one; says where they differ.
    """
    file, content = working / RECIPE, recipe.model_dump(mode="json")
    if resume and file.is_file():
        begun = read_yaml(file)
        differing = sorted(_differences(begun, content))
        if differing:
            raise RecipeError(
                f"the run to resume was begun with another recipe: {'; '.join(differing)}",
                expected=f"the settings in {file}",
                change="the named settings, or --overwrite without --resume to begin anew",
            )
        return
    make_folder(working)
    temporary = working / f".{RECIPE}"
    temporary.write_text(yaml.safe_dump(content, sort_keys=False), encoding="utf-8")
    os.replace(temporary, file)


def _refuse_interrupted(working: Path, target: Path, *, resume: bool, overwrite: bool) -> None:
    if resume and not working.is_dir():
        raise OutputError(
            f"there is no interrupted run to {str(target)!r}", expected=f"the folder {working}", change="--resume"
        )
    if not resume and working.exists():
        if not overwrite:
            raise OutputError(
                f"an interrupted run to {str(target)!r} is in {str(working)!r}",
                change="--resume to go on with it, or --overwrite to begin anew",
            )
        shutil.rmtree(working)


def _differences(begun: Mapping[str, Any], now: Mapping[str, Any], prefix: str = "") -> list[str]:
    found: list[str] = []
    for key in {*begun, *now}:
        was, is_ = begun.get(key), now.get(key)
        if isinstance(was, dict) and isinstance(is_, dict):
            found += _differences(was, is_, f"{prefix}{key}.")
        elif was != is_:
            found.append(f"{prefix}{key} was {was!r}, is {is_!r}")
    return found
