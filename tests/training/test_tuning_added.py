"""Tokens of an adapter's own in tuning: learned with every method, alone and with others, saved, and resumed."""

import json
import random

import pytest
import torch
from tiny import bits
from training.workbench import FAST, at_step, contents, killed, sentence, write_csv

from graftwork import AdaptedModel, Adapter, Houlsby, LoRA, PromptTuning, Task, evaluate, tune, tune_many
from graftwork.adapters.added import ADDED
from graftwork.errors import RecipeError
from graftwork.methods import FeatureExtraction, FullFineTuning, HeadOnly
from graftwork.training import Recipe
from graftwork.training.planning import trained_for

TOKENS = ("superb", "dire")
"""The deciding words, of which the tokenizer makes nothing: both are unknown to it."""

METHODS = {
    "lora": (LoRA(rank=4), {}),
    "houlsby": (Houlsby(bottleneck=4), {}),
    "head": (HeadOnly(), {"num_train_epochs": 6}),
    "features": (FeatureExtraction(), {"num_train_epochs": 6}),
    "prompt": (PromptTuning(num_virtual_tokens=2, init="uniform"), {"num_train_epochs": 4}),
    "full": (FullFineTuning(), {"learning_rate": 1e-3, "num_train_epochs": 4}),
}


@pytest.fixture(scope="module")
def task(tmp_path_factory):
    source = random.Random(0)
    rows = [{"text": sentence(source, TOKENS[i % 2]), "label": ("good", "bad")[i % 2]} for i in range(160)]
    return Task(name="t", text="text", data=str(write_csv(tmp_path_factory.mktemp("data") / "rows.csv", rows)))


@pytest.mark.parametrize("name", METHODS)
def test_they_are_learned_with_every_method(backbone, task, name, tmp_path):
    method, settings = METHODS[name]
    before = bits(backbone.model)
    given = {**FAST, **settings}
    blind = tune(backbone, task=task, method=method, **given)
    adapter = tune(backbone, task=task, method=method, add_tokens=TOKENS, output=tmp_path / "a", **given)
    assert blind.metrics["validation"]["accuracy"] < 0.8
    assert adapter.metrics["validation"]["accuracy"] >= 0.9
    assert bits(backbone.model) == before
    # Their rows, and nothing else of the table.
    assert set(adapter.tensors) == {*blind.tensors, ADDED}
    assert adapter.tensors[ADDED].shape == (2, backbone.hidden_size)
    read = Adapter.load(tmp_path / "a")
    assert (read.task.added_tokens, read.recipe["add_tokens"]) == (TOKENS, [*TOKENS])
    assert json.loads((tmp_path / "a" / "adapter.json").read_text())["task"]["added_tokens"] == [*TOKENS]
    assert trained_for(read) == trained_for(blind) + adapter.tensors[ADDED].numel()
    scores = evaluate(read, backbone=backbone)
    assert scores == {metric: adapter.metrics["validation"][metric] for metric in scores}
    model = AdaptedModel(backbone, {"a": read})
    try:
        source = random.Random(1)
        said = model.predict([sentence(source, TOKENS[i % 2]) for i in range(20)])
        assert sum(one.label == ("good", "bad")[i % 2] for i, one in enumerate(said)) >= 16
    finally:
        model.detach()


def test_the_same_bytes_and_after_a_kill(backbone, task, tmp_path):
    settings = {**FAST, "add_tokens": TOKENS, "method": LoRA(rank=4)}
    for name in ("a", "b"):
        tune(backbone, task=task, output=tmp_path / name, **settings)
    assert contents(tmp_path / "a") == contents(tmp_path / "b")
    with killed(at_step(25)):
        tune(backbone, task=task, output=tmp_path / "c", **settings)
    tune(backbone, task=task, output=tmp_path / "c", resume=True, **settings)
    assert contents(tmp_path / "a") == contents(tmp_path / "c")


def test_several_adapters_with_others_and_none_are_tuned_at_once(backbone, task):
    recipes = {
        "both": {"task": task, "method": "lora", "add_tokens": TOKENS},
        "one": {"task": task, "method": HeadOnly(), "add_tokens": ["dire"], "train": {"num_train_epochs": 6}},
        "none": {"task": task, "method": "houlsby"},
    }
    found = tune_many(backbone, recipes, **FAST)
    assert {name: len(adapter.task.added_tokens) for name, adapter in found.items()} == {"both": 2, "one": 1, "none": 0}
    scores = {name: adapter.metrics["validation"]["accuracy"] for name, adapter in found.items()}
    assert min(scores["both"], scores["one"]) >= 0.9 > 0.8 > scores["none"]
    for name, own in recipes.items():
        alone = tune(
            backbone,
            task=task,
            method=own["method"],
            add_tokens=own.get("add_tokens"),
            **{**FAST, **own.get("train", {})},
        )
        for key, tensor in alone.tensors.items():
            # Float32 over some dozens of steps, in sums of other orders.
            torch.testing.assert_close(found[name].tensors[key], tensor, rtol=0, atol=2e-2)


def test_nothing_is_kept_below_them(backbone, task, tmp_path, monkeypatch):
    monkeypatch.setenv("GRAFTWORK_CACHE", str(tmp_path / "cache"))
    settings = {**FAST, "method": HeadOnly(), "add_tokens": TOKENS}
    with pytest.raises(RecipeError, match="embeddings of added tokens are trained, and no layer is below them"):
        tune(backbone, task=task, prefix_cache="on", **settings)
    tune(backbone, task=task, **settings)
    assert not (tmp_path / "cache" / "states").exists()


def test_a_recipe_names_them(backbone_folder, task, tmp_path):
    file = tmp_path / "recipe.yaml"
    file.write_text(f"task: {{name: t, text: text, data: {task.data}}}\nadd_tokens: [superb, dire]\n")
    assert Recipe.from_yaml(file).add_tokens == TOKENS
    with pytest.raises(RecipeError, match="add_tokens"):
        Recipe.parse({"task": "sst2", "add_tokens": "superb"})
