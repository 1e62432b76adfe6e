"""Adapters that an older version saved (format version 1, without checksums) open, and say what they said."""

import json
import logging
from pathlib import Path

import pytest
import torch
from adapters.stored.backbone import make
from safetensors.torch import load_file

from graftwork import AdaptedModel, Adapter, Backbone

STORED = Path(__file__).parent / "stored"
EXPECTED = json.loads((STORED / "predictions.json").read_text())


@pytest.fixture(scope="module")
def backbone(tmp_path_factory):
    return Backbone.load(str(make(tmp_path_factory.mktemp("stored") / "bb")), dtype="float32", device="cpu")


@pytest.mark.parametrize("name", ["lora", "houlsby"])
def test_an_old_adapter_says_what_it_said(backbone, name, caplog):
    with caplog.at_level(logging.WARNING):
        adapter = Adapter.load(STORED / name)
    written = load_file(STORED / name / "adapter.safetensors")
    assert adapter.tensors.keys() == written.keys()
    assert all(torch.equal(adapter.tensors[key], tensor) for key, tensor in written.items())
    model = AdaptedModel(backbone, {"a": adapter})
    try:
        found = [prediction.as_dict() for prediction in model.predict(EXPECTED["texts"])]
    finally:
        model.detach()
    for said, before in zip(found, EXPECTED[name], strict=True):
        scores = said.pop("scores", {}), before.pop("scores", {})
        assert scores[0] == pytest.approx(scores[1], abs=1e-5)
        assert {**said, "label": None, "score": None} == {**before, "label": None, "score": None}
        if name == "lora":
            assert said["label"] == before["label"]
            assert said["score"] == pytest.approx(before["score"], abs=1e-5)
        else:
            assert said["label"] == pytest.approx(before["label"], abs=1e-4)


@pytest.mark.parametrize("name", ["lora", "houlsby"])
def test_saved_again_it_has_checksums(name, tmp_path):
    Adapter.load(STORED / name).save(tmp_path / "a")
    assert json.loads((tmp_path / "a" / "adapter.json").read_text())["checksums"]
    assert Adapter.load(tmp_path / "a").digest == Adapter.load(STORED / name).digest
