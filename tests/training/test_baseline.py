"""The baseline of a run: what scikit-learn gives by hand, where it is kept, and when an adapter is said to be worse."""

import json
import logging

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.metrics import r2_score

from graftwork import Adapter, HeadOnly, LoRA, Task, tune
from graftwork.adapters import TaskIdentity
from graftwork.encoding import TextEncoder
from graftwork.kinds.classification import C
from graftwork.kinds.regression import ALPHA
from graftwork.tasks import load
from graftwork.training.baseline import baseline, below, embeddings, probe

COLUMNS = {
    "classes": {"text": "text", "test_fraction": 0.2},
    "pairs": {"text": "first", "text_pair": "second"},
    "numbers": {"text": "text", "kind": "regression"},
}


def task_of(data, kind):
    return Task(name=kind, data=str(data[kind]), **COLUMNS[kind])


def by_hand(backbone, rows):
    """The mean over each input's states, one input a pass."""
    vectors = []
    for row in rows:
        batch = backbone.tokenizer(row["text"], row.get("text_pair"), return_tensors="pt")
        with torch.no_grad():
            vectors.append(backbone.model(**batch).last_hidden_state[0].mean(dim=0).numpy())
    return np.array(vectors)


@pytest.mark.parametrize("kind", COLUMNS)
def test_embeddings_are_means_over_real_tokens(backbone, data, kind):
    task = load(task_of(data, kind))
    pairs = task.task.text_pair is not None
    encoder = TextEncoder(backbone, TaskIdentity(name=kind, kind=task.task.kind, pairs=pairs))
    rows = list(task.validation)
    texts = [(row["text"], row["text_pair"]) if pairs else row["text"] for row in rows]
    # Padded to another length, float32 sums round otherwise.
    np.testing.assert_allclose(embeddings(backbone, encoder, texts), by_hand(backbone, rows), rtol=0, atol=1e-5)


@pytest.mark.parametrize("kind", COLUMNS)
def test_scores_are_scikit_learns(data, kind):
    task = load(task_of(data, kind)).task
    source = np.random.default_rng(0)
    vectors = {name: source.normal(2, 3, (60, 5)).astype(np.float32) for name in ("train", "validation", "test")}
    value = {name: own[:, 0] - own[:, 1] + source.normal(0, 2, 60) for name, own in vectors.items()}
    labels = {name: list(own if kind == "numbers" else (own > 0).astype(int)) for name, own in value.items()}
    mean, std = vectors["train"].mean(axis=0), vectors["train"].std(axis=0)
    fitted = []
    for strength in ALPHA if kind == "numbers" else C:
        model = Ridge(alpha=strength) if kind == "numbers" else LogisticRegression(C=strength, max_iter=200)
        model.fit((vectors["train"] - mean) / std, labels["train"])
        said = {name: model.predict((own - mean) / std) for name, own in vectors.items()}
        score = {
            name: r2_score(labels[name], own) if kind == "numbers" else np.mean(own == labels[name])
            for name, own in said.items()
        }
        fitted.append((score["validation"], score["test"]))
    best = max(fitted, key=lambda pair: pair[0])
    found = probe(task, vectors, labels)
    main = task.metrics[0]
    # float32 inputs, standardised in another order
    assert found["validation"][main] == pytest.approx(best[0], abs=1e-4)
    assert found["test"][main] == pytest.approx(best[1], abs=1e-4)


def test_a_run_keeps_it_and_measures_a_clean_backbone(backbone, data, tmp_path):
    task = task_of(data, "classes")
    identity = TaskIdentity(name="classes", kind="classification", max_length=64)
    clean = baseline(backbone, load(task), identity)
    settings = {"max_steps": 2, "learning_rate": 0.5, "max_length": 64}
    adapter = tune(backbone, task=task, method=LoRA(rank=2), output=tmp_path / "a", **settings)
    assert adapter.baseline == clean
    assert set(clean) == {"validation", "test"}
    assert Adapter.load(tmp_path / "a").baseline == clean
    assert set(adapter.metrics) == {"validation", "test"}
    assert json.loads((tmp_path / "a" / "adapter.json").read_text())["baseline"] == clean
    assert "a linear model on the frozen embeddings" in (tmp_path / "a" / "README.md").read_text()
    assert "- Pooling: mean (default)" in (tmp_path / "a" / "README.md").read_text()


def test_it_can_be_turned_off(backbone, data):
    adapter = tune(backbone, task=task_of(data, "classes"), method=HeadOnly(), max_steps=1, baseline="off")
    assert adapter.baseline == {}


def test_a_worse_adapter_is_told(backbone, data, caplog):
    tune(backbone, task=task_of(data, "classes"), method=HeadOnly(), max_steps=1, head_learning_rate=1e-9)
    [record] = [r for r in caplog.records if r.levelno == logging.WARNING and "embeddings" in r.getMessage()]
    assert "logistic regression on the frozen embeddings" in record.getMessage()
    assert "--train.learning_rate" in record.getMessage()


@pytest.mark.parametrize(("own", "other", "told"), [(0.7, 0.8, True), (0.8, 0.7, False), (0.798, 0.8, False)])
def test_what_is_worse_follows_the_metric(own, other, told):
    task = Task(name="t", kind="regression", text="x", data="d", metrics=("pearson",))
    assert bool(below(task, {"validation": {"pearson": own}}, {"validation": {"pearson": other}})) is told
    errors = task.override(metrics=("mse",))
    assert bool(below(errors, {"validation": {"mse": other}}, {"validation": {"mse": own}})) is told
    assert below(task, {"validation": {"pearson": own}}, {}) == ""
