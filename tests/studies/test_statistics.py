"""Statistics equal scipy's, what is calculated by hand, and what theory says."""

import numpy as np
import pytest
from scipy import stats

from graftwork.studies.pairing import COUNTED, measures
from graftwork.studies.predictions import score
from graftwork.studies.statistics import bootstrap, by_rows, by_seeds, interval, mcnemar, sign_flips, summarise


def near(expected):
    """But for some roundings of float64."""
    return pytest.approx(expected, rel=1e-12, abs=1e-14)


VALUES = [0.81, 0.79, 0.86, 0.80, 0.84]
OTHERS = [0.78, 0.80, 0.80, 0.77, 0.79]


def test_mean_deviation_and_standard_error_are_scipys():
    found = summarise(VALUES)
    assert found.count == 5
    assert found.mean == near(np.mean(VALUES))
    assert found.deviation == near(np.std(VALUES, ddof=1))
    assert found.standard_error == near(stats.sem(VALUES))
    assert found.low < found.mean < found.high


def test_one_seed_has_no_deviation():
    found = summarise([0.5])
    assert (found.count, found.mean, found.low, found.high) == (1, 0.5, 0.5, 0.5)
    assert np.isnan(found.standard_error)
    with pytest.raises(ValueError, match="no values"):
        summarise([])


def test_the_bootstrap_interval_is_scipys():
    options = {"method": "percentile", "n_resamples": 20000, "vectorized": True, "rng": np.random.default_rng(1)}
    expected = stats.bootstrap((VALUES,), np.mean, **options).confidence_interval
    low, high = bootstrap(np.array(VALUES), resamples=20000)
    # Two independent sets of 20,000 resamples: the interval's ends vary by some hundredths of its width.
    width = expected.high - expected.low
    assert abs(low - expected.low) < 0.05 * width
    assert abs(high - expected.high) < 0.05 * width
    assert bootstrap(np.array(VALUES), seed=3) == bootstrap(np.array(VALUES), seed=3)
    assert bootstrap(np.array(VALUES), seed=3) != bootstrap(np.array(VALUES), seed=4)


def test_an_interval_is_the_middle_share():
    assert interval(np.arange(101.0), 0.9) == near((5.0, 95.0))


def test_signs_are_scipys_permutations():
    differences = np.array(VALUES) - np.array(OTHERS)
    expected = stats.permutation_test((differences,), np.mean, permutation_type="samples", n_resamples=np.inf)
    assert sign_flips(differences) == expected.pvalue
    many = np.random.default_rng(0).normal(0.3, 1.0, size=60)
    expected = stats.permutation_test((many,), np.mean, permutation_type="samples", n_resamples=20000, rng=0)
    assert abs(sign_flips(many, resamples=20000) - expected.pvalue) < 0.01


def test_three_seeds_cannot_say_more_than_a_quarter():
    found = by_seeds([0.9, 0.8, 0.85], [0.1, 0.2, 0.15])
    assert found.p == 0.25
    assert found.mean == near(0.7)
    with pytest.raises(ValueError, match="2 and 1"):
        by_seeds([1.0, 2.0], [1.0])


def test_mcnemar_counts_rows_that_one_alone_has_right():
    first = [True] * 9 + [False] * 2 + [True] * 5
    second = [False] * 9 + [True] * 2 + [True] * 5
    # By hand: of 11 rows, 9 or more or 2 or fewer, at one half.
    by_hand = 2 * (1 + 11 + 55) / 2**11
    assert mcnemar(first, second) == near(by_hand)
    assert mcnemar(first, second) == mcnemar(second, first)
    assert mcnemar(first, first) == 1.0


def test_the_paired_bootstrap_over_rows_is_the_theorys():
    random = np.random.default_rng(0)
    right = random.random(400) < 0.8
    other = right ^ (random.random(400) < 0.1)
    pair = (lambda rows: right[rows].mean(), lambda rows: other[rows].mean())
    found = by_rows([pair], 400)
    differences = right.astype(float) - other
    assert found.mean == near(differences.mean())
    error = differences.std() / 20
    # 2,000 resamples: the ends are known to some hundredths of the error.
    assert abs(found.low - (differences.mean() - 1.96 * error)) < 0.25 * error
    assert abs(found.high - (differences.mean() + 1.96 * error)) < 0.25 * error
    assert abs(found.p - 2 * stats.norm.sf(abs(differences.mean()) / error)) < 0.05
    assert found == by_rows([pair], 400)


def test_equal_methods_do_not_differ():
    right = np.arange(50) % 3 > 0
    found = by_rows([(lambda rows: right[rows].mean(),) * 2], 50)
    assert (found.mean, found.low, found.high, found.p) == (0.0, 0.0, 0.0, 1.0)


def test_seeds_are_drawn_as_well():
    """Rows that are all alike: what is left is that of the seeds."""
    seeds = [((lambda rows, d=d: d), (lambda rows: 0.0)) for d in (1.0, 2.0, 6.0)]
    found = by_rows(seeds, 10)
    assert found.mean == 3.0
    assert found.low == 1.0
    assert found.high > 5.0


@pytest.mark.parametrize("metric", COUNTED)
def test_metrics_by_counts_are_those_of_the_predictions(metric):
    names = ("no", "yes") if metric in ("f1", "matthews_correlation") else ("no", "yes", "maybe")
    random = np.random.default_rng(0)
    task = {"kind": "classification", "labels": list(names)}
    for rows in (40, 3):
        labels = [names[i] for i in random.integers(0, 2, rows)]
        said = [names[i] for i in random.integers(0, len(names), rows)]
        measure = measures(task, metric, labels).of(said)
        for chosen in (np.arange(rows), random.integers(0, rows, rows), np.zeros(rows, dtype=int)):
            expected = score(task, metric, [said[i] for i in chosen], [labels[i] for i in chosen])
            assert measure(chosen) == near(expected)
