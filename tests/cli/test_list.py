"""`graftwork list` as a user types it."""

import json
import shutil

import pytest

from graftwork import Adapter


def test_adapters_are_listed_one_a_line(graftwork, adapters):
    ran = graftwork("list", adapters)
    assert (ran.status, ran.err) == (0, "")
    header, *lines = ran.out.splitlines()
    assert header.split() == ["adapter", "task", "method", "parameters", "weights", "validation", "backbone"]
    assert [line.split()[0] for line in lines] == ["classes", "numbers", "pairs"]
    found = json.loads(graftwork("list", adapters, "--json").out)
    for line, row in zip(lines, found, strict=True):
        adapter = Adapter.load(adapters / row["adapter"])
        metric = "r2" if row["adapter"] == "numbers" else "accuracy"
        assert f"{adapter.num_parameters:,}" in line
        assert f"{metric} {adapter.metrics['validation'][metric]:.4f}" in line
        assert line.endswith(adapter.backbone.name)
        assert row["metrics"] == adapter.metrics
        assert row["bytes"] == json.loads(graftwork("inspect", adapters / row["adapter"], "--json").out)["bytes"]


@pytest.fixture
def copied(adapters, tmp_path):
    return shutil.copytree(adapters, tmp_path / "adapters")


def test_an_adapter_of_a_training_loop_of_ones_own_has_no_score(graftwork, copied):
    from dataclasses import replace

    replace(Adapter.load(copied / "classes"), recipe={}, metrics={}).save(copied / "own")
    line = next(line for line in graftwork("list", copied).out.splitlines() if line.startswith("own"))
    assert " none " in line


def test_other_folders_and_runs_that_go_on_are_no_adapters(graftwork, copied):
    (copied / "notes").mkdir()
    (copied / "file.txt").touch()
    (copied / "numbers").rename(copied / ".numbers.tuning")
    assert [row["adapter"] for row in json.loads(graftwork("list", copied, "--json").out)] == ["classes", "pairs"]


def test_damaged_adapters_are_named_after_the_others(graftwork, copied):
    (copied / "pairs" / "adapter.safetensors").unlink()
    ran = graftwork("list", copied)
    assert ran.status == 2
    assert [line.split()[0] for line in ran.out.splitlines()[1:]] == ["classes", "numbers"]
    assert "1 of 3 adapters" in ran.err
    assert str(copied / "pairs") in ran.err


@pytest.mark.parametrize(
    ("place", "problem"),
    [
        ("absent", "does not exist"),
        ("file.txt", "is a file"),
        ("classes", "is itself an adapter"),
        ("empty", "has no adapters in it"),
    ],
)
def test_what_is_no_folder_of_adapters_is_refused(graftwork, copied, place, problem):
    (copied / "file.txt").touch()
    (copied / "empty").mkdir()
    ran = graftwork("list", copied / place)
    assert (ran.status, ran.out) == (2, "")
    assert problem in ran.err
    assert "expected: a folder with one folder per adapter in it" in ran.err
