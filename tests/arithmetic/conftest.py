"""Fixtures of the tests of arithmetic: the program in this process, a tiny backbone's folder, data, and adapters."""

import pytest
from cli.conftest import graftwork
from training.workbench import FAST, backbone, backbone_folder, data, one_thread, other_backbone_folder

from graftwork import FullFineTuning, LoRA, Task, tune

__all__ = ["backbone", "backbone_folder", "data", "graftwork", "one_thread", "other_backbone_folder"]


@pytest.fixture(scope="module")
def tuned(backbone, data, tmp_path_factory):
    """Folders of fully fine-tuned adapters `a`, `b`, `c`, and of `lora` and `more` of LoRA."""
    folder = tmp_path_factory.mktemp("tuned")
    task = Task(name="classes", text="text", data=str(data["classes"]))
    settings = {**FAST, "num_train_epochs": 1, "head_learning_rate": 0.01}
    for seed, name in enumerate("abc"):
        tune(backbone, task=task, method=FullFineTuning(), output=folder / name, seed=seed, **settings)
    for seed, name in enumerate(("lora", "more")):
        tune(backbone, task=task, method=LoRA(rank=2), output=folder / name, seed=seed, **settings)
    return folder
