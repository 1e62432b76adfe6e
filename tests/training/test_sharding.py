"""A backbone in parts (FSDP): passes, gradients and files are those of a whole one."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tiny import make_adapter, make_backbone
from training.kinds import SETTINGS
from training.workbench import FAST

from graftwork import AdaptedModel, LoRA, tune, tune_many, tune_tasks
from graftwork.backbones import Backbone
from graftwork.backbones.sharding import sharded
from graftwork.errors import BackboneError, RecipeError
from graftwork.settings.yamlfile import dump_yaml
from graftwork.training import Recipe, TrainingSettings
from graftwork.training.processes import Processes
from graftwork.training.tuning import refuse_sharing

CPU = torch.device("cpu")


def ran(script, folder, *arguments):
    """What a script prints last, as JSON."""
    found = subprocess.run(
        [sys.executable, str(Path(__file__).with_name(script)), *arguments],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        check=False,
        timeout=900,  # processes that do not run the same passes wait for each other for ever
    )
    assert found.returncode == 0, found.stderr
    return json.loads(found.stdout.splitlines()[-1]), found.stderr


def test_passes_and_gradients_are_those_of_a_whole_backbone(tmp_path):
    """To the bit: the same products of the same numbers. Then the backbone is what it was."""
    cases = [
        *("bert:houlsby", "bert:lora:recomputed", "bert:adamix", "bert:dora", "albert:lora"),
        *("llama:lora", "gpt2:houlsby", "t5:lora"),
    ]
    (statuses, *found), said = ran("sharded_passes.py", tmp_path, *cases)
    assert statuses == [0, 0], said
    for own in found:
        # Of an encoder's output, which all layers of a decoder read, gradients are summed in another order (float64).
        assert all(largest < 1e-14 for largest in own["t5:lora"].pop("differ").values()), own["t5:lora"]
        assert all(not one.get("differ") for one in own.values()), own
        # A part is rounded up to whole rows, and all sizes of these models can be halved.
        assert {one["share"] for one in own.values()} == {0.5}


def test_two_processes_with_parts_of_a_backbone_tune_as_one_with_all_of_it(
    tmp_path, backbone_folder, data, backbones, kinds_data
):
    short = {"eval_strategy": "steps", "baseline": "off"}
    recipes = {
        "recipe": {
            "backbone": str(backbone_folder),
            "dtype": "float32",
            "task": {"name": "classes", "text": "text", "data": str(data["classes"])},
            "train": {**FAST, **short},
        },
        "texts": {
            "backbone": str(backbones["gpt2"]),
            "dtype": "float32",
            "task": {
                **{"name": "texts", "kind": "generation", "text": "source", "label": "target"},
                "data": str(kinds_data["generation"]),
            },
            "method": {"name": "lora", "rank": 4},
            "train": {**SETTINGS, **short, "max_new_tokens": 4},
        },
    }
    for name, recipe in recipes.items():
        (tmp_path / f"{name}.yml").write_text(dump_yaml(recipe))
    found, _ = ran("processes.py", tmp_path, "sharded", "recipe.yml")
    for name in ("encoder", "decoder"):
        assert found[name]["statuses"] == [0, 0, 0], found[name]["said"]
        one, first, second = found[name]["said"]
        assert not second, "one of them reports"
        told = [json.loads(said.splitlines()[-1]) for said in (one, first)]
        assert told[0]["metrics"]["validation"] == pytest.approx(told[1]["metrics"]["validation"], rel=1e-4)
        assert told[0]["baseline"] == told[1]["baseline"]
        assert bool(told[0]["baseline"]) is (name == "encoder")
        folders = [tmp_path / f"{who}-{name}" for who in ("one", "two")]
        alone, shared = (load_file(folder / "adapter.safetensors") for folder in folders)
        assert alone.keys() == shared.keys()
        for key, tensor in alone.items():
            # As of processes with all of it: a sum of two sums is rounded otherwise.
            assert (tensor - shared[key]).abs().max() <= 1e-4 * tensor.abs().max(), key
        assert len({tuple(sorted(path.name for path in folder.iterdir())) for folder in folders}) == 1
        lines = [(folder / "recipe.yaml").read_text().splitlines() for folder in folders]
        assert [(a, b) for a, b in zip(*lines, strict=True) if a != b] == [("  fsdp: false", "  fsdp: true")]
    assert (found["cut"]["statuses"], found["cut"]["same"]) == ([0, 0], True), found["cut"]["said"]
    assert found["refused"]["statuses"] == [2, 2]
    assert "full-fine-tuning trains the backbone's weights" in found["refused"]["said"]
    model = AdaptedModel(Backbone.load(str(backbone_folder), dtype="float32", device="cpu"))
    model.add("a", tmp_path / "two-encoder")
    assert len(model.predict(["one good two"], "a")) == 1


def test_what_cannot_be_sharded_is_refused(backbone_folder, data, tmp_path, backbone):
    def recipe(method="lora", **train):
        task = {"name": "classes", "text": "text", "data": str(data["classes"])}
        given = {"backbone": str(backbone_folder), "task": task, "method": method, "train": {"fsdp": True, **train}}
        return Recipe.parse(given, origin="it")

    refuse_sharing(recipe(), Processes(2, 1))
    with pytest.raises(RecipeError, match=r"here one process does(.|\n)*torchrun(.|\n)*--train.fsdp"):
        refuse_sharing(recipe(), Processes())
    for method in ("full-fine-tuning", {"name": "full-fine-tuning", "top_layers": 1}):
        with pytest.raises(RecipeError, match=r"trains the backbone's weights(.|\n)*--train.fsdp"):
            refuse_sharing(recipe(method), Processes(2, 0))
    with pytest.raises(RecipeError, match=r"--train.prefix_cache"):
        refuse_sharing(recipe(prefix_cache="on"), Processes(2, 0))
    with pytest.raises(RecipeError, match="torch_compile and fsdp cannot be combined"):
        TrainingSettings(fsdp=True, torch_compile=True)
    task = recipe().find_task()
    for tuned in (
        lambda: tune(backbone, task=task, fsdp=True, **FAST),
        lambda: tune_many(backbone, {"a": {"task": task}}, output=tmp_path / "many", fsdp=True, **FAST),
        lambda: tune_tasks(backbone, [task, task.model_copy(update={"name": "b"})], fsdp=True, **FAST),
    ):
        with pytest.raises(RecipeError, match=r"here one process does(.|\n)*--train.fsdp"):
            tuned()


@pytest.mark.parametrize("why", ["tied", "quantised", "held"])
def test_weights_that_cannot_be_in_parts_are_refused(why):
    backbone = make_backbone("bert")
    layers = backbone.base.encoder.layer
    if why == "tied":
        layers[1].output.dense.weight = layers[0].output.dense.weight
        named = r"encoder.layer.1.output.dense.weight is tied to a weight of encoder.layer.0"
    elif why == "quantised":
        whole = torch.zeros(32, 64, dtype=torch.int8)
        layers[0].output.dense.weight = torch.nn.Parameter(whole, requires_grad=False)
        named = r"encoder.layer.0.output.dense.weight is quantised.*int8(.|\n)*--train.fsdp"
    else:
        model = AdaptedModel(backbone)
        model.add("a", make_adapter(backbone, LoRA(rank=2)))
        named = "is in use by an AdaptedModel"
    with pytest.raises(BackboneError, match=named), sharded(backbone, CPU):
        pass


def test_a_backbone_whose_run_failed_cannot_be_used():
    backbone = make_backbone("bert")
    backbone.weights.lost = True
    with pytest.raises(BackboneError, match=r"sharded by a run that failed(.|\n)*loaded again"):
        AdaptedModel(backbone)
    with pytest.raises(BackboneError, match="sharded by a run that failed"), sharded(backbone, CPU):
        pass
