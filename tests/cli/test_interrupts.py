"""An interrupted command says what is kept and how to go on, and what it says to type does that."""

import os
import shlex
import signal
import subprocess
import sys
import time

import pytest
import yaml
from training.workbench import FAST, contents, names_in

from graftwork.training.trainer import AdapterTrainer, last_checkpoint

SHORT = {**FAST, "eval_strategy": "steps", "eval_steps": 2, "max_steps": 6}


@pytest.fixture
def recipe(backbone_folder, data, tmp_path, monkeypatch):
    """A recipe of six steps, saved every two, in the current folder."""
    monkeypatch.chdir(tmp_path)
    values = {
        "backbone": str(backbone_folder),
        "dtype": "float32",
        "task": {"name": "classes", "text": "text", "data": str(data["classes"])},
        "method": {"name": "lora", "rank": 4},
        "train": SHORT,
    }
    (tmp_path / "a recipe.yaml").write_text(yaml.safe_dump(values))
    joint = {**values, "adapters": {n: {"task": values["task"], "method": "lora"} for n in ("one", "two")}}
    del joint["task"], joint["method"]
    (tmp_path / "joint.yaml").write_text(yaml.safe_dump(joint))
    return "a recipe.yaml"


@pytest.fixture
def interrupted(graftwork, monkeypatch):
    """Run a command that is interrupted by a signal in the middle of a step."""
    plain = AdapterTrainer.training_step

    def interrupted(*arguments, step, number=signal.SIGINT):
        sent = []

        def training_step(self, *args, **kwargs):
            if self.state.global_step == step and not sent:
                sent.append(number)
                os.kill(os.getpid(), number)
            return plain(self, *args, **kwargs)

        with monkeypatch.context() as patch:
            patch.setattr(AdapterTrainer, "training_step", training_step)
            return graftwork(*arguments)

    return interrupted


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_what_is_said_goes_on(graftwork, interrupted, recipe, tmp_path, number, status):
    assert graftwork("tune", recipe, "--output", "whole", "--quiet").status == 0
    before = signal.getsignal(signal.SIGTERM)
    stopped = interrupted("tune", recipe, "--output", "a", "--train.seed=0", "--quiet", step=5, number=number)
    assert signal.getsignal(signal.SIGTERM) == before
    assert (stopped.status, stopped.out) == (status, "")
    said, command = stopped.err.splitlines()
    assert said == "interrupted; the run is kept up to step 4. To go on:"
    assert command == "  graftwork tune 'a recipe.yaml' --output a --train.seed=0 --quiet --resume"
    again = interrupted(*shlex.split(command)[1:], step=5)
    assert again.err.splitlines()[1] == command, "--resume is said once"
    assert graftwork(*shlex.split(command)[1:]).status == 0
    assert contents(tmp_path / "a") == contents(tmp_path / "whole")


def test_before_the_first_checkpoint(interrupted, recipe, tmp_path):
    before = names_in(tmp_path)
    stopped = interrupted("tune", recipe, "--output", "a", "--quiet", step=1)
    assert (stopped.status, stopped.out) == (130, "")
    assert stopped.err == "interrupted before the first checkpoint: nothing is kept\n"
    assert names_in(tmp_path) == before


def test_a_run_that_replaces_another_goes_on_to_do_so(graftwork, interrupted, recipe):
    graftwork("tune", recipe, "--output", "a", "--train.seed=1", "--quiet")
    stopped = interrupted("tune", recipe, "--output", "a", "--overwrite", "--quiet", step=5)
    command = stopped.err.splitlines()[1]
    assert command.endswith("--overwrite --quiet --resume")
    assert graftwork(*shlex.split(command)[1:]).status == 0


def test_several_at_once(graftwork, interrupted, recipe, tmp_path):
    stopped = interrupted("tune-many", "joint.yaml", "--output", "out", "--overwrite", "--quiet", step=5)
    assert stopped.status == 130
    said, command = stopped.err.splitlines()
    assert said == "interrupted; kept: one, two. To go on:"
    assert command == "  graftwork tune-many joint.yaml --output out --quiet --resume"
    assert graftwork(*shlex.split(command)[1:]).status == 0
    assert names_in(tmp_path / "out") == ["one", "two"]
    stopped = interrupted("tune-many", "joint.yaml", "--output", "other", "--quiet", step=1)
    assert stopped.err == "interrupted; nothing is kept, as no checkpoint had been saved\n"


def test_other_commands_say_that_they_were_interrupted(graftwork, adapters, monkeypatch):
    def interrupt(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr("graftwork.AdaptedModel.predict", interrupt)
    stopped = graftwork("predict", adapters / "classes", "good")
    assert (stopped.status, stopped.out, stopped.err) == (130, "", "interrupted\n")


def test_a_process_that_is_interrupted(recipe, tmp_path):
    command = ["tune", recipe, "--output", "a", "--train.max_steps", "2000", "--quiet"]
    process = subprocess.Popen([sys.executable, "-m", "graftwork", *command], stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 120
    while last_checkpoint(tmp_path / ".a.tuning") is None:
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "--train.max_steps 2000 --quiet --resume\n" in said
    assert "Traceback" not in said
    assert last_checkpoint(tmp_path / ".a.tuning") is not None
