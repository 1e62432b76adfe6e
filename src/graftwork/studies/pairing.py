"""Two methods of a study compared on one task: by seeds, and by what they said of the same rows of the test split."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Int

from graftwork.errors import DataError
from graftwork.kinds import KINDS
from graftwork.settings.yamlfile import RECIPE, read_yaml
from graftwork.studies.predictions import NOT_OF_PREDICTIONS, read_predictions, score
from graftwork.studies.results import Result
from graftwork.studies.statistics import RESAMPLES, Difference, Measure, by_rows, by_seeds, mcnemar

SLOW_RESAMPLES = 200
"""Of a metric that is computed anew in each resample."""


@dataclass(frozen=True)
class Pair:
    """Two methods on one task, first less second, by test scores.

    Attributes:
        seeds: seeds that both have.
        by_seeds: the difference of their scores, seed by seed.
        by_rows: of their predictions, by a paired bootstrap over rows and seeds; None where the metric cannot be
            computed from predictions.
        mcnemar: of tasks with one class a row, the p-value of McNemar's test with the first common seed; else None.
    """

    seeds: tuple[int, ...]
    by_seeds: Difference
    by_rows: Difference | None
    mcnemar: float | None


def compare_pair(
    first: Sequence[Result],
    second: Sequence[Result],
    *,
    resamples: int = RESAMPLES,
    seed: int = 0,
    rows: bool = True,
) -> Pair | None:
    """Compare two methods on one task; None where they have no seed in common, or no test split.

    Args:
        first, second: the runs of each.
        resamples: of the bootstrap.
        seed: of the resamples.
        rows: also compare what they said of each row; without it, runs on different rows can be compared.

    Raises:
        DataError: the runs are of different tasks or different rows.
    """
    ones, others = ({own.seed: own for own in runs if own.test} for runs in (first, second))
    seeds = tuple(own for own in ones if own in others)
    if not seeds:
        return None
    return pair_up([(ones[own], others[own]) for own in seeds], resamples=resamples, seed=seed, rows=rows)


def pair_up(
    pairs: Sequence[tuple[Result, Result]], *, resamples: int = RESAMPLES, seed: int = 0, rows: bool = True
) -> Pair:
    """Compare runs, each with another one, by their scores on the test split.

    Args:
        pairs: one or more, of one task.
        resamples, seed, rows: as for `compare_pair`.

    Raises:
        DataError: the runs are of different tasks or different rows.
    """
    seeds = tuple(own.seed for own, _ in pairs)
    metric = pairs[0][0].main_metric
    if any(own.task != pairs[0][0].task or own.main_metric != metric for pair in pairs for own in pair):
        raise DataError("runs of different tasks cannot be compared", expected="runs of one task")
    scores = by_seeds(
        [a.test_score for a, _ in pairs], [b.test_score for _, b in pairs], resamples=resamples, seed=seed
    )
    if not rows or metric in NOT_OF_PREDICTIONS:
        return Pair(seeds, scores, None, None)
    said = [[read_predictions(own.folder) for own in pair] for pair in pairs]
    labels = said[0][0][1]
    if not labels:
        return Pair(seeds, scores, None, None)
    if any(there != labels for pair in said for _, there in pair):
        raise DataError("the runs were scored on different rows", expected="runs on the same test split")
    task = read_yaml(pairs[0][0].folder / RECIPE)["task"]
    table = measures(task, metric, labels)
    fast = isinstance(table, _Counted)
    found = by_rows(
        [(table.of(pair[0][0]), table.of(pair[1][0])) for pair in said],
        len(labels),
        resamples=resamples if fast else min(resamples, SLOW_RESAMPLES),
        seed=seed,
    )
    p = None
    if KINDS[task["kind"]].one_class:
        right = [[own == there for own, there in zip(side[0], labels, strict=True)] for side in said[0]]
        p = mcnemar(*right)
    return Pair(seeds, scores, found, p)


def measures(task: Any, metric: str, labels: Sequence[Any]) -> "_Counted | _Computed":
    """What gives the scores of predictions over any rows; from counts of classes where that is enough: it is fast."""
    names = task.get("labels")
    if KINDS[task["kind"]].one_class and names and metric in COUNTED:
        return _Counted(metric, list(names), labels)
    return _Computed(task, metric, labels)


class _Computed:
    """Computes the metric of the rows each time."""

    def __init__(self, task: Any, metric: str, labels: Sequence[Any]) -> None:
        self.task, self.metric, self.labels = task, metric, labels

    def of(self, predictions: Sequence[Any]) -> Measure:
        def measure(rows: Int[np.ndarray, "N"]) -> float:
            return score(self.task, self.metric, [predictions[i] for i in rows], [self.labels[i] for i in rows])

        return measure


class _Counted:
    """Counts how often each class was taken for each, which decides the metric."""

    def __init__(self, metric: str, names: Sequence[str], labels: Sequence[Any]) -> None:
        self.metric, self.size = COUNTED[metric], len(names)
        self.ids = {name: i for i, name in enumerate(names)}
        self.labels = np.asarray([self.ids[label] for label in labels])

    def of(self, predictions: Sequence[Any]) -> Measure:
        cells = self.labels * self.size + np.asarray([self.ids[own] for own in predictions])

        def measure(rows: Int[np.ndarray, "N"]) -> float:
            counts = np.bincount(cells[rows], minlength=self.size**2).reshape(self.size, self.size)
            return self.metric(counts.astype(np.float64))

        return measure


def _accuracy(counts: Any) -> float:
    return float(np.trace(counts) / counts.sum())


def _f1(counts: Any) -> float:
    return _f1_of(counts, 1)


def _f1_macro(counts: Any) -> float:
    """Over the classes that the labels have, as graftwork's metric is."""
    return float(np.mean([_f1_of(counts, i) for i in range(len(counts)) if counts[i].sum()]))


def _f1_of(counts: Any, i: int) -> float:
    total = counts[i].sum() + counts[:, i].sum()
    return float(2 * counts[i, i] / total) if total else 0.0


def _matthews(counts: Any) -> float:
    """The correlation of classes (Gorodkin 2004); 0 where all labels or all predictions are one class."""
    there, said, total = counts.sum(axis=1), counts.sum(axis=0), counts.sum()
    square = (total**2 - (said**2).sum()) * (total**2 - (there**2).sum())
    return float((np.trace(counts) * total - said @ there) / np.sqrt(square)) if square > 0 else 0.0


COUNTED = {"accuracy": _accuracy, "f1": _f1, "f1_macro": _f1_macro, "matthews_correlation": _matthews}
"""Metrics that counts of labels (rows) and predictions (columns) decide."""
