"""`graftwork tune-many` as a user types it."""

import json

import pytest
import yaml
from training.workbench import FAST, names_in

from graftwork import Adapter


@pytest.fixture
def joint(backbone_folder, data, tmp_path):
    """A joint recipe of two tasks, one of them under two seeds."""
    file = tmp_path / "joint.yaml"
    numbers = {"name": "numbers", "kind": "regression", "text": "text"}
    values = {
        "backbone": str(backbone_folder),
        "dtype": "float32",
        "train": {**FAST, "max_steps": 3, "baseline": "auto"},
        "adapters": {
            "words": {"task": {"name": "words", "text": "text", "data": str(data["classes"])}, "seeds": [0, 1]},
            "numbers": {"task": numbers, "data": str(data["numbers"]), "method": "lora", "train": {"max_steps": 2}},
        },
    }
    file.write_text(yaml.safe_dump(values, sort_keys=False))
    return file


def test_a_joint_recipe_is_tuned_and_told_of(graftwork, joint, tmp_path):
    ran = graftwork("tune-many", joint, "--output", tmp_path / "out", "--quiet")
    assert (ran.status, ran.err) == (0, "")
    header, *rows, last = ran.out.splitlines()
    assert header.split() == ["adapter", "task", "method", "trained", "validation", "test", "baseline"]
    assert [row.split()[:3] for row in rows] == [
        *(["words-0", "words", "houlsby"], ["words-1", "words", "houlsby"], ["numbers", "numbers", "lora"]),
    ]
    assert ["accuracy" in row for row in rows] == [True, True, False]
    assert last.startswith(f"saved in {tmp_path / 'out'} in ")
    assert names_in(tmp_path / "out") == ["numbers", "words-0", "words-1"]
    assert graftwork("evaluate", tmp_path / "out" / "numbers").status == 0
    again = graftwork("tune-many", joint, "--output", tmp_path / "out", "--quiet")
    assert again.status == 2
    assert "--overwrite" in again.err


def test_resuming_makes_only_what_is_absent(graftwork, joint, tmp_path):
    graftwork("tune-many", joint, "--output", tmp_path / "out", "--quiet")
    kept = Adapter.load(tmp_path / "out" / "words-0")
    (tmp_path / "out" / "numbers").rename(tmp_path / "numbers")
    stamp = (tmp_path / "out" / "words-0").stat().st_ino
    ran = graftwork("tune-many", joint, "--output", tmp_path / "out", "--quiet", "--resume", "--json")
    assert ran.status == 0
    found = json.loads(ran.out)
    assert list(found["adapters"]) == ["words-0", "words-1", "numbers"]
    assert found["adapters"]["words-0"]["metrics"] == {s: dict(m) for s, m in kept.metrics.items()}
    assert found["adapters"]["numbers"]["output"] == str(tmp_path / "out" / "numbers")
    assert (tmp_path / "out" / "words-0").stat().st_ino == stamp


def test_what_each_run_does_is_said(graftwork, joint, tmp_path):
    ran = graftwork("tune-many", joint, "--output", tmp_path / "out")
    assert ran.status == 0
    assert ran.err.startswith("loading backbone ")
    for name, steps in {"words-0": 3, "words-1": 3, "numbers": 2}.items():
        assert f"{name}: {steps} steps: batches of 8; learning rate " in ran.err
        assert f"{name}: step {steps} of {steps}, validation " in ran.err


def test_what_is_wrong_is_said(graftwork, joint, tmp_path):
    joint.write_text(joint.read_text().replace("seeds", "sedes"))
    ran = graftwork("tune-many", joint, "--output", tmp_path / "out")
    assert ran.status == 2
    assert "has an unknown key 'sedes'" in ran.err
    assert not (tmp_path / "out").exists()
