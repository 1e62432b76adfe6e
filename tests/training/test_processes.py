"""Several processes with one output, processes that are killed at any moment, and processes that draw their hashes
otherwise: one adapter comes of each, to the byte."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors.torch import load_file
from training.workbench import FAST

from graftwork.settings.yamlfile import dump_yaml


@pytest.fixture
def processes(backbone_folder, data, tmp_path):
    """Run one of the functions of processes.py in a process of its own."""
    recipe = {
        "backbone": str(backbone_folder),
        "dtype": "float32",
        "task": {"name": "classes", "text": "text", "data": str(data["classes"])},
        "method": {"name": "lora", "rank": 4},
        "train": {**FAST, "max_steps": 12, "eval_strategy": "steps", "eval_steps": 4},
    }

    def processes(what, folder="here", **environment):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "recipe.yml").write_text(dump_yaml(recipe))
        ran = subprocess.run(
            [sys.executable, str(Path(__file__).with_name("processes.py")), what, "recipe.yml"],
            cwd=tmp_path / folder,
            env={**os.environ, **environment},
            capture_output=True,
            text=True,
            check=False,
        )
        assert ran.returncode == 0, ran.stderr
        return json.loads(ran.stdout.splitlines()[-1])

    return processes


def test_of_two_runs_to_one_output_one_is_told_of_the_other(processes):
    for number, pair in enumerate(processes("pairs")):
        assert pair["statuses"] == [0, 2]
        assert pair["by"] in ("1", "2"), "the adapter is all of one run"
        assert pair["names"] == [f"a-{number}"]
        [said] = pair["said"]
        # On a busy machine the other one may have ended by the time that this one comes.
        assert ("is in progress: process" in said and ", since 20" in said) or "exists already" in said


def test_a_run_in_progress_is_left_alone_by_all_others(processes):
    found = processes("live")
    assert [other[-3:] for other in found["others"]] == [[2, True, True]] * 5, found["others"]
    assert found["alive"], "it went on all the while"
    assert (found["ended"], found["as alone"]) == (0, True)


def test_kills_leave_the_old_adapter_or_the_new_one(processes):
    found = processes("kills")
    assert found.keys() == {"killed", "strange", "resumed"}, found
    assert found["strange"] == 0
    assert found["killed"] > 3
    assert found["resumed"] > 3


def test_two_processes_tune_one_adapter_as_one_does(processes, tmp_path):
    found = processes("together")
    here = tmp_path / "here"
    for name in ("odd", "drawn"):
        assert found[name]["statuses"] == [0, 0, 0], found[name]["said"]
        one, first, second = found[name]["said"]
        assert "classes" not in second, "one of them reports"
        scores = [json.loads(said.splitlines()[-1])["metrics"]["validation"] for said in (one, first)]
        assert scores[0] == pytest.approx(scores[1], rel=1e-4)
        alone, shared = (load_file(here / f"{who}-{name}" / "adapter.safetensors") for who in ("one", "two"))
        assert alone.keys() == shared.keys()
        for key, tensor in alone.items():
            # A sum of two sums is rounded otherwise, and Adam divides by what may be small.
            assert (tensor - shared[key]).abs().max() <= 1e-4 * tensor.abs().max(), key
        logs = [(here / f"{who}-{name}" / "log.jsonl").read_text().splitlines() for who in ("one", "two")]
        for left, right in zip(*(map(json.loads, log) for log in logs), strict=True):
            assert left == pytest.approx(right, rel=1e-3)
        files = [{path.name for path in (here / f"{who}-{name}").iterdir()} for who in ("one", "two")]
        assert files[0] == files[1]
        assert (here / f"one-{name}" / "recipe.yaml").read_text() == (here / f"two-{name}" / "recipe.yaml").read_text()
    assert (found["cut"]["statuses"], found["cut"]["same"]) == ([0, 0], True), found["cut"]["said"]
    assert found["refused"]["statuses"] == [2, 2]
    assert "--train.prefix_cache" in found["refused"]["said"]
    assert found["names"] == ["cut", "one-drawn", "one-odd", "recipe.yml", "two-drawn", "two-odd"]


def test_methods_are_the_same_whatever_hashes_are(processes):
    one, two = (processes("methods", seed, PYTHONHASHSEED=seed) for seed in ("1", "2"))
    assert one == two
    assert None not in one.values()
    assert len(set(one.values())) == len(one) == 4
