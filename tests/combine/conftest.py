"""Fixtures of the tests of what is made of several adapters: the tiny backbone, and adapters that teach."""

import pytest
from cli.conftest import graftwork
from training.workbench import FAST, backbone, backbone_folder, data, one_thread, other_backbone_folder

from graftwork import LoRA, Task, tune

__all__ = ["backbone", "backbone_folder", "data", "graftwork", "one_thread", "other_backbone_folder"]


@pytest.fixture(scope="module")
def classes(data):
    return Task(name="classes", text="text", data=str(data["classes"]))


@pytest.fixture(scope="module")
def teacher(backbone, classes, tmp_path_factory):
    """An adapter that knows the task, in its folder."""
    folder = tmp_path_factory.mktemp("teachers") / "good"
    tune(backbone, task=classes, method=LoRA(rank=4), output=folder, **{**FAST, "num_train_epochs": 4})
    return folder
