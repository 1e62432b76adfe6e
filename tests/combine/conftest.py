"""Fixtures of the tests of what comes of several adapters: a tiny backbone's folder, data, and adapters to combine."""

import pytest
from cli.conftest import graftwork
from training.workbench import (
    FAST,
    backbone,
    backbone_folder,
    data,
    make_rows,
    one_thread,
    other_backbone_folder,
    write_csv,
)

from graftwork import LoRA, Pfeiffer, Task, tune

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


@pytest.fixture(scope="module")
def texts(tmp_path_factory):
    """Texts without labels: other ones than the teachers were tuned on."""
    rows = [{"text": row["text"]} for row in make_rows("classes", 80, seed=7)]
    return write_csv(tmp_path_factory.mktemp("texts") / "texts.csv", rows)


@pytest.fixture(scope="module")
def parts(backbone, classes, data, tmp_path_factory):
    """Folders of two bottleneck adapters of different sizes, for two tasks."""
    folder = tmp_path_factory.mktemp("parts")
    numbers = Task(name="numbers", text="text", kind="regression", data=str(data["numbers"]))
    for size, own in enumerate((classes, numbers), start=3):
        tune(backbone, task=own, method=Pfeiffer(bottleneck=size), output=folder / own.name, **{**FAST, "max_steps": 3})
    return folder
