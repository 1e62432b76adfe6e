"""A run that tells nothing apart, and a split of a few rows, are told of; what is well is not."""

import logging

import numpy as np
import pytest
from training.workbench import FAST, make_rows, write_csv

from graftwork import Adapter, LoRA, Task, evaluate, tune, tune_many
from graftwork.training.score_warnings import warn_of_scores

LORA = LoRA(rank=4)
STILL = {"learning_rate": 1e-9, "head_learning_rate": 1e-9, "max_steps": 1}
"""Settings under which nothing is learned."""


def task(kind, **fields):
    needed = {"multiple-choice": {"choices": ("a", "b")}, "image-classification": {}}.get(kind, {})
    text = {} if kind == "image-classification" else {"text": "text"}
    return Task(name="t", kind=kind, **text, **needed, **fields)


def said(caplog, kind, predictions, labels, names=None, **fields):
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        warn_of_scores("t", "validation", task(kind, labels=names, **fields), 1_000, (predictions, labels))
    return caplog.text


CLASSES = ("no", "yes")
RARE = np.array([1] * 12 + [0] * 88)


def logits(ids):
    return np.eye(2)[ids]


@pytest.mark.parametrize("kind", ["classification", "image-classification"])
def test_one_class_for_all(caplog, kind):
    """As of answer selection with 12 % positives, whose F1 is 0."""
    text = said(caplog, kind, logits(np.zeros(100, dtype=int)), RARE, names=CLASSES)
    for part in (
        "the adapter predicts 'no' for every row, and 88% of the rows have that label",
        "--train.num_train_epochs",
        "--train.learning_rate",
        "--task.metrics f1_macro",
    ):
        assert part in text
    blind = said(caplog, kind, logits(np.zeros(100, dtype=int)), RARE, names=CLASSES, metrics=("f1",))
    assert "every row" in blind
    assert "--task.metrics" not in blind


def test_classes_by_chance(caplog):
    crossed = np.array([0] * 12 + [1] * 10 + [0] * 78)
    assert "no better than chance" in said(caplog, "classification", logits(crossed), RARE, names=CLASSES)


def test_classes_that_are_told_apart(caplog):
    some = RARE.copy()
    some[:9] = 0
    assert said(caplog, "classification", logits(some), RARE, names=CLASSES) == ""
    # Where all rows have one class nothing can be told.
    assert said(caplog, "classification", logits(np.zeros(100, dtype=int)), RARE * 0, names=CLASSES) == ""


def test_one_tag_for_all_words(caplog):
    there = [["O", "B-PER", "O"], ["O", "O"]]
    assert "predicts 'O' for every word, and 80% of the words have that label" in said(
        caplog, "token-classification", [["O"] * 3, ["O"] * 2], there
    )
    assert said(caplog, "token-classification", there, there) == ""


def test_numbers_no_better_than_the_mean(caplog):
    there = np.arange(10.0)
    assert "no better than the labels' mean (R² 0.00)" in said(caplog, "regression", np.full(10, 4.5), there)
    # They correlate, and are off in scale.
    assert "no better than the labels' mean" in said(caplog, "regression", there * 1_000, there)
    assert said(caplog, "regression", there + 0.5, there) == ""


def test_choices_by_chance(caplog):
    there = np.array([0, 1] * 5)
    assert "50% of the choices are right, and 50% by chance" in said(
        caplog, "multiple-choice", logits(there * 0), there
    )
    assert said(caplog, "multiple-choice", logits(there), there) == ""


def test_one_text_for_all_sources(caplog):
    there = [["a", "b"], ["c"]]
    assert "the text 'x' is generated of every source" in said(caplog, "generation", ["x", "x"], there)
    assert said(caplog, "generation", ["a", "c"], there) == ""


@pytest.mark.parametrize(("rows", "width"), [(1, "0.98"), (4, "0.49"), (99, "0.10")])
def test_a_few_rows(caplog, rows, width):
    with caplog.at_level(logging.WARNING):
        warn_of_scores("t", "validation", task("classification"), rows, None)
    assert f"validation has {rows} row" in caplog.text
    assert f"±{width}" in caplog.text
    assert "--task.validation_fraction" in caplog.text


@pytest.mark.parametrize("rows", [16, 1_000])
def test_rows_that_were_trained_on_tell_nothing_of_others(caplog, rows):
    own = task("classification", splits={"train": "few.csv", "validation": "few.csv", "test": "other.csv"})
    with caplog.at_level(logging.WARNING):
        warn_of_scores("t", "validation", own, rows, None)
    assert f"the {rows} rows of validation are the training examples themselves" in caplog.text
    assert "graftwork evaluate FOLDER --data FILE" in caplog.text
    assert "±" not in caplog.text
    assert "fraction" not in caplog.text
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        warn_of_scores("t", "train", own, rows, None)
    assert not caplog.records
    with caplog.at_level(logging.WARNING):
        warn_of_scores("t", "test", own, 16, None)
    assert "test has 16 rows" in caplog.text


def test_enough_rows(caplog):
    with caplog.at_level(logging.WARNING):
        warn_of_scores("t", "validation", task("classification"), 100, None)
    assert not caplog.records


# Runs


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    """Twelve hundred rows, a tenth of which are held out; and twenty."""
    folder = tmp_path_factory.mktemp("rows")
    return {count: write_csv(folder / f"{count}.csv", make_rows("classes", count)) for count in (1_200, 20)}


def test_a_run_that_learns_nothing_says_so(backbone, rows, caplog, tmp_path):
    own = Task(name="reviews", text="text", data=str(rows[1_200]))
    with caplog.at_level(logging.WARNING, "graftwork.training.score_warnings"):
        tune(backbone, task=own, method=LORA, pooling="pooler", output=tmp_path / "a", **STILL)
    assert "reviews: in validation the adapter predicts" in caplog.text
    assert "has 1" not in caplog.text
    caplog.clear()
    with caplog.at_level(logging.WARNING, "graftwork.training.score_warnings"):
        evaluate(Adapter.load(tmp_path / "a"), backbone=backbone)
    assert "for every row, and" in caplog.text
    caplog.clear()
    with caplog.at_level(logging.WARNING, "graftwork.training.score_warnings"):
        tune_many(backbone, {"one": {"task": own, "method": LORA, "pooling": "pooler"}}, **STILL)
    assert "one: in validation the adapter predicts" in caplog.text


def test_a_run_that_learns_says_nothing(backbone, rows, caplog):
    own = Task(name="reviews", text="text", data=str(rows[1_200]))
    with caplog.at_level(logging.WARNING, "graftwork"):
        adapter = tune(backbone, task=own, method=LORA, **{**FAST, "num_train_epochs": 1})
    assert adapter.rows == {"validation": 120}
    assert [record.message for record in caplog.records if record.name.startswith("graftwork")] == []
