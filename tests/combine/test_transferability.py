"""LEEP and TransRate, against code that writes their formulas out term by term, and by hand."""

from math import log

import numpy as np
import pytest

from graftwork.combine.transferability import leep, transrate
from graftwork.errors import RecipeError

RANDOM = np.random.RandomState(0)


def naive_leep(theta, labels):
    n, outputs = theta.shape
    joint = {}
    for y in set(labels):
        for z in range(outputs):
            joint[y, z] = sum(theta[i, z] for i in range(n) if labels[i] == y) / n
    total = 0.0
    for i in range(n):
        inner = 0.0
        for z in range(outputs):
            mass = sum(joint[y, z] for y in set(labels))
            if mass > 0:
                inner += joint[labels[i], z] / mass * theta[i, z]
        total += log(inner)
    return total / n


def naive_transrate(features, labels, *, weighting, scaling, epsilon=1e-4):
    def rate(z):
        n, d = z.shape
        values = np.linalg.eigvalsh(np.eye(d) + z.T @ z / (n * epsilon))
        return 0.5 * np.log(values).sum()

    z = features - features.mean(axis=0)
    if scaling == "trace":
        z = z / np.sqrt(np.trace(z.T @ z))
    kinds = sorted(set(labels))
    weights = {c: 1 / len(kinds) if weighting == "listing" else (labels == c).mean() for c in kinds}
    return rate(z) - sum(weights[c] * rate(z[labels == c]) for c in kinds)


def test_leep_by_hand():
    # Two outputs that tell the two classes apart: P(y|z) is 1 or 0, and each example's own output is certain.
    certain = np.array([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
    assert leep(certain, np.array([0, 0, 1])) == pytest.approx(0.0, abs=1e-15)
    # Outputs that say nothing: log of the class's share.
    idle = np.full((4, 2), 0.5)
    assert leep(idle, np.array([0, 0, 0, 1])) == pytest.approx((3 * log(3 / 4) + log(1 / 4)) / 4)


@pytest.mark.parametrize("outputs", [2, 5])
def test_leep_as_written(outputs):
    theta = RANDOM.dirichlet(np.ones(outputs), size=40)
    labels = RANDOM.randint(0, 3, size=40)
    assert leep(theta, labels) == pytest.approx(naive_leep(theta, labels), rel=1e-12)
    # Ids need not run from 0, nor all be there.
    assert leep(theta, labels * 7 + 2) == pytest.approx(leep(theta, labels), rel=1e-12)


def test_leep_leaves_outputs_without_mass_out():
    theta = RANDOM.dirichlet(np.ones(2), size=10)
    labels = RANDOM.randint(0, 2, size=10)
    wider = np.concatenate([theta, np.zeros((10, 1))], axis=1)
    assert leep(wider, labels) == pytest.approx(leep(theta, labels), rel=1e-14)
    assert np.isfinite(leep(wider, labels))


def test_leep_of_one_output_is_undefined():
    with pytest.raises(RecipeError, match=r"one output(.|\n)*--selection"):
        leep(np.ones((3, 1)), np.array([0, 1, 0]))


@pytest.mark.parametrize("shape", [(40, 6), (10, 30)])
@pytest.mark.parametrize("weighting", ["listing", "equation"])
@pytest.mark.parametrize("scaling", ["none", "trace"])
def test_transrate_as_written(shape, weighting, scaling):
    features, labels = RANDOM.normal(size=shape), np.arange(shape[0]) % 3
    labels[0] = 1
    found = transrate(features, labels, weighting=weighting, scaling=scaling)
    expected = naive_transrate(features, labels, weighting=weighting, scaling=scaling)
    assert found == pytest.approx(expected, rel=1e-9)


def test_transrate_by_hand():
    # One number: R = ½ log(1 + mean of squares / ε). The classes' own centres are 1 and -1 after centring.
    features, labels = np.array([[2.0], [2.0], [0.0], [0.0]]), np.array([0, 0, 1, 1])
    assert transrate(features, labels, epsilon=0.5) == pytest.approx(0.0, abs=1e-15)
    spread = np.array([[3.0], [1.0], [-1.0], [-3.0]])
    expected = 0.5 * log(1 + 5 / 0.5) - 0.5 * log(1 + (9 + 1) / 2 / 0.5)
    assert transrate(spread, labels, epsilon=0.5) == pytest.approx(expected, abs=1e-14)


def test_transrate_options():
    features, even, uneven = RANDOM.normal(size=(30, 4)), np.arange(30) % 3, (np.arange(30) > 4).astype(int)
    assert transrate(features, even) == pytest.approx(transrate(features, even, weighting="equation"), rel=1e-12)
    assert transrate(features, uneven) != pytest.approx(transrate(features, uneven, weighting="equation"), rel=1e-3)
    scaled = transrate(features, even, scaling="trace")
    assert transrate(10 * features, even, scaling="trace") == pytest.approx(scaled, rel=1e-9)
    assert transrate(features / 100, even) != pytest.approx(transrate(features, even), rel=1e-3)
    # A class that has no example has no part in it.
    assert transrate(features, even * 5) == pytest.approx(transrate(features, even), rel=1e-12)
    assert np.isfinite(transrate(np.zeros((6, 3)), np.arange(6) % 2, scaling="trace"))
