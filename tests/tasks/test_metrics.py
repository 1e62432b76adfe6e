"""Metrics against numbers worked out by hand."""

import numpy as np
import pytest

from graftwork.errors import RecipeError
from graftwork.tasks import METRICS, compute


def logits(classes, num_classes):
    return np.eye(num_classes)[classes]


def test_binary_metrics():
    # True positives 2, false positives 1, false negatives 1, true negatives 2.
    predictions, labels = logits([1, 1, 1, 0, 0, 0], 2), np.array([1, 1, 0, 1, 0, 0])
    values = compute(("f1", "accuracy", "matthews_correlation", "f1_macro"), "classification", predictions, labels)
    assert list(values) == ["f1", "accuracy", "matthews_correlation", "f1_macro"]
    # F1 = 2·2 / (2·2 + 1 + 1); by symmetry the same for class 0. MCC = (2·2 - 1·1) / √(3·3·3·3).
    assert values == pytest.approx(
        {"f1": 2 / 3, "accuracy": 2 / 3, "matthews_correlation": 1 / 3, "f1_macro": 2 / 3}, abs=1e-15
    )


def test_f1_is_of_class_one():
    values = compute(("f1",), "classification", logits([1, 0, 0, 0], 2), np.array([1, 1, 1, 0]))
    assert values["f1"] == pytest.approx(2 * 1 / (2 * 1 + 0 + 2))


def test_macro_f1_over_three_classes():
    # Class 0: 1 right of 2 said and 1 there; class 1: right; class 2: 0 right, 1 missed.
    values = compute(("f1_macro", "accuracy"), "classification", logits([0, 1, 0], 3), np.array([0, 1, 2]))
    assert values == pytest.approx({"f1_macro": (2 / 3 + 1 + 0) / 3, "accuracy": 2 / 3})


def test_regression_metrics():
    predictions, labels = np.array([[1.0], [2.0], [4.0]]), np.array([1.0, 3.0, 2.0])
    values = compute(("pearson", "spearman", "mse", "mae"), "regression", predictions, labels)
    # Deviations (-4, -1, 5)/3 and (-1, 1, 0): pearson = 1 / √((42/9)·2); ranks (1, 2, 3) and (1, 3, 2).
    assert values == pytest.approx(
        {"pearson": 1 / np.sqrt(42 / 9 * 2), "spearman": 0.5, "mse": 5 / 3, "mae": 1.0}, abs=1e-12
    )


@pytest.mark.parametrize("name", ["pearson", "spearman"])
@pytest.mark.parametrize("value", [0.0, 2.5, 0.1 + 1e-17])
def test_correlation_with_a_constant_is_zero(name, value):
    varied, constant = np.array([1.0, 2.0, 3.0]), np.full(3, value)
    assert compute((name,), "regression", constant, varied) == {name: 0.0}
    assert compute((name,), "regression", varied, constant) == {name: 0.0}
    assert compute((name,), "regression", varied[:1], varied[:1]) == {name: 0.0}


@pytest.mark.parametrize("labels", [[0, 0], [0, 1], [1, 1]])
def test_constant_classes_warn_of_nothing(labels):
    names = [name for name, metric in METRICS.items() if metric.kind == "classification"]
    values = compute(names, "classification", logits([0, 0], 2), np.array(labels))
    assert values["matthews_correlation"] == 0.0


def test_half_precision_does_not_overflow():
    values = compute(("mse",), "regression", np.array([300.0, 0.0], dtype=np.float16), np.zeros(2))
    assert values["mse"] == 45000.0


def test_errors():
    with pytest.raises(RecipeError, match=r"no metric 'acuracy'(.|\n)*accuracy"):
        compute(("acuracy",), "classification", logits([0], 2), np.array([0]))
    with pytest.raises(RecipeError, match="'f1' is for two classes, and the task has 3"):
        compute(("f1",), "classification", logits([0], 3), np.array([0]))
    with pytest.raises(RecipeError, match="'mse' is for regression"):
        compute(("mse",), "classification", logits([0], 2), np.array([0]))
    with pytest.raises(RecipeError, match="predictions of 1 of 2 rows are not finite"):
        compute(("mse",), "regression", np.array([np.nan, 1.0]), np.zeros(2))
    for predictions, labels in (((2,), 2), ((3, 2), 2), ((0, 2), 0)):
        with pytest.raises(ValueError, match="do not fit classification"):
            compute(("accuracy",), "classification", np.zeros(predictions), np.zeros(labels))
