"""Several labels a text: how data have them, what the head learns, its thresholds, and what is scored and shown."""

import csv
import json
import random

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from pydantic import TypeAdapter
from sklearn.metrics import f1_score, roc_auc_score
from training.workbench import FAST, sentence, write_csv

from graftwork import AdaMix, AdaptedModel, Adapter, FeatureExtraction, LoRA, Task, evaluate, tune, tune_many
from graftwork.errors import AdapterError, DataError, DivergedError, MethodError, RecipeError
from graftwork.heads import States
from graftwork.kinds import KINDS
from graftwork.kinds.heads import AnyHead, as_head
from graftwork.kinds.multi_label import MultiLabelHead, best_threshold
from graftwork.tasks import compute, load
from graftwork.training.baseline import probe

KIND = "multi-label-classification"
LABELS = ("bad", "good")
LORA = LoRA(rank=4)


def rows(count=120):
    """Texts with the words good and bad in them, both or neither, and their labels."""
    source = random.Random(0)
    found = []
    for i in range(count):
        own = [label for label in LABELS if source.random() < 0.5]
        text = sentence(source, "mild")
        for word in own:
            text += f" {word}"
        found.append((f"{text} w{i}", own))
    return found


FORMS = {
    "text": lambda own: {"label": "|".join(own)},
    "list": lambda own: {"label": own},
    "columns": lambda own: {label: str(int(label in own)) for label in LABELS},
}


def write(path, form, given):
    made = [{"text": text, **FORMS[form](own)} for text, own in given]
    if form == "list":
        path = path.with_suffix(".jsonl")
        path.write_text("".join(json.dumps(row) + "\n" for row in made))
        return path
    return write_csv(path.with_suffix(".csv"), made)


def task_for(path, form="text", **fields):
    named = {"label": "bad,good"} if form == "columns" else {}
    return Task(name="several", kind=KIND, text="text", data=str(path), **named, **fields)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write(tmp_path_factory.mktemp("several") / "rows", "text", rows())


# Data


@pytest.mark.parametrize("form", FORMS)
def test_labels_are_text_lists_or_columns(tmp_path, form):
    given = rows(40)
    found = load(task_for(write(tmp_path / "rows", form, given), form))
    assert found.task.labels == LABELS
    seen = {row["text"]: row["label"] for split in (found.train, found.validation) for row in split}
    assert seen == {text: [int(label in own) for label in LABELS] for text, own in given}


def test_labels_in_the_order_that_is_given(data):
    found = load(task_for(data, labels=("good", "bad")))
    row = found.train[0]
    assert row["label"] == [int(word in row["text"].split()) for word in ("good", "bad")]


@pytest.mark.parametrize(
    ("header", "values", "label", "message"),
    [
        (
            ["text", "bad", "good"],
            ["x", "0", "2"],
            "bad,good",
            r"'2' in column 'good', which is neither 0 nor 1: line 2",
        ),
        (["text", "bad", "good"], ["x", "0", ""], "bad,good", "None in column 'good', which is neither 0 nor 1"),
        (["text", "bad", "good"], ["x", "0", "1"], "bad,goood", "has no column 'goood'(.|\n)*good"),
        (["text", "label"], ["x", "bad|worse"], "label", "not one of the task's: 'worse'"),
    ],
)
def test_what_is_no_label_is_named(tmp_path, header, values, label, message):
    more = ["0", "1"] if len(header) == 3 else ["bad"]
    with (tmp_path / "rows.csv").open("w", newline="") as file:
        csv.writer(file).writerows([header, values, *([f"y{i}", *more] for i in range(10))])
    known = {"labels": LABELS} if label == "label" else {}
    task = Task(name="t", kind=KIND, text="text", label=label, data=str(tmp_path / "rows.csv"), **known)
    with pytest.raises(DataError, match=message):
        load(task)


def test_rows_without_any_label_at_all(tmp_path):
    path = write(tmp_path / "rows", "text", [(f"a {i}", []) for i in range(10)])
    with pytest.raises(DataError, match="no label in column 'label'"):
        load(task_for(path))


# The head


def test_the_loss_is_that_of_transformers():
    head = MultiLabelHead(num_outputs=3, pooling="first", dropout=0.0)
    logits = torch.randn(5, 3, dtype=torch.float64)
    labels = torch.randint(2, (5, 3))
    found = head.loss(logits, labels, States(), {})
    torch.testing.assert_close(found, F.binary_cross_entropy_with_logits(logits, labels.double()))


