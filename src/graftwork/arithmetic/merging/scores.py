"""Scores of checkpoints with a task head, or with a language-model head, on the rows of tasks.

A model is scored by what lies in its folder, as anybody would load it. Where each of several models has its own task, a
model is scored on each of them by the head of that task's model over its own body.
"""

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch

from graftwork.adapters import Adapter
from graftwork.arithmetic.values.checkpoint import Checkpoint
from graftwork.arithmetic.values.roles import matching
from graftwork.arithmetic.values.saving import save_model
from graftwork.arithmetic.values.sources import Stored
from graftwork.arithmetic.values.weights import Weights, aligned
from graftwork.backbones import Backbone
from graftwork.distillation.pretrained import PretrainedTeacher
from graftwork.errors import RecipeError
from graftwork.kinds import KINDS
from graftwork.kinds.scoring import METRICS, compute
from graftwork.methods import LayerNormTuning
from graftwork.model import AdaptedModel
from graftwork.tasks import SplitName, Task, find_task, load_split
from graftwork.training.display import SILENT, Display
from graftwork.training.scoring import Scorer


def scored_kinds() -> list[str]:
    """The kinds of task that models are scored on: by a task head, answers about a text or about its words; by a
    language-model head, texts, and choices by their likelihood."""
    return [
        name
        for name, kind in KINDS.items()
        if "text" in kind.inputs and (kind.pooled or kind.by_token or name in scored_by_language())
    ]


def scored_by_language() -> list[str]:
    """Those that models are scored on by their language-model head."""
    return [name for name, kind in KINDS.items() if kind.generates or "choices" in kind.inputs]


class TaskScores:
    """Scores on tasks.

    Args:
        tasks: names of tasks, or of task files. As many as models: each is the task of one of them, by place.
        models: the models that are merged.
        split: the rows.
        max_length: at how many tokens a text is cut.
        display: where bars show how far a scoring is.

    Raises:
        RecipeError: a task is unknown, of a kind that is not scored; or there are several, and not one a model.
    """

    def __init__(
        self,
        tasks: Sequence[str],
        models: Sequence[Checkpoint],
        *,
        split: SplitName = "validation",
        max_length: int = 128,
        display: Display = SILENT,
    ) -> None:
        if len(tasks) > 1 and len(tasks) != len(models):
            raise RecipeError(
                f"{len(tasks)} tasks are given for {len(models)} models",
                expected="one task for all, or one for each model, in the same order",
                change="--task",
            )
        self.tasks = [_Rows(find_task(name), split) for name in tasks]
        self.heads = [*models] if len(tasks) > 1 else [None]
        self.max_length, self.display = max_length, display

    @property
    def by_language(self) -> bool:
        """Whether models are scored by their language-model head."""
        return all(rows.task.kind in scored_by_language() for rows in self.tasks)

    def of(self, weights: Weights, like: Checkpoint) -> dict[str, float]:
        """A model's scores, by `task metric`.

        Args:
            weights: the model's.
            like: a checkpoint with the same tensors, whose configuration and tokenizer it has.

        Raises:
            RecipeError: it has no head for the task, or has one with other labels.
        """
        found: dict[str, float] = {}
        for rows, head in zip(self.tasks, self.heads, strict=True):
            with self._folder(weights, like, head) as folder:
                scores = rows.score(folder, self.max_length, self.display)
            found |= {f"{rows.task.name} {name}": value for name, value in scores.items()}
        return found

    def goodness(self, scores: Mapping[str, float]) -> float:
        """The mean over tasks of how good their first metrics are; the more the better, at most 1."""
        mains = [(f"{rows.task.name} {rows.task.main_metric}", rows.task.main_metric) for rows in self.tasks]
        return sum(METRICS[metric].goodness(scores[key]) for key, metric in mains) / len(mains)

    @contextmanager
    def _folder(self, weights: Weights, like: Checkpoint, head: Checkpoint | None) -> Iterator[Path]:
        """A folder of the model, or of its body with another one's head."""
        source = weights.source
        stored = isinstance(source, Stored) and source.checkpoint is like
        if stored and (head is None or head is like):
            yield like.path
            return
        with tempfile.TemporaryDirectory(prefix="graftwork-") as temporary:
            whole, own = weights, like
            if head is not None and head is not like:
                theirs = Weights(Stored(head), origin=head)
                whole, own = aligned(theirs.body, _body_like(weights, theirs)) | theirs.head, head
            save_model(whole.source, own, Path(temporary) / "model", None, overwrite=False, display=SILENT)
            yield Path(temporary) / "model"


