"""The adapter that a run begins with."""

import pytest
import torch
from training.workbench import FAST

from graftwork import Adapter, LoRA, Pfeiffer, Task, tune
from graftwork.errors import RecipeError
from graftwork.methods import AdaMix
from graftwork.training import Recipe
from graftwork.training.tuning import tune_recipe

ONE_STEP = {**FAST, "max_steps": 1}


@pytest.fixture(scope="module")
def task(data):
    return Task(name="classes", text="text", data=str(data["classes"]))


def begin(backbone, task, start, method):
    values = {"name": method.name, **method.model_dump(mode="json")}
    recipe = Recipe.parse(
        {
            "backbone": backbone.name,
            "dtype": "float32",
            "task": task.model_dump(exclude_none=True),
            "method": values,
            "start": str(start),
            "train": {**ONE_STEP, "learning_rate": 1e-9, "head_learning_rate": 1e-9},
        }
    )
    return tune_recipe(recipe, backbone=backbone)


def test_a_run_begins_with_all_tensors(backbone, task, tmp_path):
    tune(backbone, task=task, method=Pfeiffer(bottleneck=4), output=tmp_path / "a", **FAST)
    old, new = Adapter.load(tmp_path / "a"), begin(backbone, task, tmp_path / "a", Pfeiffer(bottleneck=4))
    for name, tensor in old.tensors.items():
        torch.testing.assert_close(new.tensors[name], tensor, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("old", "new", "misfit"),
    [
        (AdaMix(bottleneck=4), AdaMix(bottleneck=4), r"down.*instead of"),
        (LoRA(rank=2, targets=["*.query"]), LoRA(rank=2, targets=["*.query", "*.key"]), "lacks .*key"),
        (Pfeiffer(bottleneck=4), Pfeiffer(bottleneck=5), "instead of"),
    ],
    ids=["the finished method is another one", "fewer sites", "another size"],
)
def test_a_tensor_that_is_not_taken_is_refused(backbone, task, tmp_path, old, new, misfit):
    tune(backbone, task=task, method=old, output=tmp_path / "a", **ONE_STEP)
    with pytest.raises(RecipeError, match=rf"{misfit}(.|\n)*change: start, or --method"):
        begin(backbone, task, tmp_path / "a", new)