def test_the_divergence_is_that_of_each_labels_two_outcomes():
    head = MultiLabelHead(num_outputs=2, pooling="first")
    one, other = torch.randn(2, 4, 2, dtype=torch.float64)
    p, q = one.sigmoid(), other.sigmoid()

    def kl(a, b):
        return (a * (a / b).log() + (1 - a) * ((1 - a) / (1 - b)).log()).sum()

    found = head.apart(one, other, torch.zeros(4, 2, dtype=torch.long))
    torch.testing.assert_close(found, (kl(p, q) + kl(q, p)) / 2)


def test_a_threshold_has_the_best_f1():
    random_ = np.random.RandomState(0)
    for _ in range(80):
        count = random_.randint(1, 12)
        logits = random_.randint(-3, 4, count).astype(float)  # with ties
        labels = random_.randint(0, 2, count)
        found = best_threshold(logits, labels)
        assert 0 < found < 1
        if len(set(labels)) < 2:
            assert found == 0.5
            continue

        def score(threshold, logits=logits, labels=labels):
            return f1_score(labels, 1 / (1 + np.exp(-logits)) >= threshold, zero_division=0.0)

        grid = [score(1 / (1 + np.exp(-cut))) for cut in np.arange(-4.5, 5.0, 1.0)]
        assert score(found) == pytest.approx(max(grid))
        if score(0.5) >= max(grid):
            assert found == 0.5


def test_thresholds_decide_and_are_saved():
    head = MultiLabelHead(num_outputs=2, pooling="mean", thresholds=(0.5, 0.9))
    logits = torch.tensor([[0.1, 2.0], [-0.1, 3.0]])
    assert head.decide(logits, None, {}).tolist() == [[1, 0], [0, 1]]
    assert as_head(head.model_dump(mode="json")) == head


# Scores


def test_metrics_against_scikit_learn():
    random_ = np.random.RandomState(0)
    logits, labels = random_.randn(30, 4), random_.randint(0, 2, (30, 4))
    labels[:, 3] = 0  # a label that no row has
    found = compute(("f1_micro", "f1_macro", "subset_accuracy", "roc_auc"), KIND, logits, labels)
    said = logits >= 0
    assert found["f1_micro"] == pytest.approx(f1_score(labels, said, average="micro"))
    assert found["f1_macro"] == pytest.approx(f1_score(labels[:, :3], said[:, :3], average="macro"))
    assert found["subset_accuracy"] == pytest.approx((said == labels).all(axis=1).mean())
    assert found["roc_auc"] == pytest.approx(roc_auc_score(labels[:, :3], logits[:, :3], average="macro"))


def test_what_cannot_be_scored():
    with pytest.raises(DivergedError):
        compute(("f1_micro",), KIND, [[np.nan, 1.0]], [[0, 1]])
    with pytest.raises(ValueError, match="do not fit multi-label"):
        compute(("f1_micro",), KIND, [[1.0, 1.0]], [[0, 1, 1]])
    with pytest.raises(RecipeError, match="metric 'accuracy' is for"):
        Task(name="t", kind=KIND, text="text", data="x", metrics=("accuracy",))


# From data to answers


@pytest.fixture(scope="module")
def tuned(backbone, data, tmp_path_factory):
    folder = tmp_path_factory.mktemp("tuned") / "a"
    tune(backbone, task=task_for(data, test_fraction=0.2), method=LORA, output=folder, **FAST | {"num_train_epochs": 6})
    return folder


def test_it_is_learned_saved_and_scored_again(backbone, tuned):
    adapter = Adapter.load(tuned)
    assert adapter.kind == KIND
    assert adapter.metrics["test"]["f1_micro"] > 0.9
    assert adapter.metrics["test"].keys() == {"loss", "f1_micro", "f1_macro", "subset_accuracy", "roc_auc"}
    assert len(adapter.head.thresholds) == 2
    scores = evaluate(adapter, backbone=backbone, split="test")
    assert scores == {name: adapter.metrics["test"][name] for name in scores}


