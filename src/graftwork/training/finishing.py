"""What becomes of an adapter when its training has ended: it is as its method keeps it, calibrated and scored."""

import logging
from collections.abc import Callable
from dataclasses import replace

from datasets import Dataset

from graftwork.adapters import Adapter
from graftwork.model import AdaptedModel
from graftwork.tasks import TaskData
from graftwork.training.baseline import Scores, below
from graftwork.training.recipe import Recipe
from graftwork.training.score_warnings import warn_of_scores
from graftwork.training.scoring import Scorer

logger = logging.getLogger(__name__)


def finish(
    model: AdaptedModel,
    name: str,
    adapter: Adapter,
    data: TaskData,
    scorer: Scorer,
    make_scorer: Callable[[str, Dataset], Scorer],
    *,
    recipe: Recipe,
    baseline: Scores,
) -> Adapter:
    """The finished adapter with its scores.

    Args:
        model: the adapter is in training there, and is replaced by the finished one.
        name: its name there.
        adapter: as it was trained.
        data: the task's.
        scorer: of the validation split.
        make_scorer: makes one of another split and its rows.
        recipe: resolved.
        baseline: what it is compared with; empty for nothing.
    """
    # What is scored and saved is what the method makes of what was trained; checkpoints hold the latter.
    finished = adapter.finished(model.backbone)
    model.replace(name, finished)
    metrics = {"validation": scorer()}
    head = finished.head if scorer.outcome is None else finished.head.calibrated(*scorer.outcome)
    if head != finished.head:
        finished = replace(finished, head=head)
        model.replace(name, finished)
        metrics = {"validation": scorer()}
    scorers = {"validation": scorer}
    if data.test is not None:
        scorers["test"] = make_scorer("test", data.test)
    metrics |= {split: own() for split, own in scorers.items() if split not in metrics}
    for split, own in scorers.items():
        warn_of_scores(name, split, data.task, len(own.rows), own.outcome if split == "validation" else None)
    worse = below(data.task, metrics, baseline)
    if worse:
        logger.warning("%s: %s", name, worse)
    return replace(
        finished,
        metrics=metrics,
        baseline=baseline,
        rows={split: len(own.rows) for split, own in scorers.items()},
        recipe=recipe.model_dump(mode="json"),
    )
