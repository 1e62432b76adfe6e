"""Regression is learned whatever the labels' scale."""

import pytest
import torch
from training.workbench import FAST, NUMBERS, make_rows, write_csv

from graftwork import AdaptedModel, Adapter, LoRA, Task, evaluate, tune, tune_many
from graftwork.methods import AdaMix, FeatureExtraction
from graftwork.tasks import load

LORA = LoRA(rank=4)
METHODS = {"lora": LORA, "adamix": AdaMix(bottleneck=4, experts=2), "mixed": FeatureExtraction()}
SETTINGS = {**FAST, "num_train_epochs": 6}

PRICES = {"good": 150_000.0, "mild": 100_000.0, "bad": 50_000.0}


@pytest.fixture(scope="module")
def tasks(tmp_path_factory):
    """The same rows with labels of order 1, and with prices."""
    folder = tmp_path_factory.mktemp("prices")
    rows = make_rows("numbers")
    price = {number: PRICES[word] for word, number in NUMBERS.items()}
    files = {
        "small": write_csv(folder / "small.csv", rows),
        "prices": write_csv(folder / "prices.csv", [{**row, "label": str(price[float(row["label"])])} for row in rows]),
    }
    return {name: Task(name=name, kind="regression", text="text", data=str(file)) for name, file in files.items()}


def check_prices(backbone, adapter):
    assert adapter.metrics["validation"]["r2"] > 0.6
    model = AdaptedModel(backbone, {"prices": adapter})
    try:
        found = [row.label for row in model.predict(["three good two", "three bad two", "six mild one"])]
    finally:
        model.detach()
    assert found == pytest.approx([150_000, 50_000, 100_000], abs=35_000)


@pytest.mark.parametrize("name", METHODS)
def test_prices_are_learned(backbone, tasks, name, tmp_path):
    settings = {**SETTINGS, "num_train_epochs": 12} if name == "mixed" else SETTINGS
    adapter = tune(backbone, task=tasks["prices"], method=METHODS[name], output=tmp_path / "a", **settings)
    check_prices(backbone, adapter)
    assert evaluate(Adapter.load(tmp_path / "a"), backbone=backbone)["r2"] == adapter.metrics["validation"]["r2"]


def test_prices_are_learned_beside_others(backbone, tasks):
    adapters = {name: {"task": task, "method": METHODS["lora"]} for name, task in tasks.items()}
    check_prices(backbone, tune_many(backbone, adapters, **SETTINGS)["prices"])


@pytest.mark.parametrize("name", METHODS)
def test_the_labels_unit_and_zero_change_nothing(backbone, tasks, name):
    """The same is learned, and the same loss is told; what is said of a text is in the labels' own unit."""
    found = {case: tune(backbone, task=task, method=METHODS[name], max_steps=5, optim="sgd", learning_rate=0.01)
             for case, task in tasks.items()}  # fmt: skip
    small, prices = found["small"], found["prices"]
    for key, tensor in small.tensors.items():
        # float32 rounds a price by 1e-7 of itself, a millionth of the deviation, and steps add up what comes of that.
        torch.testing.assert_close(prices.tensors[key], tensor, rtol=0, atol=1e-4, msg=key)
    one, other = (adapter.metrics["validation"] for adapter in (small, prices))
    unit = (150_000 - 50_000) / 6
    assert other["loss"] == pytest.approx(one["loss"], rel=1e-3)
    assert other["mse"] == pytest.approx(one["mse"] * unit**2, rel=1e-3)
    assert other["mse"] == pytest.approx(other["loss"] * prices.head.scale.deviation**2, rel=1e-3)
    assert other["r2"] == pytest.approx(one["r2"], abs=1e-3)


def test_the_scale_is_that_of_the_training_split(backbone, tasks):
    adapter = tune(backbone, task=tasks["prices"], method=LORA, max_steps=1)
    labels = torch.tensor(list(load(tasks["prices"]).train["label"]), dtype=torch.float64)
    assert adapter.head.scale.mean == pytest.approx(float(labels.mean()))
    assert adapter.head.scale.deviation == pytest.approx(float(labels.std(correction=0)))
