"""Studies that are killed, and studies that several processes work on."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[2]


RATE = {"low": 0.001, "high": 0.03, "log": True}
STUDIES = {
    "kills": {"search": {"optuna": {"learning_rate": RATE}, "trials": 3, "round": 2}, "seeds": 2},
    "both": {"search": {"grid": {"learning_rate": [0.001, 0.003, 0.01]}}, "seeds": 3},
}


@pytest.fixture(scope="module")
def found(values, tmp_path_factory):
    """What `processes.py` says of each study, all of one method on one task."""
    folder = tmp_path_factory.mktemp("processes")
    for name, changes in STUDIES.items():
        tasks = {"words": values()["tasks"]["words"]}
        study = values(**{"name": "study", "tasks": tasks, "methods": {"lora": {"rank": 1}}, **changes})
        (folder / f"{name}.yaml").write_text(yaml.safe_dump(study, sort_keys=False))
    paths = os.pathsep.join([str(ROOT / "src"), str(ROOT / "tests")])
    command = [sys.executable, str(Path(__file__).with_name("processes.py"))]
    ran = subprocess.run(
        command, cwd=folder, env={**os.environ, "PYTHONPATH": paths}, capture_output=True, text=True, timeout=300
    )
    assert ran.returncode == 0, ran.stderr
    return json.loads(ran.stdout.splitlines()[-1])


def test_a_study_that_is_killed_twice_ends_with_the_same_tables(found):
    kills = found["kills"]
    assert kills["statuses"] == [0, 0], kills["said"]
    assert kills["killed"] >= 1
    assert kills["same"]
    assert (kills["runs"], kills["left"]) == (4, [])


def test_processes_that_work_on_one_study_never_do_a_run_twice(found):
    both = found["both"]
    third, *others = both["statuses"]
    assert others == [0, 0]
    assert third in (-9, 0)
    assert (both["twice"], both["shared"], both["runs"]) == (0, True, 5)
    assert both["tables"]["results.csv"].count("\n") == 4
