"""Scores of an adapter on labelled rows: what chooses a checkpoint, what is saved with the adapter, and what `evaluate`
gives are measured here, in the same passes.
"""

import logging
from collections.abc import Sequence
from typing import Any

import datasets
import numpy as np
from torch import Tensor

from graftwork.heads import IGNORED
from graftwork.model import AdaptedModel
from graftwork.predicting import Inference
from graftwork.prediction import first_pieces, tags_of, widen
from graftwork.running import AdaptedOutput
from graftwork.tasks import Task, compute
from graftwork.training.examples import each_target, inputs_of, labels_of, references_of

logger = logging.getLogger(__name__)


class Judge:
    """Scores an adapter on the same rows again and again.

    Args:
        model: it holds the adapter.
        name: the adapter's.
        task: with its labels.
        rows: a split, as `tasks.load` gives it.
        batch_size: rows in one pass.
        generation_examples: of generation, texts are made of the first so many sources only; None: of all. The loss is
            over all rows either way.
        max_new_tokens, num_beams: of generation, in the place of what the adapter was tuned with.
    """

    def __init__(
        self,
        model: AdaptedModel,
        name: str,
        task: Task,
        rows: datasets.Dataset,
        *,
        batch_size: int,
        generation_examples: int | None = None,
        max_new_tokens: int | None = None,
        num_beams: int | None = None,
    ) -> None:
        self.model, self.name, self.task, self.rows = model, name, task, rows
        self.batch_size = batch_size
        self.generation_examples = generation_examples
        self.options = {"max_new_tokens": max_new_tokens, "num_beams": num_beams}
        self.encoder = model.inference(name).encoder(name)
        generates = task.kind == "generation"
        inputs, labels = each_target(rows) if generates else (inputs_of(task.kind, rows), labels_of(task.kind, rows))
        self.encoded = self.encoder.encode(inputs, labels)

    def __call__(self, *, generate: bool = True) -> dict[str, float]:
        """The loss and the task's metrics.

        Args:
            generate: whether texts are made, for the metrics that need them; else there is only the loss. Other kinds
                of task have all their metrics either way.

        Raises:
            RecipeError: the model says what are no finite numbers.
        """
        said: dict[int, Any] = {}
        total, weight = 0.0, 0
        inference = self.model.inference(self.name)
        for places, batch in self.encoder.batches(self.encoded, self.batch_size):
            output = inference.output(batch, self.name)
            counted = _count(batch["labels"])
            total += output.require("loss").item() * counted if counted else 0.0
            weight += counted
            said.update(zip(places, self._read(inference, output, places), strict=True))
        loss = {"loss": total / weight if weight else 0.0}
        if self.task.kind != "generation":
            return {**loss, **self._compute(said)}
        return {**loss, **(self._generate() if generate else {})}

    def _read(self, inference: Inference, output: AdaptedOutput, places: Sequence[int]) -> Sequence[Any]:
        """What each row of a batch needs for the metrics."""
        if self.task.kind == "generation":
            return [None] * len(places)
        logits = output.require("logits")
        if self.task.kind != "token-classification":
            return logits.cpu().unbind()
        mask = first_pieces([self.encoded[place] for place in places], logits)
        ids = inference.decide(logits, mask, self.name).tolist()
        labels = self.task.labels or ()
        return [tags_of(self.encoded[place], ids[i], labels) for i, place in enumerate(places)]

    def _compute(self, said: dict[int, Any]) -> dict[str, float]:
        labels = labels_of(self.task.kind, self.rows)
        if self.task.kind == "token-classification":
            names = self.task.labels or ()
            there = [[names[tag] for tag in tags] for tags in labels]
            return compute(self.task.metrics, self.task.kind, [said[i] for i in range(len(said))], there)
        return compute(self.task.metrics, self.task.kind, widen(said).numpy(), np.asarray(labels))

    def _generate(self) -> dict[str, float]:
        if set(self.task.metrics) == {"loss"}:
            return {}
        count = min(self.generation_examples or len(self.rows), len(self.rows))
        if count < len(self.rows):
            logger.warning(
                "texts are generated of the first %d of %d sources, and scored (generation_examples)",
                count,
                len(self.rows),
            )
        sources = list(self.rows["text"])[:count]
        made = self.model.texts(sources, self.name, batch_size=self.batch_size, **self.options)
        return compute(self.task.metrics, self.task.kind, made, references_of(self.rows)[:count])


def _count(labels: Tensor) -> int:
    """What a batch's mean loss is the mean of: its rows, or its tokens that have a label."""
    return len(labels) if labels.dim() == 1 else int((labels != IGNORED).sum())
