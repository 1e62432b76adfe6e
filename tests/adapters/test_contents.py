"""An adapter's folder is known to hold what was written, and two adapters with other answers are known apart."""

import json
import random
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny import SAMPLES, make_adapter, outdate

from graftwork.adapters import Adapter, folder
from graftwork.adapters.contents import checksum_of_tensors, not_finite
from graftwork.errors import AdapterError
from graftwork.model import AdaptedModel

# What was changed


def test_each_bit_of_the_numbers_counts(adapter, saved):
    file = saved / "adapter.safetensors"
    whole = file.read_bytes()
    start = 8 + int.from_bytes(whole[:8], "little")
    for _ in range(50):
        place, bit = random.randrange(start, len(whole)), random.randrange(8)
        file.write_bytes(whole[:place] + bytes([whole[place] ^ 1 << bit]) + whole[place + 1 :])
        with pytest.raises(AdapterError, match=r"adapter\.safetensors changed after graftwork wrote it"):
            Adapter.load(saved)
    file.write_bytes(whole)
    assert torch.equal(Adapter.load(saved).tensors["head.classifier.bias"], adapter.tensors["head.classifier.bias"])


CHANGES = {
    "method": lambda c: c["method"].update(alpha=c["method"]["alpha"] * 2),
    "labels": lambda c: c["task"]["labels"].reverse(),
    "max_length": lambda c: c["task"].update(max_length=5),
    "head": lambda c: c["head"].update(pooling="first"),
    "fingerprint": lambda c: c["backbone"].update(fingerprint="0" * 64),
    "seed": lambda c: c.update(seed=9),
    "metrics": lambda c: c.update(metrics={"test": {"accuracy": 1.0}}),
}


@pytest.mark.parametrize("change", CHANGES)
def test_what_the_configuration_says_counts(saved, change):
    file = saved / "adapter.json"
    content = json.loads(file.read_text())
    CHANGES[change](content)
    file.write_text(json.dumps(content))
    with pytest.raises(AdapterError, match=r"adapter\.json changed after graftwork wrote it"):
        Adapter.load(saved)


def test_how_the_files_are_laid_out_does_not_count(adapter, saved):
    file = saved / "adapter.json"
    file.write_text(json.dumps(json.loads(file.read_text()), indent=7, sort_keys=True))
    save_file(dict(reversed(load_file(saved / "adapter.safetensors").items())), saved / "adapter.safetensors")
    assert Adapter.load(saved).digest == adapter.digest


@pytest.mark.parametrize("checksums", [None, {}, {"adapter.json": "00000000"}])
def test_checksums_cannot_be_left_out(saved, checksums):
    file = saved / "adapter.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "checksums": checksums}))
    with pytest.raises(AdapterError, match=r"checksums of .* are missing"):
        Adapter.load(saved)


@pytest.fixture
def with_recipe(adapter, tmp_path):
    recipe = {"task": {"name": "t", "split_seed": 0}, "train": {"learning_rate": 3e-4, "baseline": "off"}}
    replace(adapter, recipe=recipe).save(tmp_path / "r")
    return tmp_path / "r"


@pytest.mark.parametrize(
    ("old", "new"), [("split_seed: 0", "split_seed: 1"), ("0.0003", "0.0004"), ("'off'", "on"), ("baseline", "basline")]
)
def test_what_the_recipe_says_counts(with_recipe, old, new):
    """It says on which rows an adapter is scored."""
    file = with_recipe / "recipe.yaml"
    assert old in file.read_text()
    file.write_text(file.read_text().replace(old, new))
    with pytest.raises(AdapterError, match=r"recipe\.yaml changed after graftwork wrote it"):
        Adapter.load(with_recipe)


@pytest.mark.parametrize("text", [None, "{}"])
def test_a_recipe_cannot_be_left_out(with_recipe, text):
    file = with_recipe / "recipe.yaml"
    file.unlink() if text is None else file.write_text(text)
    with pytest.raises(AdapterError, match=r"was written with a recipe\.yaml, and now has none or an empty one"):
        Adapter.load(with_recipe)


def test_how_the_recipe_is_laid_out_does_not_count(with_recipe):
    file, before = with_recipe / "recipe.yaml", Adapter.load(with_recipe).recipe
    file.write_text("# mine\n" + json.dumps(before, sort_keys=True))
    assert Adapter.load(with_recipe).recipe == before


@pytest.mark.parametrize("text", ["a: !!set {b, c}", "a: !!binary YWJj", "a: &x [*x]", "1: a\nb: c", "? [a]\n: b"])
def test_a_recipe_is_of_plain_values(with_recipe, text):
    (with_recipe / "recipe.yaml").write_text(text)
    with pytest.raises(AdapterError, match=r"recipe\.yaml"):
        Adapter.load(with_recipe)


