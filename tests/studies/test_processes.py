"""Studies that are killed, and studies that several processes work on."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[2]


@pytest.fixture
def ask(values, tmp_path):
    """A function that has `processes.py` do something with a study of one method; gives what it says."""

    def ask(what, **changes):
        tasks = {"words": values()["tasks"]["words"]}
        study = values(**{"tasks": tasks, "methods": {"lora": {"rank": 1}}, **changes})
        (tmp_path / "study.yaml").write_text(yaml.safe_dump(study, sort_keys=False))
        paths = os.pathsep.join([str(ROOT / "src"), str(ROOT / "tests")])
        command = [sys.executable, str(Path(__file__).with_name("processes.py")), what, "study.yaml"]
        ran = subprocess.run(
            command, cwd=tmp_path, env={**os.environ, "PYTHONPATH": paths}, capture_output=True, text=True, timeout=300
        )
        assert ran.returncode == 0, ran.stderr
        return json.loads(ran.stdout.splitlines()[-1])

    return ask


def test_a_study_that_is_killed_twice_ends_with_the_same_tables(ask):
    rate = {"low": 0.001, "high": 0.03, "log": True}
    found = ask("kills", search={"optuna": {"learning_rate": rate}, "trials": 3, "round": 2}, seeds=2)
    assert found["statuses"] == [0, 0], found["said"]
    assert found["killed"] >= 1
    assert found["same"]
    assert (found["runs"], found["left"]) == (4, [])


def test_processes_that_work_on_one_study_never_do_a_run_twice(ask):
    found = ask("both", search={"grid": {"learning_rate": [0.001, 0.003, 0.01]}}, seeds=3)
    assert found["statuses"] == [0, 0, -9]
    assert (found["twice"], found["shared"], found["runs"]) == (0, True, 5)
    assert found["tables"]["results.csv"].count("\n") == 4