def test_predictions_are_the_labels_above_their_thresholds(backbone, tuned, graftwork, backbone_folder):
    given = rows(40)
    texts = [text for text, _ in given]
    adapter = Adapter.load(tuned)
    model = AdaptedModel(backbone, {"a": adapter})
    try:
        said = model.predict(texts)
        problem = model.config.problem_type
    finally:
        model.detach()
    for found in said:
        above = zip(LABELS, adapter.head.thresholds, strict=True)
        assert found.labels == tuple(label for label, threshold in above if found.scores[label] >= threshold)
        assert (found.label, found.score) == (None, None)
    assert sum(found.labels == tuple(own) for found, (_, own) in zip(said, given, strict=True)) > 34
    assert len({found.labels for found in said}) == 4
    assert problem == "multi_label_classification"
    shared = ["predict", tuned, "--backbone", backbone_folder, "--dtype", "float32"]
    lines = graftwork(*shared, *texts).out.splitlines()
    assert [line.split("\t")[0] for line in lines] == ["|".join(found.labels) for found in said]
    assert [line.split("\t")[2] for line in lines] == texts
    first = json.loads(graftwork(*shared, *texts, "--json").out.splitlines()[0])
    assert first["labels"] == list(said[0].labels)
    assert first["scores"].keys() == {*LABELS}


def test_the_loss_of_a_pass_is_that_of_its_logits(backbone, tuned):
    """Labels are as wide as there are labels, whatever the length of the texts is."""
    model = AdaptedModel(backbone, {"a": Adapter.load(tuned)})
    batch = backbone.tokenizer(["good mild good mild bad mild", "bad"], padding=True, return_tensors="pt")
    labels = torch.tensor([[1, 1], [1, 0]])
    try:
        with torch.no_grad():
            logits, found = model(**batch).logits, model(**batch, labels=labels)
    finally:
        model.detach()
    torch.testing.assert_close(found.logits, logits)
    torch.testing.assert_close(found.loss, F.binary_cross_entropy_with_logits(logits, labels.float()))


def test_a_baseline_is_fitted_for_each_label(backbone, data):
    adapter = tune(backbone, task=task_for(data), method=LORA, **FAST | {"max_steps": 2, "baseline": "auto"})
    assert adapter.baseline["validation"].keys() == {"f1_micro", "f1_macro", "subset_accuracy", "roc_auc"}
    assert adapter.baseline["validation"]["roc_auc"] > 0.5


def test_beside_other_kinds_in_one_pass(backbone, data, tmp_path):
    other = write_csv(tmp_path / "c.csv", [{"text": text, "label": str("good" in own)} for text, own in rows(40)])
    recipes = {
        "several": {"task": task_for(data), "method": LORA},
        "one": {"task": Task(name="one", text="text", data=str(other)), "method": LORA},
    }
    made = tune_many(backbone, recipes, **FAST | {"max_steps": 4})
    model = AdaptedModel(backbone, made)
    try:
        mixed = model.predict(["good", "good"], ["several", "one"])
        alone = [model.predict(["good"], name)[0] for name in ("several", "one")]
    finally:
        model.detach()
    for one, other in zip(mixed, alone, strict=True):
        assert (one.labels, one.label) == (other.labels, other.label)
        assert one.scores == pytest.approx(other.scores, abs=1e-5)


def test_other_methods(backbone, data):
    found = tune(backbone, task=task_for(data), method=AdaMix(bottleneck=4), **FAST | {"max_steps": 3})
    assert np.isfinite(found.metrics["validation"]["loss"])
    with pytest.raises(MethodError, match="several labels"):
        tune(backbone, task=task_for(data), method=FeatureExtraction(model="linear"), **FAST | {"max_steps": 3})


def test_a_new_adapter_for_a_loop_of_ones_own(backbone):
    adapter = Adapter.new(backbone, LORA, kind=KIND, labels=LABELS)
    assert adapter.head == MultiLabelHead(num_outputs=2, pooling=backbone.pooling)
    with pytest.raises(AdapterError, match="needs labels"):
        Adapter.new(backbone, LORA, kind=KIND)


# What reviews found


@pytest.mark.parametrize("cells", [None, ["-1", "-1"], ["", ""]], ids=["no columns", "-1", "empty"])
def test_a_test_split_without_labels_in_columns_is_left_out(tmp_path, cells, caplog):
    write(tmp_path / "train", "columns", rows(30))
    with (tmp_path / "test.csv").open("w", newline="") as file:
        header = ["text", *(LABELS if cells else ())]
        csv.writer(file).writerows([header, *([f"t{i}", *(cells or ())] for i in range(4))])
    task = Task(name="t", kind=KIND, text="text", label="bad,good", data=str(tmp_path))
    assert load(task).test is None
    assert "no labels in column 'bad,good'" in caplog.text


