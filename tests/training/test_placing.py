"""A backbone stays on the device where it is, which need not be the machine's first one.

No machine with two devices is at hand: transformers and accelerate are made to take `meta` for the first one. What they
moved there would have no numbers, and no run would come to an end.
"""

from contextlib import nullcontext
from functools import partial

import pytest
import torch
from accelerate.state import AcceleratorState, PartialState
from tiny import make_backbone
from training.workbench import FAST, at_step, contents, killed
from transformers import Trainer

from graftwork import AdaptedModel, HeadOnly, LoRA, Task, evaluate, tune, tune_many
from graftwork.backbones.devices import on
from graftwork.training import settings
from graftwork.training.settings import PlacedArguments, TrainingSettings
from graftwork.training.trainer import AdapterTrainer

LORA = LoRA(rank=4)
CPU = torch.device("cpu")


@pytest.fixture
def elsewhere(monkeypatch):
    """The machine's first device is another one than the backbone's; gives the devices that batches were sent to."""
    monkeypatch.setenv("ACCELERATE_TORCH_DEVICE", "meta")
    monkeypatch.setattr(settings, "PlacedArguments", lambda **given: PlacedArguments(**{**given, "use_cpu": False}))
    sent = []
    plain = Trainer._prepare_inputs

    def prepared(self, inputs):
        # The batches come as they were collated: accelerate has sent them nowhere.
        assert {tensor.device for tensor in inputs.values()} == {CPU}
        found = plain(self, inputs)
        sent.extend(tensor.device for tensor in found.values())
        return found

    monkeypatch.setattr(AdapterTrainer, "_prepare_inputs", prepared)
    yield sent
    AcceleratorState._reset_state(reset_partial_state=True)


@pytest.fixture
def unmoved(monkeypatch):
    """No module is moved, in whatever way."""

    def refuse(self, *args, **kwargs):
        raise AssertionError(f"{type(self).__name__} is moved")

    monkeypatch.setattr(Trainer, "_move_model_to_device", refuse)
    monkeypatch.setattr(AdaptedModel, "_apply", refuse)


@pytest.fixture
def task(data):
    return Task(name="classes", text="text", data=str(data["classes"]))


@pytest.mark.parametrize("method", [LORA, HeadOnly()], ids=lambda method: method.name)
@pytest.mark.parametrize("cache", ["on", "off"])
def test_alone(backbone, task, elsewhere, unmoved, method, cache, tmp_path):
    if cache == "on" and method.name == "lora":
        method = LoRA(rank=4, targets="layers.1.*")
    adapter = tune(backbone, task=task, method=method, output=tmp_path / "a", prefix_cache=cache, **FAST)
    assert PartialState().device == torch.device("meta"), "transformers was to take another device"
    assert set(elsewhere) == {CPU}
    assert backbone.device == CPU
    assert evaluate(adapter, backbone=backbone)["accuracy"] == adapter.metrics["validation"]["accuracy"]


def test_the_others_device_changes_nothing(backbone, task, request):
    plain = tune(backbone, task=task, method=LORA, **FAST)
    request.getfixturevalue("elsewhere")
    other = tune(backbone, task=task, method=LORA, **FAST)
    assert all(torch.equal(other.tensors[name], tensor) for name, tensor in plain.tensors.items())


def test_together(backbone, task, elsewhere, unmoved):
    tune_many(backbone, {name: {"task": task, "method": LORA} for name in "ab"}, **{**FAST, "num_train_epochs": 1})
    assert set(elsewhere) == {CPU}


def test_resumed(backbone, task, elsewhere, unmoved, tmp_path):
    """The optimizer's state goes where the parameters are."""
    saved = {**FAST, "eval_strategy": "steps", "eval_steps": 5, "max_steps": 12}
    tune(backbone, task=task, method=LORA, output=tmp_path / "whole", **saved)
    with killed(at_step(8)):
        tune(backbone, task=task, method=LORA, output=tmp_path / "a", **saved)
    tune(backbone, task=task, method=LORA, output=tmp_path / "a", resume=True, **saved)
    assert contents(tmp_path / "a") == contents(tmp_path / "whole")


@pytest.mark.parametrize("device", ["cuda:1", "cpu", "mps"])
def test_the_arguments_are_for_the_backbones_device(device, tmp_path, monkeypatch):
    current = []
    monkeypatch.setattr(torch.cuda, "device", lambda given: current.append(given) or nullcontext())
    made = TrainingSettings().resolved(LORA, make_backbone("bert"), "classification")
    make = partial(made.arguments, tmp_path, metric="accuracy", greater_is_better=True)
    arguments = make(device=torch.device(device))
    assert (arguments.device, arguments.place_model_on_device) == (torch.device(device), False)
    assert arguments.use_cpu == (device == "cpu")
    assert arguments.n_gpu <= 1
    # transformers makes the first GPU the current one; it is put back.
    assert current == ([torch.device("cuda:1")] if device == "cuda:1" else [])


def test_a_gpu_is_the_current_one_inside(monkeypatch):
    entered = []
    monkeypatch.setattr(torch.cuda, "device", lambda given: entered.append(given) or nullcontext())
    with on(torch.device("cuda:1")), on(CPU):
        assert entered == [torch.device("cuda:1")]
