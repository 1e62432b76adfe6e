"""The trainer of one adapter for several tasks, and the scores by which its checkpoints are chosen."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn as nn
from safetensors.torch import load_file, save_file
from torch import Tensor

from graftwork.adapters.folder import TENSORS
from graftwork.heads import Counts
from graftwork.kinds import KINDS
from graftwork.methods.parameters import Parameter
from graftwork.training.joint_passes import losses_of, passes, rows_in
from graftwork.training.mixture import BATCHES
from graftwork.training.scoring import Scorer
from graftwork.training.trainer import AdapterTrainer

SCORE = "score"
"""The name of the tasks' mean score."""


@dataclass(frozen=True)
class StepItems:
    """What the loss of a step is made of, over all of its batches.

    Attributes:
        counts: by task, what the terms of its loss are means over.
        shares: by task, its share of the rows.
    """

    counts: Mapping[str, Counts]
    shares: Mapping[str, float]


class MultiTaskTrainer(AdapterTrainer):
    """Trains adapters of an `AdaptedModel` that share their method's parameters.

    The loss of a step is Σ_t w_t · (n_t / n) · L_t, with L_t the mean loss over the n_t rows of task t among the n rows
    of the step, and w_t its weight: the mean over all rows, where all weights are 1.

    Args:
        weights: w, by task; the adapters on the model are named as the tasks.
    """

    def __init__(self, *args: Any, weights: Mapping[str, float], **kwargs: Any) -> None:
        super().__init__(*args, adapter_name=next(iter(weights)), **kwargs)
        self.weights = weights

    def step_counts(self, batches: Sequence[Mapping[str, Any]]) -> StepItems:
        every: dict[str, list[Mapping[str, Tensor]]] = {}
        for batch in batches:
            for name, own in batch[BATCHES].items():
                every.setdefault(name, []).append(own)
        rows = {name: sum(map(rows_in, own)) for name, own in every.items()}
        heads = {name: self.adapted.residents[name].adapter.head for name in every}
        return StepItems(
            {name: heads[name].step_counts(own) for name, own in every.items()},
            {name: count / sum(rows.values()) for name, count in rows.items()},
        )

    def compute_loss(
        self, model: nn.Module, inputs: Mapping[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """What a batch adds to the loss of its step."""
        items: StepItems = num_items_in_batch
        batches = inputs[BATCHES]
        terms = []
        for names in passes(self.adapted, batches):
            losses = losses_of(self.adapted, {n: batches[n] for n in names}, {n: items.counts[n] for n in names})
            terms += [self.weights[name] * items.shares[name] * losses[name] for name in names]
        return torch.stack(terms).sum()

    def declared(self) -> list[tuple[Tensor, Parameter]]:
        found: dict[int, tuple[Tensor, Parameter]] = {}
        for name in self.weights:
            resident = self.adapted.in_training(name)
            tensors = resident.tensors()
            for own, parameter in resident.adapter.declared(self.adapted.backbone).items():
                if parameter.trained:
                    found.setdefault(id(tensors[own]), (tensors[own], parameter))
        return list(found.values())

    def write_tensors(self, folder: Path) -> None:
        tensors = self._named_tensors()
        self.require_finite(tensors)
        save_file({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}, folder / TENSORS)

    def read_tensors(self, folder: Path) -> None:
        saved = load_file(folder / TENSORS)
        with torch.no_grad():
            for name, tensor in self._named_tensors().items():
                tensor.copy_(saved[name])

    def _named_tensors(self) -> dict[str, Tensor]:
        """Each tensor once, under the name of the first task that has it."""
        found: dict[int, tuple[str, Tensor]] = {}
        for name in self.weights:
            for own, tensor in self.adapted.in_training(name).tensors().items():
                found.setdefault(id(tensor), (f"{name}/{own}", tensor))
        return dict(found.values())


class MeanScorer:
    """The scores of several tasks, and by `SCORE` the mean of their main metrics.

    Metrics of several scales are made one by `Metric.goodness`.

    Args:
        scorers: by task.
    """

    def __init__(self, scorers: Mapping[str, Scorer]) -> None:
        self.scorers = scorers

    def __call__(self) -> dict[str, float]:
        scores: dict[str, dict[str, float]] = {}
        for name, scorer in self.scorers.items():
            # Generating is slow: unless it chooses the checkpoint, it is done once, at the end.
            scores[name] = scorer(generate=scorer.task.main_metric != "loss")
        flat = {f"{name}_{metric}": value for name, own in scores.items() for metric, value in own.items()}
        return {SCORE: self.mean(scores), **flat}

    def mean(self, scores: Mapping[str, Mapping[str, float]]) -> float:
        """The mean of the tasks' main metrics.

        Args:
            scores: by task, then by metric.
        """
        return sum(goodness(self.scorers[name], own) for name, own in scores.items()) / len(scores)


def goodness(scorer: Scorer, scores: Mapping[str, float]) -> float:
    """A task's main metric on the scale that all metrics have in common."""
    task = scorer.task
    return KINDS[task.kind].metrics[task.main_metric].goodness(scores[task.main_metric])
