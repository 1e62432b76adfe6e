"""Means, standard errors, bootstrap intervals, and paired comparisons of two methods.

Efron & Tibshirani 1993, "An Introduction to the Bootstrap" (percentile intervals, chapter 13); McNemar 1947, "Note on
the sampling error of the difference between correlated proportions", in its exact form; permutation by random signs
as in Noreen 1989, "Computer-Intensive Methods for Testing Hypotheses".
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float, Int

LEVEL, RESAMPLES = 0.95, 2000

MOST_EXACT = 12
"""So many differences are given all signs, 2¹² of them; more are given random ones."""

Measure = Callable[[Int[np.ndarray, "N"]], float]
"""A score over the rows with these numbers, some of them more than once."""


@dataclass(frozen=True)
class Summary:
    """Scores of several seeds.

    Attributes:
        count: number of seeds.
        mean: their mean.
        deviation: the sample's standard deviation, s; NaN of one seed.
        standard_error: s / √n; NaN of one seed.
        low, high: bootstrap interval of the mean over the seeds; the one score itself of one seed.
    """

    count: int
    mean: float
    deviation: float
    standard_error: float
    low: float
    high: float


@dataclass(frozen=True)
class Difference:
    """How much better one method is than another, by the same rows and seeds.

    Attributes:
        mean: mean difference, first less second.
        low, high: bootstrap interval.
        p: the two-sided p-value of no difference.
        test: how that was found.
    """

    mean: float
    low: float
    high: float
    p: float
    test: str


def summarise(values: Sequence[float], *, level: float = LEVEL, resamples: int = RESAMPLES, seed: int = 0) -> Summary:
    """Mean, deviation, standard error and bootstrap interval.

    Raises:
        ValueError: there are no values.
    """
    found = np.asarray(values, dtype=np.float64)
    if not len(found):
        raise ValueError("there are no values")
    mean = float(found.mean())
    if len(found) == 1:
        return Summary(1, mean, math.nan, math.nan, mean, mean)
    deviation = float(found.std(ddof=1))
    low, high = bootstrap(found, level=level, resamples=resamples, seed=seed)
    return Summary(len(found), mean, deviation, deviation / math.sqrt(len(found)), low, high)


def bootstrap(
    values: Float[np.ndarray, "n"], *, level: float = LEVEL, resamples: int = RESAMPLES, seed: int = 0
) -> tuple[float, float]:
    """The percentile interval of the mean over resamples of the values.

    Args:
        values: the sample.
        level: the share of the resamples within.
        resamples: how many.
        seed: of the choice.
    """
    random = np.random.default_rng(seed)
    chosen = random.integers(0, len(values), size=(resamples, len(values)))
    return interval(values[chosen].mean(axis=1), level)


def interval(values: Float[np.ndarray, "n"], level: float = LEVEL) -> tuple[float, float]:
    """The middle share of values: from percentile (1 − level) / 2 to 1 − that."""
    low, high = np.quantile(values, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def by_seeds(
    first: Sequence[float], second: Sequence[float], *, level: float = LEVEL, resamples: int = RESAMPLES, seed: int = 0
) -> Difference:
    """Two methods compared by their scores, seed by seed. The p-value is that of random signs of the differences: with
    n seeds it is never below 2 / 2ⁿ, so that three seeds prove nothing by themselves.

    Args:
        first, second: their scores, in the same order of seeds.

    Raises:
        ValueError: there are none, or not the same number.
    """
    differences = _paired(first, second)
    summary = summarise(differences.tolist(), level=level, resamples=resamples, seed=seed)
    p = sign_flips(differences, resamples=resamples, seed=seed)
    return Difference(summary.mean, summary.low, summary.high, p, "permutation of seeds")


def by_rows(
    measures: Sequence[tuple[Measure, Measure]],
    rows: int,
    *,
    level: float = LEVEL,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Difference:
    """Two methods compared by a score over the same rows, with a paired bootstrap over rows and seeds: each resample
    draws rows and seeds with replacement, both methods get the same ones, and their mean difference is taken.

    The p-value is twice the smaller share of the resamples on one side of 0, with one more of them on that side.

    Args:
        measures: of each seed, the two methods' scores as functions of rows.
        rows: number of rows.
        level, resamples, seed: as for `bootstrap`.

    Raises:
        ValueError: there are no rows or no seeds.
    """
    if not measures or not rows:
        raise ValueError("there is nothing to compare")
    everything = np.arange(rows)
    mean = float(np.mean([first(everything) - second(everything) for first, second in measures]))
    random = np.random.default_rng(seed)
    found = np.empty(resamples)
    for i in range(resamples):
        chosen = random.integers(0, rows, size=rows)
        drawn = np.bincount(random.integers(0, len(measures), size=len(measures)), minlength=len(measures))
        own = [times * (measures[j][0](chosen) - measures[j][1](chosen)) for j, times in enumerate(drawn) if times]
        found[i] = sum(own) / len(measures)
    low, high = interval(found, level)
    side = min(int((found <= 0).sum()), int((found >= 0).sum()))
    return Difference(mean, low, high, min(1.0, 2 * (side + 1) / (resamples + 1)), "paired bootstrap")


def mcnemar(first: Sequence[bool], second: Sequence[bool]) -> float:
    """The two-sided p-value of McNemar's exact test: of the rows that one method has right and the other wrong, is it
    more often the one?

    Args:
        first, second: whether each row is right.

    Raises:
        ValueError: there are none, or not the same number.
    """
    from scipy.stats import binomtest

    differences = _paired(first, second)
    only_first, only_second = int((differences > 0).sum()), int((differences < 0).sum())
    if only_first + only_second == 0:
        return 1.0
    return float(binomtest(only_first, only_first + only_second, 0.5).pvalue)


def sign_flips(differences: Float[np.ndarray, "n"], *, resamples: int = RESAMPLES, seed: int = 0) -> float:
    """The two-sided p-value of a mean of 0 by signs: the share of all signs of the differences, or of random ones, with
    a mean as far from 0 as the one that there is."""
    n, mean = len(differences), abs(float(differences.mean()))
    # Means that are equal but for rounding count.
    slack = 1e-12 * max(1.0, float(np.abs(differences).max()))
    if n <= MOST_EXACT:
        signs = 1 - 2 * ((np.arange(2**n)[:, None] >> np.arange(n)) & 1)
        return float((np.abs((signs * differences).mean(axis=1)) >= mean - slack).mean())
    random = np.random.default_rng(seed)
    signs = random.choice([-1, 1], size=(resamples, n))
    reached = int((np.abs((signs * differences).mean(axis=1)) >= mean - slack).sum())
    return (reached + 1) / (resamples + 1)


def _paired(first: Sequence[Any], second: Sequence[Any]) -> Float[np.ndarray, "n"]:
    if len(first) != len(second) or not len(first):
        raise ValueError(f"{len(first)} and {len(second)} values cannot be compared in pairs")
    return np.asarray(first, dtype=np.float64) - np.asarray(second, dtype=np.float64)