def test_thresholds_near_one_are_finite():
    labels = np.array([0, 0, 1, 1])
    found = best_threshold(np.array([18.0, 19.0, 20.0, 21.0]), labels)
    head = MultiLabelHead(num_outputs=1, pooling="mean", thresholds=(found,))
    margins = head.margins(torch.tensor([[18.0], [19.0], [20.0], [21.0]]))
    assert margins.isfinite().all()
    assert (margins >= 0).flatten().tolist() == [False, False, True, True]


@pytest.mark.parametrize("thresholds", [(0.5,), (0.5, 1.0), (0.0, 0.5)])
def test_thresholds_that_are_none(thresholds):
    with pytest.raises(ValueError, match="thresholds"):
        MultiLabelHead(num_outputs=2, pooling="mean", thresholds=thresholds)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ([[1, 1, 0], [0, 1, 1]] * 6, r"a label more than once: lines 1, 2(.|\n)*a column of 0 and 1 for each label"),
        ([[0], [1]] * 6, r"only the labels 0 and 1(.|\n)*--label"),
    ],
)
def test_zeros_and_ones_in_one_column_are_not_taken_for_labels(tmp_path, values, message):
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps({"text": f"t{i}", "label": own}) + "\n" for i, own in enumerate(values)))
    with pytest.raises(DataError, match=message):
        load(task_for(path))


def test_ids_with_gaps_come_as_floats(tmp_path):
    import pandas

    table = pandas.DataFrame(
        {"text": [f"t{i}" for i in range(30)], "label": [[0.0, 1.0, None][i % 3] for i in range(30)]}
    )
    table.to_parquet(tmp_path / "rows.parquet")
    found = load(task_for(tmp_path / "rows.parquet", labels=("bad", "good"), label_ids=True))
    seen = {row["text"]: row["label"] for split in (found.train, found.validation) for row in split}
    assert [seen[f"t{i}"] for i in range(3)] == [[1, 0], [0, 1], [0, 0]]


def test_a_column_whose_name_has_a_comma(tmp_path):
    path = tmp_path / "rows.jsonl"
    made = [{"text": f"t{i}", "x,y": ("bad", "good")[i % 2]} for i in range(20)]
    path.write_text("".join(json.dumps(row) + "\n" for row in made))
    task = Task(name="t", kind=KIND, text="text", label="x,y", data=str(path))
    assert load(task).task.labels == LABELS


def test_lists_are_scored_as_arrays_are():
    assert compute(("f1_micro",), KIND, [[1.0, -1.0]], [[1, 0]]) == {"f1_micro": 1.0}
    assert compute(("accuracy",), "classification", [[0.1, 0.9]], [1]) == {"accuracy": 1.0}


def test_the_baseline_has_thresholds_too():
    random_ = np.random.RandomState(0)
    vectors = {split: random_.randn(60, 3) for split in ("train", "validation", "test")}
    # One row in eight has the label: at 0.5 a linear model gives it to hardly any.
    labels = {
        name: np.stack([own[:, 0] + random_.randn(60) > 1.6, own[:, 1] > 0], 1).astype(int)
        for name, own in vectors.items()
    }
    task = Task(name="t", kind=KIND, text="text", data="x", labels=LABELS)
    kind = KINDS[KIND]
    [*_, model] = kind.linear_models()
    model.fit(vectors["train"], labels["train"])
    found = kind.linear_outcomes(model, vectors, labels, LABELS)
    at_half = {name: kind.linear_predictions(model, own, LABELS) for name, own in vectors.items()}
    score = {
        name: compute(("f1_macro",), KIND, own["validation"], labels["validation"])["f1_macro"]
        for name, own in (("tuned", found), ("half", at_half))
    }
    assert score["tuned"] > score["half"]
    assert probe(task, vectors, labels).keys() == {"validation", "test"}


@pytest.mark.parametrize("kind", [["x"], None, 3, "no such"])
def test_a_damaged_kind_of_head_is_named(kind):
    with pytest.raises(ValueError, match="there is no head of kind"):
        TypeAdapter(AnyHead).validate_python({"kind": kind})
