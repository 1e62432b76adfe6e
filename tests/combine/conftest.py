"""Fixtures of the tests of what comes of several adapters: a tiny backbone's folder, data, and adapters to combine."""

import pytest
from cli.conftest import graftwork
from training.workbench import FAST, backbone, backbone_folder, data, one_thread, other_backbone_folder

from graftwork import Pfeiffer, Task, tune

__all__ = ["backbone", "backbone_folder", "data", "graftwork", "one_thread", "other_backbone_folder"]


@pytest.fixture(scope="session")
def task(data):
    return Task(name="classes", text="text", data=str(data["classes"]))


@pytest.fixture(scope="module")
def parts(backbone, data, tmp_path_factory):
    """Folders of two bottleneck adapters of different sizes, for two tasks."""
    folder = tmp_path_factory.mktemp("parts")
    tasks = {
        "classes": Task(name="classes", text="text", data=str(data["classes"])),
        "numbers": Task(name="numbers", text="text", kind="regression", data=str(data["numbers"])),
    }
    for size, (name, own) in enumerate(tasks.items(), start=3):
        tune(backbone, task=own, method=Pfeiffer(bottleneck=size), output=folder / name, **{**FAST, "max_steps": 3})
    return folder
