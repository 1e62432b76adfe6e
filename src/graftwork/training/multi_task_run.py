"""A run in which several tasks train one adapter: made ready, trained, and finished. See `multi_task`."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from datasets import Dataset
from transformers import EarlyStoppingCallback, TrainerCallback
from transformers.trainer_callback import PrinterCallback

from graftwork.adapters import Adapter
from graftwork.backbones.devices import on
from graftwork.errors import AdapterError, RecipeError
from graftwork.kinds import KINDS
from graftwork.model import AdaptedModel
from graftwork.tasks import TaskData
from graftwork.training.baseline import Scores, baseline
from graftwork.training.callbacks import with_scores_kept
from graftwork.training.display import Display
from graftwork.training.examples import examples, lengths_of
from graftwork.training.finishing import finish
from graftwork.training.mixture import MixedCollator, MixedRows, Mixture, task_rows, task_shares
from graftwork.training.multi_task_folder import TaskEntry, TasksFile
from graftwork.training.multi_task_recipe import MultiTaskRecipe
from graftwork.training.multi_task_trainer import SCORE, MeanScorer, MultiTaskTrainer, goodness
from graftwork.training.outputs import LOG, Output
from graftwork.training.progress import Log, ProgressBar, json_lines, repeatable
from graftwork.training.recipe import Recipe
from graftwork.training.run_summary import joined, of_pooling, of_task, of_training
from graftwork.training.scoring import Scorer
from graftwork.training.seeds import seed_of
from graftwork.training.task_features import with_features
from graftwork.training.trainer import has_ended, last_checkpoint
from graftwork.training.tuning import identity_by


class MultiTaskRun:
    """The tuning of one adapter for several tasks on a model: made ready here, then trained, then finished.

    Args:
        model: it is given an adapter for each task.
        recipe: resolved.
        data: by task.
        place: held, in whose working folder the run works.
        resume: go on from the last checkpoint there.
        display: where it shows how far it is.
        callbacks: what is told of its steps.

    Raises:
        RecipeError: the tasks cannot share the method's parameters; or the run to resume was begun with another recipe.
    """

    def __init__(
        self,
        model: AdaptedModel,
        recipe: MultiTaskRecipe,
        data: Mapping[str, TaskData],
        place: Output,
        *,
        resume: bool,
        display: Display,
        callbacks: Sequence[TrainerCallback] = (),
    ) -> None:
        self.model, self.recipe, self.data, self.display = model, recipe, data, display
        self.baselines: dict[str, Scores] = {name: {} for name in data}
        _add_adapters(model, recipe, data)
        place.begin(recipe.as_file(), resume=resume)
        self.checkpoint = last_checkpoint(place.working) if resume else None
        self.scorers = {name: self._scorer(name, "validation", own.validation) for name, own in data.items()}
        self.weights = {name: recipe.mixing.task_weights.get(name, 1.0) for name in data}
        self.sizes = {name: len(own.train) for name, own in data.items()}
        self.trainer = self._trainer(place.working, callbacks)

    @property
    def about(self) -> str:
        """What is tuned."""
        head = self.model.residents.named(next(iter(self.data))).adapter.head
        pooling = of_pooling(head.pooled_by, self.recipe.first.pooling_source)
        return joined(f"method {self.recipe.first.method['name']}", pooling, f"{len(self.data)} tasks together")

    def summary(self, given: Recipe) -> list[str]:
        """What a run begins with: its tasks, each with its share of the rows, and how it is trained."""
        shares = task_shares(list(self.sizes.values()), self.recipe.mixing.sampling_temperature)
        lines = []
        for (name, own), share in zip(self.data.items(), shares, strict=True):
            rows = {"train": len(own.train), "validation": len(own.validation)}
            weight = "" if self.weights[name] == 1 else f"weight {self.weights[name]:g}"
            lines.append(joined(of_task(own.task, rows), f"{100 * share:.1f} % of the training rows", weight))
        return [*lines, of_training(self.recipe.first.train, given.train, self.trainer.steps)]

    def measure_baselines(self) -> None:
        """Measure what each adapter is to be compared with, unless the recipe turns that off."""
        if self.recipe.first.train.baseline == "off":
            return
        for name, own in self.data.items():
            identity = self.model.residents.named(name).adapter.task
            self.baselines[name] = baseline(self.model.backbone, own, identity, self.display)

    def train(self) -> None:
        """From the start or the checkpoint to the end; the adapters are then the best ones."""
        checkpoint = self.checkpoint
        if checkpoint is not None and has_ended(checkpoint):
            self.trainer.resume_from(checkpoint)
            return
        with on(self.model.device):
            self.trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)

    def finish(self) -> tuple[dict[str, Adapter], TasksFile, str]:
        """The finished adapters with their scores, what is said of them, and the log."""
        trained = {name: self.model.adapter(name) for name in self.data}
        declared = {name: adapter.declared(self.model.backbone) for name, adapter in trained.items()}
        adapters = {
            name: finish(
                self.model,
                name,
                adapter,
                self.data[name],
                self.scorers[name],
                partial(self._scorer, name),
                recipe=self.recipe.recipes[name],
                baseline=self.baselines[name],
            )
            for name, adapter in trained.items()
        }
        temperature = self.recipe.mixing.sampling_temperature
        shares = task_shares(list(self.sizes.values()), temperature)
        entries = {
            name: TaskEntry(
                rows=self.sizes[name],
                share=share,
                weight=self.weights[name],
                metric=self.data[name].task.main_metric,
                metrics={split: dict(scores) for split, scores in adapter.metrics.items()},
                parameters=sum(p.count for p in declared[name].values() if p.trained and p.of_each_task),
                digest=adapter.digest,
            )
            for (name, adapter), share in zip(adapters.items(), shares, strict=True)
        }
        first = next(iter(declared.values()))
        about = TasksFile(
            method=self.recipe.first.find_method().name,
            sampling_temperature=temperature,
            score=sum(goodness(self.scorers[n], a.metrics["validation"]) for n, a in adapters.items()) / len(adapters),
            shared_parameters=sum(p.count for p in first.values() if p.trained and not p.of_each_task),
            tasks=entries,
        )
        history = self.trainer.state.log_history
        return adapters, about, json_lines(repeatable(row for row in history if "step" in row))

    def _scorer(self, name: str, split: str, rows: Dataset) -> Scorer:
        settings = self.recipe.recipes[name].train
        return Scorer(
            self.model,
            name,
            self.data[name].task,
            rows,
            batch_size=settings.per_device_eval_batch_size,
            generation_examples=settings.generation_examples,
            split=split,
            display=self.display,
        )

    def _trainer(self, working: Path, callbacks: Sequence[TrainerCallback]) -> MultiTaskTrainer:
        settings, model = self.recipe.first.train, self.model
        encoders = {name: model.encoder(name) for name in self.data}
        rows = {name: examples(encoders[name], own.task.kind, own.train) for name, own in self.data.items()}
        batches = Mixture(
            [lengths_of(encoders[name], own) for name, own in rows.items()],
            task_rows(list(self.sizes.values()), self.recipe.mixing.sampling_temperature),
            settings.per_device_train_batch_size,
            by_length=settings.train_sampling_strategy != "random",
            seed=settings.seed,
        )
        trainer = MultiTaskTrainer(
            model=model,
            args=settings.arguments(working, metric=SCORE, greater_is_better=True, device=model.device),
            weights=self.weights,
            batches=batches,
            head_learning_rate=settings.head_learning_rate,
            schedule=settings.schedule,
            scorer=MeanScorer(self.scorers),
            train_dataset=MixedRows(rows),
            eval_dataset=next(iter(self.scorers.values())).encoded,
            data_collator=MixedCollator({name: encoder.collate for name, encoder in encoders.items()}),
            callbacks=[*with_scores_kept(callbacks), Log(working / LOG)],
        )
        trainer.remove_callback(PrinterCallback)
        trainer.add_callback(ProgressBar(f"{len(self.data)} tasks", SCORE, self.display))
        if settings.early_stopping_patience is not None:
            trainer.add_callback(EarlyStoppingCallback(settings.early_stopping_patience))
        return trainer


def _add_adapters(model: AdaptedModel, recipe: MultiTaskRecipe, data: Mapping[str, TaskData]) -> None:
    """Have an adapter in training for each task, all of which share the first one's parameters."""
    first = next(iter(data))
    for number, (name, own) in enumerate(data.items()):
        settings = recipe.recipes[name]
        method = settings.find_method()
        labels = KINDS[own.task.kind].labels_of(own.train)
        head = settings.head(own.task, method, model.backbone).fitted(labels)
        identity = identity_by(own.task, settings, model.backbone)
        seed = settings.train.seed
        # What each task has of its own must not be the same for all of them.
        new = Adapter.create(
            model.backbone, method, head, identity, seed=seed if number == 0 else seed_of("task", seed, number)
        )
        try:
            new = with_features(replace(new, seed=seed), model.backbone, own.train)
            model.add(name, new, trainable=True, shares=None if number == 0 else first)
        except AdapterError as error:
            raise RecipeError(
                f"tasks {first!r} and {name!r} cannot train one adapter: {error.problem}",
                expected=error.expected,
                change="--task, or --method",
            ) from error