class _Rows:
    """The rows of a task, read once."""

    def __init__(self, task: Task, split: SplitName) -> None:
        if task.kind not in scored_kinds():
            raise RecipeError(
                f"task {task.name!r} is {task.kind}, on which models are not scored",
                expected=", ".join(scored_kinds()),
                change="--task",
            )
        self._given, self._split = task, split

    @cached_property
    def rows(self) -> Any:
        """The split."""
        return load_split(self.task, self._split, grouped=True)

    @cached_property
    def task(self) -> Task:
        """The task with its labels."""
        from graftwork.tasks import load

        named = KINDS[self._given.kind].named and self._given.labels is None
        return load(self._given, test=False).task if named else self._given

    def score(self, folder: Path, max_length: int, display: Display) -> dict[str, float]:
        """The scores of the model in a folder."""
        task, kind = self.task, KINDS[self.task.kind]
        if task.kind in scored_by_language():
            return self._by_language(folder, max_length, display)
        inputs = kind.inputs_of(self.rows)
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        with _of_a_model():
            model = PretrainedTeacher(
                str(folder), kind=task.kind, pairs=task.text_pair is not None, max_length=max_length, device=device
            )
            generic = tuple(f"LABEL_{i}" for i in range(len(model.labels or ())))
            order = None if model.labels == generic else model.order(task.labels)
        with display.bar(f"{task.name}, {self._split}", len(inputs), "rows", stays=False) as bar:
            logits = model.logits(inputs, bar.advance)
        if order is not None:
            logits = [own[:, order] for own in logits]
        if kind.by_token:
            names = task.labels or ()
            said: Any = [[names[int(row.argmax())] if not row.isnan().any() else "O" for row in own] for own in logits]
            there: Any = [[names[tag] for tag in tags] for tags in kind.labels_of(self.rows)]
        else:
            said, there = torch.cat(logits).numpy(), np.asarray(kind.labels_of(self.rows))
            expected = len(task.labels or "x")
            if said.shape[1] != expected:
                raise RecipeError(
                    f"the head has {said.shape[1]} outputs, and task {task.name!r} has {expected}",
                    expected="a model with a head for the task",
                    change="--task",
                )
        return compute(task.metrics, task.kind, said, there)

    def _by_language(self, folder: Path, max_length: int, display: Display) -> dict[str, float]:
        """The scores of the language model in a folder: as an adapter's on it, that changes nothing."""
        backbone = Backbone.load(str(folder), dtype="float32")
        if not backbone.generates:
            raise RecipeError(
                f"{folder.name!r} has no language-model head, by which task {self.task.name!r} is scored",
                expected="models with a language-model head",
                change="--task",
            )
        task = self.task
        own = Adapter.new(
            backbone,
            LayerNormTuning(),
            kind=task.kind,
            labels=task.labels,
            name=task.name,
            max_length=min(max_length, backbone.max_length or max_length),
            separator=task.separator,
        )
        model = AdaptedModel(backbone, {task.name: own})
        try:
            scorer = Scorer(model, task.name, task, self.rows, batch_size=16, split=self._split, display=display)
            scores = scorer()
        finally:
            model.detach()
        return {name: scores[name] for name in task.metrics}


@contextmanager
def _of_a_model() -> Iterator[None]:
    """Inside, what is said of teachers is said of models that are scored."""
    try:
        yield
    except RecipeError as error:
        words = error.problem.replace("teacher ", "model ", 1)
        raise RecipeError(words, expected=error.expected, change="--task") from error


def _body_like(weights: Weights, theirs: Weights) -> Weights:
    """The tensors of a model that another one has in its body."""
    match = matching([*theirs.body], [*weights])
    return weights.only([*match.values()])