def test_a_folder_without_a_checksum_of_its_recipe_opens(with_recipe, caplog):
    file = with_recipe / "adapter.json"
    content = json.loads(file.read_text())
    assert content["checksums"].pop("recipe.yaml")
    file.write_text(json.dumps(content))
    assert Adapter.load(with_recipe).recipe["task"]["split_seed"] == 0
    (with_recipe / "recipe.yaml").unlink()
    assert Adapter.load(with_recipe).recipe == {}


def test_an_older_folder_opens_with_a_warning_once(backbone, saved, tmp_path, caplog, monkeypatch):
    monkeypatch.setattr(folder, "_TOLD", [])
    whole = Adapter.load(saved)
    assert caplog.text == ""
    outdate(saved)
    old = Adapter.load(saved)
    assert str(saved) in caplog.text
    caplog.clear()
    Adapter.load(saved)
    assert caplog.text == ""
    assert old.digest == whole.digest
    AdaptedModel(backbone, {"a": old}).detach()
    old.save(tmp_path / "b")
    assert (tmp_path / "b" / "adapter.json").read_text().count("checksums") == 1


# What is no number


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16, torch.float8_e5m2])
def test_what_is_not_finite_is_found(value, dtype):
    whole, wrong = torch.ones(3, 5), torch.ones(3, 5)
    wrong[1, 2] = value
    tensors = {"a": whole.to(dtype), "b": wrong.to(dtype), "c": torch.ones(0), "d": torch.ones(2, dtype=torch.int64)}
    assert not_finite(tensors) == ["b"]


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_numbers_that_are_not_finite_are_neither_saved_nor_loaded(adapter, saved, tmp_path, monkeypatch, value):
    wrong = {name: tensor.clone() for name, tensor in adapter.tensors.items()}
    wrong["head.classifier.weight"][0, 0] = value
    with pytest.raises(AdapterError, match=r"not saved: it holds NaN or infinity in head\.classifier\.weight"):
        replace(adapter, tensors=wrong).save(tmp_path / "b")
    assert not (tmp_path / "b").exists()
    with monkeypatch.context() as patch:
        patch.setattr(folder, "not_finite", lambda tensors: [])
        replace(adapter, tensors=wrong).save(tmp_path / "b")
    for old in (False, True):
        if old:
            outdate(tmp_path / "b")
        with pytest.raises(AdapterError, match=r"adapter\.safetensors holds NaN or infinity in head\.classifier"):
            Adapter.load(tmp_path / "b")


# The digest


@pytest.mark.parametrize("name", SAMPLES)
def test_the_digest_survives(name, backbone, tmp_path):
    adapter = make_adapter(backbone, SAMPLES[name], trained=True)
    adapter.save(tmp_path / "a")
    assert Adapter.load(tmp_path / "a").digest == adapter.digest
    assert len(adapter.digest) == 32


def test_the_digest_is_of_what_decides_the_answers(adapter):
    one = {"head.classifier.bias": adapter.tensors["head.classifier.bias"] + 1}
    task, method = adapter.task, adapter.method
    others = [
        replace(adapter, tensors={**adapter.tensors, **one}),
        replace(adapter, method=method.model_copy(update={"alpha": 3.0})),
        replace(adapter, task=task.model_copy(update={"labels": task.labels[::-1]})),
        replace(adapter, task=task.model_copy(update={"max_length": 7})),
        replace(adapter, backbone=adapter.backbone.model_copy(update={"fingerprint": "0" * 64})),
        replace(adapter, sites=adapter.sites[:1]),
    ]
    assert len({adapter.digest, *(other.digest for other in others)}) == 1 + len(others)
    same = replace(
        adapter,
        seed=5,
        metrics={"test": {"accuracy": 1.0}},
        recipe={"a": 1},
        versions={},
        tensors=dict(reversed(adapter.tensors.items())),
        backbone=adapter.backbone.model_copy(update={"name": "elsewhere"}),
    )
    assert same.digest == adapter.digest


def test_names_shapes_and_types_count():
    x = torch.arange(6.0)
    tensors = [{"a": x}, {"b": x}, {"a": x.view(2, 3)}, {"a": x.view(torch.int32)}, {"a": x[:3], "b": x[3:]}, {}]
    assert len(set(map(checksum_of_tensors, tensors))) == len(tensors)
    assert checksum_of_tensors({"a": x, "b": x[:3]}) == checksum_of_tensors({"b": x[:3], "a": x})
