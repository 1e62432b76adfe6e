"""A run whose adapter learns from teachers: its data, with the teachers' labels where they have none, and batches."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import Dataset

from graftwork.adapters.declared import counts, declare
from graftwork.backbones import Backbone
from graftwork.distillation import Teaching
from graftwork.distillation.outputs import refuse_empty
from graftwork.encoding import Row
from graftwork.errors import RecipeError
from graftwork.heads import Head
from graftwork.heads.distilling import DistillationLoss, require_distillable
from graftwork.kinds import KINDS
from graftwork.methods import Method
from graftwork.tasks import TaskData, load
from graftwork.tasks.data import Labeller
from graftwork.training.display import Display
from graftwork.training.recipe import Recipe
from graftwork.training.seeds import seed_of

NUMBER = "row"
"""The name under which a row has its place among the training rows."""

TEACHER_OUTPUTS = "teacher_outputs"
"""The argument of `AdaptedModel.forward` that a batch has besides."""


@dataclass(frozen=True)
class Lesson:
    """What a run's adapter learns from.

    Attributes:
        teaching: the teachers, and what they say of the training rows.
        loss: what is minimised.
    """

    teaching: Teaching
    loss: DistillationLoss

    def rows(self, rows: Any) -> "NumberedRows":
        """Rows that know their places, for `collate`."""
        return NumberedRows(rows)

    def collate(self, inner: Callable[[list[Any]], Mapping[str, Any]], rows: Sequence[Row]) -> dict[str, Any]:
        """A batch of rows, with what the teachers say of them.

        Args:
            inner: makes batches of rows that do not know their places.
        """
        own = [{name: value for name, value in row.items() if name != NUMBER} for row in rows]
        batch = inner(own)
        numbers = [row[NUMBER] for row in rows]
        return {**batch, TEACHER_OUTPUTS: self.teaching.collate(own, numbers, batch["input_ids"].shape[-1])}


class NumberedRows(Dataset[Row]):
    """Rows, each with its place among them."""

    def __init__(self, rows: Any) -> None:
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, place: int) -> Row:
        return {**self.rows[place], NUMBER: place}


def load_lesson(
    recipe: Recipe, backbone: Backbone, folder: Path, display: Display, given: TaskData | None = None
) -> tuple[TaskData, Lesson | None]:
    """The data of a run, and what it learns from besides; None: its recipe has no teachers.

    Args:
        recipe: resolved.
        backbone: the student's, held by no model.
        folder: the run's, where a run before may have kept what the teachers say.
        display: where bars show how far the teachers are.
        given: the data, if they are loaded already; with teachers they are read nevertheless.

    Raises:
        GraftworkError: the data, or the teachers, are not what they should be.
    """
    task, method, settings = recipe.find_task(), recipe.find_method(), recipe.distill
    if settings is None:
        return given or load(task), None
    assert recipe.train.max_length is not None  # of a resolved recipe
    teaching = Teaching(
        settings,
        backbone,
        kind=task.kind,
        pairs=task.text_pair is not None,
        max_length=recipe.train.max_length,
        folder=folder,
    )
    labels = task.labels or teaching.labels
    teaching.use_labels(labels)
    head = recipe.head(task.model_copy(update={"labels": labels}), method, backbone)
    teaching.check(head)
    if settings.hidden:
        _refuse_still_vectors(method, head, backbone, added=len(recipe.add_tokens or ()))
    output_type = require_distillable(head)

    def label(inputs: Sequence[Any]) -> list[Any]:
        settings.share(labelled=False)
        refuse_empty(inputs)
        with display.bar(f"{task.name}, labels of teachers", len(inputs) * len(teaching.teachers), "rows") as bar:
            return teaching.decide(inputs, output_type, bar.advance)

    data = load(task, labeller=Labeller(labels, label))
    teaching.use_labels(data.task.labels)
    generator = torch.Generator().manual_seed(seed_of("projection", recipe.train.seed))
    loss = teaching.loss(labelled=data.labelled, generator=generator)
    inputs = KINDS[task.kind].inputs_of(data.train)
    with display.bar(f"{task.name}, teachers", len(inputs) * len(teaching.teachers), "rows") as bar:
        teaching.prepare(inputs, recipe.head(data.task, method, backbone), bar.advance)
    return data, Lesson(teaching, loss)


def _refuse_still_vectors(method: Method, head: Head, backbone: Backbone, *, added: int) -> None:
    """Refuse to compare vectors that no training changes.

    Raises:
        RecipeError: the method trains nothing that the head reads.
    """
    trained = counts(declare(backbone, method, head, added=added))
    if not trained["adapter"] + trained["norms"]:
        raise RecipeError(
            f"hidden would do nothing: method {method.name!r} trains the head alone, and vectors stay as they are",
            expected="hidden 0, or a method that changes the backbone's states",
            change="--hidden, or --method",
        )
