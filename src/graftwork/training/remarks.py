"""What scores do not say by themselves: that predictions are no better than chance, and that a split is too small."""

import logging
from collections import Counter
from collections.abc import Callable, Sequence
from math import sqrt
from typing import Any

from graftwork.adapters.card import FEW
from graftwork.tasks import Task
from graftwork.tasks.metrics import Kind, compute

logger = logging.getLogger(__name__)

WIDTH = 0.98
"""Half the width of the 95 % interval of a share of N rows is at most this over √N: 1.96 deviations, each of 0.5."""

MORE = "more epochs (--train.num_train_epochs) or a higher rate (--train.learning_rate)"


def remark(name: str, split: str, task: Task, rows: int, outcome: tuple[Any, Any] | None) -> None:
    """Warn of what is wrong with a split's scores, and say what to do.

    Args:
        name: whose scores they are.
        rows: of the split; of generation, its sources.
        outcome: predictions and labels, as `graftwork.tasks.compute` takes them; None where none were made.
    """
    if rows < FEW:
        held_out = (
            f" (--task.{split}_fraction, or a larger split of its own)" if split in ("validation", "test") else ""
        )
        logger.warning(
            "%s: %s has %d row%s, and a share of right answers is known to ±%.2f only (95 %%). Give it more rows%s",
            name,
            split,
            rows,
            "" if rows == 1 else "s",
            min(1.0, WIDTH / sqrt(rows)),
            held_out,
        )
    if outcome is not None and rows > 1:
        problem, change = _CHECKS[task.kind](task, *outcome)
        if problem:
            logger.warning("%s: in %s %s. Try %s", name, split, problem, change)


def _classes(task: Task, logits: Any, labels: Any) -> tuple[str, str]:
    names = task.labels or tuple(map(str, range(logits.shape[1])))
    return _named(task, [names[i] for i in logits.argmax(axis=1)], [names[i] for i in labels], "row")


def _tags(task: Task, said: Sequence[Sequence[str]], there: Sequence[Sequence[str]]) -> tuple[str, str]:
    pairs = [pair for both in zip(said, there, strict=True) for pair in zip(*both, strict=True)]
    return _named(task, [one for one, _ in pairs], [other for _, other in pairs], "word")


def _named(task: Task, said: Sequence[str], there: Sequence[str], thing: str) -> tuple[str, str]:
    """Of names: one for everything, or names that agree with the labels no better than by chance."""
    if len(set(there)) < 2:
        return "", ""
    blind = task.main_metric in ("accuracy", "token_accuracy")
    other = "seqeval_f1" if thing == "word" else "f1_macro"
    change = MORE + (
        f"; or another first metric, which chooses the checkpoint (--task.metrics {other})" if blind else ""
    )
    if len(set(said)) == 1:
        share = Counter(there)[said[0]] / len(there)
        return (
            f"the adapter predicts {said[0]!r} for every {thing}, and {share:.0%} of the {thing}s have that label",
            change,
        )
    ids = {name: i for i, name in enumerate(sorted({*said, *there}))}
    if _matthews([ids[name] for name in said], [ids[name] for name in there]) <= 0:
        problem = f"the adapter's predictions agree with the labels of {thing}s no better than chance"
        return f"{problem} (Matthews correlation 0 or less)", change
    return "", ""


def _matthews(said: Sequence[int], there: Sequence[int]) -> float:
    from sklearn.metrics import matthews_corrcoef

    return float(matthews_corrcoef(there, said))


def _choices(task: Task, logits: Any, labels: Any) -> tuple[str, str]:
    import numpy as np

    right = float((logits.argmax(axis=1) == labels).mean())
    chance = float((1 / np.isfinite(logits).sum(axis=1)).mean())
    if right > chance:
        return "", ""
    return f"{right:.0%} of the choices are right, and {chance:.0%} by chance", MORE


def _numbers(task: Task, said: Any, there: Any) -> tuple[str, str]:
    import numpy as np

    if np.ptp(there) == 0:
        return "", ""
    r2 = compute(("r2",), "regression", said, there)["r2"]
    return (f"the numbers are no better than the labels' mean (R² {r2:.2f})", MORE) if r2 <= 0 else ("", "")


def _texts(task: Task, said: Sequence[str], there: Sequence[Sequence[str]]) -> tuple[str, str]:
    if len(set(said)) > 1 or len(set(map(tuple, there))) < 2:
        return "", ""
    return f"the text {said[0]!r:.60} is generated of every source", MORE


_CHECKS: dict[Kind, Callable[[Task, Any, Any], tuple[str, str]]] = {
    "classification": _classes,
    "image-classification": _classes,
    "token-classification": _tags,
    "multiple-choice": _choices,
    "regression": _numbers,
    "generation": _texts,
}
