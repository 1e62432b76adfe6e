"""Runs of six steps, saved every two, with which the tests of outputs work: many are begun, and ended anywhere."""

import pytest
from training.workbench import FAST, contents

from graftwork import LoRA, Task, tune

LORA = LoRA(rank=4)
SHORT = {**FAST, "eval_strategy": "steps", "eval_steps": 2, "max_steps": 6}


@pytest.fixture(scope="module")
def task(data):
    return Task(name="classes", text="text", data=str(data["classes"]))


@pytest.fixture(scope="module")
def run(backbone, task):
    """Tune as all tests here do: 6 steps, saved every 2."""

    def run(output, *, backbone=backbone, resume=False, overwrite=False, **changes):
        settings = {**SHORT, **changes}
        return tune(backbone, task=task, method=LORA, output=output, resume=resume, overwrite=overwrite, **settings)

    return run


@pytest.fixture(scope="module")
def whole(run, tmp_path_factory):
    """By seed, what an uninterrupted run gives."""
    folder = tmp_path_factory.mktemp("whole")
    for seed in (0, 5):
        run(folder / f"{seed}", seed=seed)
    return {seed: contents(folder / f"{seed}") for seed in (0, 5)}
