"""Feature extraction from data to predictions: tags by their best sequence, pairs, and numbers."""

import pytest
from training.workbench import FAST

from graftwork import AdaptedModel, Adapter, Backbone, FeatureExtraction, Task, evaluate, tune


@pytest.fixture(scope="module")
def tagging(kinds_data):
    fields = {"kind": "token-classification", "text": "words", "label": "tags", "validation_fraction": 0.2}
    return Task.parse({"name": "tags", "data": str(kinds_data["tags"]), **fields}, origin="the test")


def test_tags_are_those_of_the_best_sequence(backbones, tagging, tmp_path):
    backbone = Backbone.load(str(backbones["bert"]), dtype="float32", device="cpu")
    method = FeatureExtraction(model="bilstm-crf", hidden_size=16)
    adapter = tune(backbone, task=tagging, method=method, output=tmp_path / "a", **{**FAST, "num_train_epochs": 16})
    read = Adapter.load(tmp_path / "a")
    scores = evaluate(read, backbone=backbone)
    assert scores == {name: adapter.metrics["validation"][name] for name in tagging.metrics}
    assert scores[tagging.main_metric] > 0.8
    # A sequence that may not leave O is O from end to end, whatever the single tokens say.
    outside = read.task.labels.index("O")
    read.tensors["head.crf.start"].fill_(-1e4)
    read.tensors["head.crf.start"][outside] = 0.0
    read.tensors["head.crf.transitions"][outside].fill_(-1e4)
    read.tensors["head.crf.transitions"][outside, outside] = 0.0
    model = AdaptedModel(backbone, {"free": Adapter.load(tmp_path / "a"), "bound": read})
    try:
        words = ["one", "good", "two", "bad", "three"]
        free, bound = (model.predict([words], name)[0].tags for name in ("free", "bound"))
        assert set(bound) == {"O"}
        assert set(free) > {"O"}
    finally:
        model.detach()


def test_pairs_and_numbers(backbone, data):
    pairs = Task(name="pairs", text="first", text_pair="second", data=str(data["pairs"]))
    numbers = Task(name="numbers", kind="regression", text="text", data=str(data["numbers"]))
    settings = {**FAST, "num_train_epochs": 8}
    esim = tune(backbone, task=pairs, method=FeatureExtraction(model="esim", hidden_size=16), **settings)
    assert esim.metrics["validation"]["accuracy"] > 0.9
    mixed = tune(backbone, task=numbers, method=FeatureExtraction(model="bilstm", hidden_size=16), **settings)
    assert mixed.metrics["validation"]["pearson"] > 0.9
    model = AdaptedModel(backbone, {"pairs": esim, "numbers": mixed})
    try:
        said = model.predict([("one good two", "three mild"), ("bad five", "mild")], "pairs")
        assert [p.label for p in said] == ["is good", "is bad"]
        high, low = model.predict(["one good two", "bad five six"], "numbers")
        assert isinstance(high.label, float)
        assert high.label > low.label
    finally:
        model.detach()
