"""`plan` promises the bytes that an adapter then takes, and `inspect`, `list` and `tune` say the same."""

import json

import pytest
from training.workbench import FAST, flags

from graftwork import Adapter, Backbone, make_method
from graftwork.methods import known_methods

TABLES = [
    ("prefix-tuning", {"keep": "table"}),
    ("p-tuning", {"keep": "table"}),
    ("p-tuning", {"encoder": "mlp", "keep": "table"}),
    ("union", {"methods": ["lora", {"name": "prefix-tuning", "keep": "table"}, "adamix"], "gated": True}),
    ("feature-extraction", {"model": "bilstm"}),
    ("houlsby", {"extra_classifier": True, "scale": "learned"}),
]
"""Methods that keep other tensors than they train, and heads with more of them."""

FITTING = {"num_virtual_tokens": 4, "phm_dim": 1}
"""Settings for the tiny backbone: prompts that leave room for a text, and maps as small as its bottlenecks."""


@pytest.fixture(scope="module")
def backbone(backbone_folder):
    return Backbone.load(str(backbone_folder), dtype="float32", device="cpu")


def planned(graftwork, folder, name, settings, *arguments):
    given = [part for key, value in settings.items() for part in (f"--method.{key}", json.dumps(value))]
    ran = graftwork("plan", "--backbone", folder, "--method", name, *given, *arguments, "--json")
    assert ran.status == 0, ran.err
    return json.loads(ran.out)["bytes"]


@pytest.mark.parametrize(("name", "settings"), [*((name, {}) for name in known_methods()), *TABLES])
def test_a_finished_adapter_takes_the_bytes_that_were_planned(
    graftwork, backbone, backbone_folder, tmp_path, name, settings
):
    fields = type(make_method(name)).model_fields
    settings = {key: value for key, value in FITTING.items() if key in fields} | settings
    method = make_method(name, settings)
    adapter = Adapter.new(backbone, method, labels=["good", "bad"]).finished(backbone)
    adapter.save(tmp_path / "a")
    there = (tmp_path / "a" / "adapter.safetensors").stat().st_size
    assert planned(graftwork, backbone_folder, name, settings) == adapter.num_bytes == there
    assert json.loads(graftwork("inspect", tmp_path / "a", "--json").out)["bytes"] == there
    [row] = json.loads(graftwork("list", tmp_path, "--json").out)
    assert row["bytes"] == there


@pytest.mark.parametrize(
    ("kind", "labels"),
    [
        ("regression", None),
        ("token-classification", ["O", "B-X", "I-X"]),
        ("multiple-choice", None),
        ("multi-label-classification", ["a", "b", "c", "d", "e"]),
    ],
)
def test_heads_of_all_kinds_take_the_bytes_that_were_planned(
    graftwork, backbone, backbone_folder, tmp_path, kind, labels
):
    adapter = Adapter.new(backbone, "lora", kind=kind, labels=labels)
    adapter.save(tmp_path / "a")
    there = (tmp_path / "a" / "adapter.safetensors").stat().st_size
    assert planned(graftwork, backbone_folder, "lora", {}, "--kind", kind, "--labels", len(labels or "a")) == there


@pytest.mark.parametrize("name", ["adamix", "ia3"])
def test_tune_saves_what_was_planned(graftwork, backbone_folder, data, tmp_path, name):
    arguments = ["--data", data["classes"], "--text", "text", "--backbone", backbone_folder, "--method", name]
    steps = flags({**FAST, "max_steps": 2})
    ran = graftwork("tune", *arguments, *steps, "--output", tmp_path / "a", "--quiet", "--json")
    there = (tmp_path / "a" / "adapter.safetensors").stat().st_size
    assert planned(graftwork, backbone_folder, name, {}) == json.loads(ran.out)["bytes"] == there
    words = graftwork("inspect", tmp_path / "a").out
    assert f"{there / 1000:.1f} KB (adapter.safetensors)" in words
