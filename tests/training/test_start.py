"""A run that begins with the tensors of an adapter."""

import pytest
import torch
from training.workbench import FAST, at_step, contents, killed

from graftwork import Adapter, LoRA, Task, tune
from graftwork.errors import AdapterError, RecipeError
from graftwork.training import Recipe, tune_recipe

STILL = {**FAST, "max_steps": 1, "learning_rate": 1e-12, "head_learning_rate": 1e-12}
"""A run that leaves its tensors where they were."""


@pytest.fixture(scope="module")
def first(backbone, data, tmp_path_factory):
    folder = tmp_path_factory.mktemp("first") / "a"
    task = Task(name="classes", text="text", data=str(data["classes"]))
    tune(backbone, task=task, method=LoRA(rank=4), output=folder, **FAST)
    return folder


def recipe_of(data, start, *, kind="classes", method=None, **training):
    task = {"name": kind, "text": "text", "data": str(data[kind])}
    task |= {"kind": "regression"} if kind == "numbers" else {}
    return Recipe.parse(
        {
            "task": task,
            "method": method or {"name": "lora", "rank": 4},
            "start": str(start),
            "train": {**STILL, **training},
        }
    )


def test_all_tensors_are_those_of_the_adapter_where_the_head_is_the_same(backbone, data, first):
    found, old = tune_recipe(recipe_of(data, first), backbone=backbone), Adapter.load(first)
    assert found.tensors.keys() == old.tensors.keys()
    for name, tensor in old.tensors.items():
        torch.testing.assert_close(found.tensors[name], tensor, rtol=1e-6, atol=1e-7)
    assert found.recipe["start"] == {"folder": str(first), "digest": old.digest}


def test_another_task_has_a_head_of_its_own(backbone, data, first):
    found, old = tune_recipe(recipe_of(data, first, kind="numbers"), backbone=backbone), Adapter.load(first)
    body = [name for name in old.tensors if not name.startswith("head.")]
    for name in body:
        torch.testing.assert_close(found.tensors[name], old.tensors[name], rtol=1e-6, atol=1e-7)
    assert found.tensors["head.classifier.weight"].shape[0] == 1


def test_a_killed_run_resumes_to_the_same_bytes(backbone, data, first, tmp_path):
    recipe = recipe_of(data, first, **{**FAST, "max_steps": 12, "eval_strategy": "steps", "eval_steps": 5})
    tune_recipe(recipe, output=tmp_path / "whole", backbone=backbone)
    with killed(at_step(8)):
        tune_recipe(recipe, output=tmp_path / "a", backbone=backbone)
    tune_recipe(recipe, output=tmp_path / "a", backbone=backbone, resume=True)
    assert contents(tmp_path / "a") == contents(tmp_path / "whole")


def test_what_cannot_be_begun_with(backbone, data, first, tmp_path, other_backbone_folder):
    from graftwork import Backbone

    with pytest.raises(RecipeError, match="has no tensor in common with method"):
        tune_recipe(recipe_of(data, first, method={"name": "houlsby", "bottleneck": 4}), backbone=backbone)
    with pytest.raises(AdapterError, match="nowhere"):
        tune_recipe(recipe_of(data, tmp_path / "nowhere"), backbone=backbone)
    other = Backbone.load(str(other_backbone_folder), dtype="float32", device="cpu")
    with pytest.raises(RecipeError, match="was made for another backbone"):
        tune_recipe(recipe_of(data, first), backbone=other)
    changed = recipe_of(data, first)
    given = changed.model_copy(update={"start": changed.start.model_copy(update={"digest": "0" * 32})})
    with pytest.raises(RecipeError, match="has changed"):
        tune_recipe(given, backbone=backbone)
