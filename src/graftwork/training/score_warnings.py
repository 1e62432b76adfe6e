"""Warnings about scores: predictions that are no better than chance, splits that are too small, and rows that were
trained on."""

import logging
from math import sqrt
from typing import Any

from graftwork.adapters.card import FEW
from graftwork.kinds import KINDS
from graftwork.tasks import Task

logger = logging.getLogger(__name__)

WIDTH = 0.98
"""Half the width of the 95 % interval of a share of N rows is at most this over √N: 1.96 deviations, each of 0.5."""


def warn_of_scores(name: str, split: str, task: Task, rows: int, outcome: tuple[Any, Any] | None) -> None:
    """Warn of what is wrong with a split's scores, and say what to do.

    Args:
        name: whose scores they are.
        rows: of the split; of generation, its sources.
        outcome: predictions and labels, as `graftwork.tasks.compute` takes them; None where none were made.
    """
    if _trained_on(split, task):
        if split != "train":  # which says it
            logger.warning(
                "%s: the %d row%s of %s are the training examples themselves, so the scores say nothing about new "
                "texts. Score others with graftwork evaluate FOLDER --data FILE",
                name,
                rows,
                "" if rows == 1 else "s",
                split,
            )
    elif rows < FEW and not KINDS[task.kind].from_start:  # whose rows have no answers that are right or wrong
        held_out = f" (--task.{split}_fraction, or a larger split)" if split in ("validation", "test") else ""
        logger.warning(
            "%s: %s has %d row%s, so an accuracy is known only to ±%.2f (95 %%). Use more rows%s",
            name,
            split,
            rows,
            "" if rows == 1 else "s",
            min(1.0, WIDTH / sqrt(rows)),
            held_out,
        )
    if outcome is not None and rows > 1:
        problem, change = KINDS[task.kind].chance_warning(task, *outcome)
        if problem:
            logger.warning("%s: in %s %s. Try %s", name, split, problem, change)


def _trained_on(split: str, task: Task) -> bool:
    """Whether a split's rows are those that are trained on, whose scores tell nothing of new texts."""
    return split == "train" or (split in task.splits and task.splits[split] == task.splits.get("train"))
