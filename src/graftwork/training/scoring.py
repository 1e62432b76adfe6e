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
    def head(self) -> Head:
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
        answers, inference = Answers(self), self.model.inference(self.name)
        with self.display.bar(self.label, len(self.encoded), "rows", stays=False) as bar:
            for places, batch in self.encoder.batches(self.encoded, self.batch_size):
                answers.add(places, inference, inference.output(batch, self.name, self.counts))
                bar.advance(len(places))
        if self.kind.generates:
            self.outcome = self._generated() if generate else None
        else:
            self.outcome = answers.outcome()
        return answers.scores(self.outcome)

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


class Answers:
    """What is said of the rows of a scorer, pass by pass, and the scores of it.

    Args:
        scorer: it knows the rows and their task.

    Attributes:
        loss: what the passes so far add to the mean over all rows.
    """

    def __init__(self, scorer: Scorer) -> None:
        self.scorer = scorer
        self.loss = 0.0
        self._said: dict[int, Any] = {}

    def add(self, places: Sequence[int], inference: Inference, output: AdaptedOutput) -> None:
        """What a pass says.

        Args:
            places: of its rows.
            inference: it ran the pass.
            output: with the loss, over the counts of all rows.

        Raises:
            DivergedError: the loss is not finite.
        """
        self.loss += output.require("loss").item()
        if not math.isfinite(self.loss):
            raise DivergedError.of(f"the loss is {self.loss} over rows that are scored")
        self._said.update(zip(places, self._read(places, inference, output), strict=True))

    def outcome(self) -> tuple[Any, Any]:
        """Predictions and labels, as `compute` takes them, once all rows are there; not for generation."""
        own = self.scorer
        return own.kind.outcome(own.task, own.head, self._said, own.rows)

    def scores(self, outcome: tuple[Any, Any] | None) -> dict[str, float]:
        """The loss and the task's metrics.

        Args:
            outcome: predictions and labels; None: there is only the loss.

        Raises:
            DivergedError: a score is not finite.
        """
        task = self.scorer.task
        scores = {"loss": self.loss, **({} if outcome is None else compute(task.metrics, task.kind, *outcome))}
        wrong = [name for name, score in scores.items() if not math.isfinite(score)]
        if wrong:
            raise DivergedError.of(f"{wrong[0]} is {scores[wrong[0]]} over the rows that are scored")
        return scores

    def _read(self, places: Sequence[int], inference: Inference, output: AdaptedOutput) -> Sequence[Any]:
        """What each row of a pass needs for the metrics."""
        own = self.scorer
        if own.kind.generates:
            return [None] * len(places)
        rows = [own.encoded[place] for place in places]
        return own.kind.outputs(inference, own.name, own.task.labels or (), output.require("logits"), rows)
