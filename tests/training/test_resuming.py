"""A run that is killed at any moment resumes to the same bytes, and nothing is resumed or discarded by mistake."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml
from training.workbench import FAST, at_step, contents, killed, names_in
from transformers.utils.logging import warning_once

from graftwork import LoRA, Task, tune
from graftwork.errors import OutputError, RecipeError
from graftwork.training import Recipe, tune_recipe
from graftwork.training.trainer import STATE, AdapterTrainer, last_checkpoint

LORA = LoRA(rank=4)


@pytest.fixture(scope="module")
def run(backbone, data):
    """Tune as all tests here do; 14 steps an epoch, saved every 5."""
    task = Task(name="classes", text="text", data=str(data["classes"]))
    usual = {**FAST, "eval_strategy": "steps", "eval_steps": 5, "max_steps": 16}

    def run(output, *, resume=False, overwrite=False, **changes):
        settings = {**usual, **changes}
        return tune(backbone, task=task, method=LORA, output=output, resume=resume, overwrite=overwrite, **settings)

    return run


@pytest.fixture(scope="module")
def whole(run, tmp_path_factory):
    """What an uninterrupted run gives."""
    folder = tmp_path_factory.mktemp("whole") / "a"
    run(folder)
    return contents(folder)


@pytest.fixture
def kill(run, tmp_path):
    """Kill a run at a step; gives its working folder."""

    def kill(step, *, resume=False, **changes):
        with killed(at_step(step)):
            run(tmp_path / "a", resume=resume, **changes)
        assert names_in(tmp_path) == [".a.tuning"], "there is no output before the end"
        return tmp_path / ".a.tuning"

    return kill


def checkpoints(working):
    return sorted(int(path.name.partition("-")[2]) for path in working.glob("checkpoint-*"))


# Killed and resumed


@pytest.mark.parametrize("step", [3, 13, 14, 15, 16])
def test_killed_run_resumes_to_the_same_bytes(run, kill, whole, tmp_path, step):
    # 3: before any checkpoint; 13: mid-epoch; 14: at an epoch's end; 15: as a checkpoint is due; 16: at the end.
    kill(step)
    run(tmp_path / "a", resume=True)
    assert contents(tmp_path / "a") == whole
    assert names_in(tmp_path) == ["a"]


def test_killed_twice(run, kill, whole, tmp_path):
    assert 5 in checkpoints(kill(8))
    kill(13, resume=True)
    run(tmp_path / "a", resume=True)
    assert contents(tmp_path / "a") == whole


def leave_out_state(folder):
    (folder / STATE).unlink()


def cut_state(folder):
    state = (folder / STATE).read_text()
    (folder / STATE).write_text(state[: len(state) // 2])


def leave_only_half_of_the_tensors(folder):
    for file in folder.iterdir():
        if file.name != "adapter.safetensors":
            file.unlink()
    (folder / "adapter.safetensors").write_bytes(b"\0" * 100)


@pytest.mark.parametrize("damage", [leave_out_state, cut_state, leave_only_half_of_the_tensors])
def test_killed_while_saving(run, kill, whole, tmp_path, damage):
    working = kill(13)
    newest = working / f"checkpoint-{checkpoints(working)[-1]}"
    half = working / "checkpoint-15"
    shutil.copytree(newest, half)
    damage(half)
    assert last_checkpoint(working) == newest
    run(tmp_path / "a", resume=True)
    assert contents(tmp_path / "a") == whole


def test_killed_while_saving_the_first_checkpoint(run, kill, whole, tmp_path):
    working = kill(8)
    cut_state(working / "checkpoint-5")
    assert last_checkpoint(working) is None
    run(tmp_path / "a", resume=True)
    assert contents(tmp_path / "a") == whole


def test_killed_while_writing_the_recipe(run, whole, tmp_path):
    def install(patch, death):
        def write_half(path, text, **kwargs):
            path.write_bytes(text.encode()[: len(text) // 2])
            death.strike(path.parent)

        patch.setattr(Path, "write_text", write_half)

    with killed(install):
        run(tmp_path / "a")
    run(tmp_path / "a", resume=True)
    assert contents(tmp_path / "a") == whole


@pytest.mark.parametrize("changes", [{}, {"max_steps": 100, "early_stopping_patience": 2}], ids=["steps", "stopped"])
def test_killed_after_the_last_checkpoint(run, tmp_path, changes):
    def install(patch, death):
        patch.setattr("graftwork.training.tuning.json_lines", lambda rows: death.strike(tmp_path / ".a.tuning"))

    run(tmp_path / "whole", **changes)
    with killed(install):
        run(tmp_path / "a", **changes)
    run(tmp_path / "a", resume=True, **changes)
    assert contents(tmp_path / "a") == contents(tmp_path / "whole")


def test_early_stopping_counts_on_after_a_resume(run, kill, tmp_path_factory, tmp_path):
    # Scored every 5 steps; nothing beats the perfect score, so the run stops two scorings after it.
    stopping = {"max_steps": 100, "early_stopping_patience": 2, "learning_rate": 0.02}
    folder = tmp_path_factory.mktemp("stopped") / "a"
    run(folder, **stopping)
    scores = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    last = max(row["step"] for row in scores)
    assert last < 100
    kill(last - 2, **stopping)
    run(tmp_path / "a", resume=True, **stopping)
    assert contents(tmp_path / "a") == contents(folder)


def test_resumed_from_another_folder(run, tmp_path, monkeypatch):
    # Constant and high, the rate makes the first checkpoint the best one; its path is relative to where the run began.
    settings = {"learning_rate": 0.02, "lr_scheduler_type": "constant", "eval_steps": 3, "max_steps": 4}
    run(tmp_path / "whole", **settings)
    (tmp_path / "sub").mkdir()
    monkeypatch.chdir(tmp_path)
    with killed(at_step(4)):
        run("a", **settings)
    monkeypatch.chdir(tmp_path / "sub")
    run("../a", resume=True, **settings)
    assert contents(tmp_path / "a") == contents(tmp_path / "whole")


# Killed for good: SIGKILL, in the middle, at any moment


@dataclass
class Outcome:
    files: dict[str, bytes]
    expected: dict[str, bytes]
    resumed_from: str
    errors: str


@pytest.fixture(scope="module")
def outcome(backbone_folder, data, tmp_path_factory, backbone):
    folder = tmp_path_factory.mktemp("killed")
    recipe = {
        "backbone": str(backbone_folder),
        "dtype": "float32",
        "task": {"name": "classes", "text": "text", "data": str(data["classes"])},
        "method": {"name": "lora", "rank": 4},
        "train": {**FAST, "num_train_epochs": 5, "eval_strategy": "steps", "eval_steps": 9},
    }
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    tune_recipe(Recipe.parse(recipe), output=folder / "whole", backbone=backbone)
    command = [sys.executable, "-m", "graftwork", "tune", "recipe.yaml", "--output", "a", "--quiet"]
    working = folder / ".a.tuning"
    with (folder / "stderr").open("wb") as errors:
        process = subprocess.Popen(command, cwd=folder, stdout=subprocess.DEVNULL, stderr=errors)
    deadline = time.monotonic() + 600
    while max(checkpoints(working), default=0) < 36:
        assert process.poll() is None, (folder / "stderr").read_text()
        assert time.monotonic() < deadline
        time.sleep(0.002)
    time.sleep(random.uniform(0.0, 0.1))
    os.kill(process.pid, signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL, "the run must not have ended before it was killed"
    assert not (folder / "a").exists()
    resumed_from = last_checkpoint(working)
    ended = subprocess.run([*command, "--resume"], cwd=folder, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr
    errors = (folder / "stderr").read_text() + ended.stderr
    return Outcome(contents(folder / "a"), contents(folder / "whole"), resumed_from.name, errors)


def test_killed_process_resumes_to_the_same_bytes(outcome):
    # Saved every 9 steps with 14 an epoch: in the middle of one.
    assert int(outcome.resumed_from.partition("-")[2]) % 14
    assert outcome.files == outcome.expected


def test_a_quiet_process_says_nothing(outcome):
    [line] = outcome.errors.splitlines()
    assert "validation has 12 rows" in line


def test_quick_saves_say_nothing(run, tmp_path, caplog):
    warning_once.cache_clear()
    run(tmp_path / "a", max_steps=4, eval_steps=1, baseline="off")
    assert [record.message[:31] for record in caplog.records] == ["classes: validation has 12 rows"]


# What is refused


def test_resume_with_another_recipe(run, kill, tmp_path):
    before = contents(kill(8))
    with pytest.raises(RecipeError) as error:
        run(tmp_path / "a", resume=True, seed=1, learning_rate=0.5)
    text = str(error.value)
    assert "train.seed was 0, is 1" in text
    assert "train.learning_rate was 0.01, is 0.5" in text
    assert "--overwrite" in text
    assert "max_steps" not in text
    assert contents(tmp_path / ".a.tuning") == before


def test_resume_without_an_interrupted_run(run, tmp_path):
    with pytest.raises(OutputError, match=r"no interrupted run to .*a'(.|\n)*change: leave out --resume"):
        run(tmp_path / "a", resume=True)
    assert names_in(tmp_path) == []


def test_interrupted_run_is_not_lost_by_a_new_one(run, kill, tmp_path):
    before = contents(kill(8))
    with pytest.raises(OutputError, match=r"interrupted run(.|\n)*--resume(.|\n)*--overwrite"):
        run(tmp_path / "a")
    assert contents(tmp_path / ".a.tuning") == before


def test_overwrite_discards_an_interrupted_run(run, kill, whole, tmp_path):
    kill(8, seed=5)
    run(tmp_path / "a", overwrite=True)
    assert contents(tmp_path / "a") == whole
    assert names_in(tmp_path) == ["a"]


def test_existing_output_is_kept_until_the_new_one_is_whole(run, tmp_path):
    run(tmp_path / "a", max_steps=1)
    before = contents(tmp_path / "a")
    with pytest.raises(OutputError, match=r"exists already(.|\n)*--overwrite"):
        run(tmp_path / "a", max_steps=2)
    with killed(at_step(1)):
        run(tmp_path / "a", max_steps=2, overwrite=True)
    assert contents(tmp_path / "a") == before
    run(tmp_path / "a", max_steps=2, overwrite=True)
    assert contents(tmp_path / "a") != before


def test_failure_before_the_first_checkpoint_leaves_nothing(run, tmp_path, monkeypatch):
    def fail(*args, **kwargs):
        raise RuntimeError("in the middle")

    monkeypatch.setattr(AdapterTrainer, "training_step", fail)
    with pytest.raises(RuntimeError, match="in the middle"):
        run(tmp_path / "a")
    assert names_in(tmp_path) == []


def test_interrupted_by_the_keyboard(run, whole, tmp_path, monkeypatch):
    plain = AdapterTrainer.training_step

    def interrupt(self, *args, **kwargs):
        if self.state.global_step == 12:
            raise KeyboardInterrupt
        return plain(self, *args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(AdapterTrainer, "training_step", interrupt)
        with pytest.raises(KeyboardInterrupt):
            run(tmp_path / "a")
    run(tmp_path / "a", resume=True)
    assert contents(tmp_path / "a") == whole
