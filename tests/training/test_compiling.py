"""Compiled layers: they compute what layers compute, are compiled once for all of one structure, and leave no trace."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from tiny import make_backbone
from torch._inductor import config
from training.workbench import FAST, flags

from graftwork import AdaptedModel, Adapter, Task, tune, tune_many
from graftwork.errors import RecipeError
from graftwork.training import TrainingSettings, compiling
from graftwork.training.compiling import compiled

METHODS = ("lora", "parallel", "prefix-tuning")


@pytest.fixture(scope="module")
def steps():
    program = Path(__file__).with_name("compiled_steps.py")
    ran = subprocess.run([sys.executable, str(program), *METHODS], capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    return json.loads(ran.stdout)


@pytest.mark.parametrize("name", METHODS)
def test_losses_and_gradients_are_those_of_plain_layers(steps, name):
    # float64, where products are added in another order.
    assert steps[name]["apart"] < 1e-12


@pytest.mark.parametrize("name", METHODS)
def test_three_layers_are_compiled_as_two_whatever_the_lengths_and_rows(steps, name):
    # The lowest one's input needs no gradient.
    assert steps[name]["layers"] == [2, 2, 2]


@pytest.mark.parametrize("name", METHODS)
def test_passes_without_gradients_run_plain_layers(steps, name):
    assert steps[name]["resting"] == 0


@pytest.mark.parametrize("name", METHODS)
def test_nothing_is_left_on_the_backbone(steps, name):
    assert steps[name]["left"] == 0


@pytest.mark.skipif("GRAFTWORK_TEST_COMPILER" not in os.environ, reason="making machine code takes a minute or two")
def test_the_command_tunes_the_same_adapter(backbone_folder, data, tmp_path):
    shared = ["tune", "--data", str(data["classes"]), "--text", "text", "--backbone", str(backbone_folder), "--quiet"]
    shared += ["--method", "lora", "--dtype", "float32", *flags(FAST | {"max_steps": 4, "adam_epsilon": 1e-2})]
    for name, more in (("plain", []), ("compiled", ["--compile"])):
        command = [sys.executable, "-m", "graftwork", *shared, *more, "--output", str(tmp_path / name)]
        ran = subprocess.run(command, capture_output=True, text=True, check=False)
        assert ran.returncode == 0, ran.stderr
    plain, other = (Adapter.load(tmp_path / name) for name in ("plain", "compiled"))
    assert [adapter.recipe["train"]["torch_compile"] for adapter in (plain, other)] == [False, True]
    for name, tensor in plain.tensors.items():
        # Four steps in float32, of which each is rounded otherwise; with a large epsilon no step is a mere sign.
        torch.testing.assert_close(other.tensors[name], tensor, rtol=1e-3, atol=1e-5)


# Refusals


def test_a_machine_without_a_compiler_is_told_before_training(backbone, data, tmp_path, monkeypatch):
    monkeypatch.setattr(config.cpp, "cxx", ("no-such-compiler",))
    task = Task(name="classes", text="text", data=str(data["classes"]))
    with pytest.raises(RecipeError, match=r"no C\+\+ compiler(.|\n)*\$CXX(.|\n)*--compile"):
        tune(backbone, task=task, method="lora", output=tmp_path / "a", torch_compile=True, **FAST)
    assert not list(tmp_path.iterdir())


@pytest.fixture
def model(monkeypatch):
    """A backbone alone, whose layers are compiled without a compiler: they run as they were found."""
    plain = torch.compile
    monkeypatch.setattr(torch, "compile", lambda call, options, **given: plain(call, backend="eager", **given))
    monkeypatch.setattr(compiling, "refuse_without_compiler", lambda device: None)
    model = AdaptedModel(make_backbone("bert"))
    # Our own has its shapes checked in tests, and the checks cannot be compiled.
    model.model.set_attn_implementation("eager")
    yield model
    assert not model.graft.compiled
    assert all(module._compiled_call_impl is None for module in model.modules())


def refused(words):
    return pytest.raises(RecipeError, match=rf"layers of backbone 'tiny-bert'.* cannot be .*{words}(.|\n)*--compile")


def test_what_cannot_be_compiled_is_named_with_the_flag(model, monkeypatch):
    layer = model.model.encoder.layer[0]
    monkeypatch.setattr(layer, "feed_forward_chunk", torch._dynamo.disable(lambda states: states))
    with refused("disable"), compiled(model):
        model.model(input_ids=torch.full((2, 5), 7))


def test_there_is_an_end_of_compiling(model, monkeypatch):
    monkeypatch.setattr(compiling, "VARIANTS", 1)
    with refused("1 variants"), compiled(model):
        for needs_gradient in (False, True):
            model.model(inputs_embeds=torch.randn(2, 5, 32, requires_grad=needs_gradient))


def test_adapters_that_share_passes_are_not_compiled(backbone, data, tmp_path):
    one = {"task": Task(name="classes", text="text", data=str(data["classes"])), "method": "lora"}
    with pytest.raises(RecipeError, match=r"'classes' cannot be tuned with torch_compile(.|\n)*train.torch_compile"):
        tune_many(backbone, {"classes": one}, output=tmp_path, **FAST, torch_compile=True)
    assert not list(tmp_path.iterdir())


def test_layers_are_not_both_compiled_and_recomputed():
    with pytest.raises(RecipeError, match="torch_compile and gradient_checkpointing cannot be combined"):
        TrainingSettings(torch_compile=True, gradient_checkpointing=True)
