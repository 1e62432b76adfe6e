"""Scores of an adapter on labelled rows: what chooses a checkpoint, what is saved with the adapter, and what `evaluate`
gives are measured here, in the same passes.
"""

import logging
import math
from collections.abc import Sequence
from typing import Any

import datasets

from graftwork.errors import DivergedError
from graftwork.heads import Head
from graftwork.inference.predicting import Inference
from graftwork.kinds import KINDS
from graftwork.kinds.generation import references_of
from graftwork.kinds.scoring import compute
from graftwork.model import AdaptedModel
from graftwork.passes.call import AdaptedOutput
from graftwork.settings.checked import require_count
from graftwork.tasks import Task
from graftwork.training.display import SILENT, Display

logger = logging.getLogger(__name__)


class Scorer:
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
        split: which rows they are, as a bar says it.
        display: where a bar shows how far each scoring is.

    Raises:
        RecipeError: `generation_examples` is not a whole number of 1 or more.

    Attributes:
        outcome: predictions and labels, as `compute` takes them, of the last time; None where none were made.
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
        split: str = "validation",
        display: Display = SILENT,
    ) -> None:
        if generation_examples is not None:
            require_count("generation_examples", generation_examples)
        self.model, self.name, self.task, self.rows = model, name, task, rows
        self.batch_size = batch_size
        self.generation_examples = generation_examples
        self.options = {"max_new_tokens": max_new_tokens, "num_beams": num_beams}
        self.label, self.display = f"{name}, {split}", display
        self.outcome: tuple[Any, Any] | None = None
        self.encoder = model.encoder(name)
        self.kind = KINDS[task.kind]
        inputs, labels = self.kind.scored(rows)
        self.encoded = self.encoder.encode(inputs, labels)
        self.counts = model.residents.named(name).adapter.head.step_counts(self.encoder.labels(self.encoded))

    @property
    def _head(self) -> Head:
        """The adapter's, as it is by now."""
        return self.model.residents.named(self.name).adapter.head

    def __call__(self, *, generate: bool = True) -> dict[str, float]:
        """The loss and the task's metrics.

        Args:
            generate: whether texts are made, for the metrics that need them; else there is only the loss. Other kinds
                of task have all their metrics either way.

        Raises:
            DivergedError: the loss, a score or an output of the model is not finite.
        """
        said: dict[int, Any] = {}
        total = 0.0
        inference = self.model.inference(self.name)
        with self.display.bar(self.label, len(self.encoded), "rows", stays=False) as bar:
            for places, batch in self.encoder.batches(self.encoded, self.batch_size):
                output = inference.output(batch, self.name, self.counts)
                # What the batch adds to the mean over all of them.
                total += output.require("loss").item()
                if not math.isfinite(total):
                    raise DivergedError.of(f"the loss is {total} over rows that are scored")
                said.update(zip(places, self._read(inference, output, places), strict=True))
                bar.advance(len(places))
        if self.kind.generates:
            self.outcome = self._generated() if generate else None
        else:
            self.outcome = self.kind.outcome(self.task, self._head, said, self.rows)
        made = {} if self.outcome is None else compute(self.task.metrics, self.task.kind, *self.outcome)
        scores = {"loss": total, **made}
        wrong = [name for name, score in scores.items() if not math.isfinite(score)]
        if wrong:
            raise DivergedError.of(f"{wrong[0]} is {scores[wrong[0]]} over the rows that are scored")
        return scores

    def _read(self, inference: Inference, output: AdaptedOutput, places: Sequence[int]) -> Sequence[Any]:
        """What each row of a batch needs for the metrics."""
        if self.kind.generates:
            return [None] * len(places)
        rows = [self.encoded[place] for place in places]
        return self.kind.outputs(inference, self.name, self.task.labels or (), output.require("logits"), rows)

    def _generated(self) -> tuple[list[str], list[list[str]]] | None:
        if set(self.task.metrics) == {"loss"}:
            return None
        count = len(self.rows) if self.generation_examples is None else min(self.generation_examples, len(self.rows))
        if count < len(self.rows):
            logger.warning(
                "texts are generated of the first %d of %d sources, and scored (generation_examples)",
                count,
                len(self.rows),
            )
        sources = list(self.rows["text"])[:count]
        inference = self.model.inference(self.name)
        with self.display.bar(f"{self.label}, generating", count, "texts", stays=False) as bar:
            made = inference.texts(sources, self.name, batch_size=self.batch_size, advance=bar.advance, **self.options)
        return made, references_of(self.rows)[:count]
