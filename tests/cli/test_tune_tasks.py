"""`graftwork tune` with several tasks, as a user types it."""

import json

import pytest
import yaml
from training.workbench import contents, make_rows, names_in, write_csv

from graftwork import Task
from graftwork.training.multi_task_folder import read_tasks_file


@pytest.fixture
def files(data, tmp_path):
    """Task files of two tasks."""
    few = write_csv(tmp_path / "few.csv", make_rows("pairs", 40, seed=3))
    tasks = [
        Task(name="words", text="text", data=str(data["classes"])),
        Task(name="pairs", text="first", text_pair="second", data=str(few)),
    ]
    found = []
    for task in tasks:
        found.append(tmp_path / f"{task.name}.yaml")
        found[-1].write_text(yaml.safe_dump(task.model_dump(mode="json", exclude_none=True)))
    return found


def test_tasks_share_an_adapter(graftwork, backbone_folder, files, tmp_path):
    usual = ["--backbone", backbone_folder, "--method", "lora", "--train.max_steps", "3", "--train.baseline", "off"]
    named = [part for file in files for part in ("--task", file)]
    ran = graftwork(
        *("tune", *named, *usual, "--sampling-temperature", "1", "--task-weight", "pairs=2"),
        *("--task.validation_fraction", "0.2", "--output", tmp_path / "out", "--quiet"),
    )
    assert ran.status == 0, ran.err
    assert names_in(tmp_path / "out") == ["log.jsonl", "pairs", "recipe.yaml", "tasks.json", "words"]
    about = read_tasks_file(tmp_path / "out")
    assert about.tasks["pairs"].weight == 2
    assert about.sampling_temperature == 1
    header, *rows, of_method, last = ran.out.splitlines()
    assert header.split() == ["task", "share", "own", "validation", "test"]
    assert [row.split()[0] for row in rows] == ["words", "pairs"]
    assert of_method.startswith(f"method lora: {about.shared_parameters:,} trained parameters shared")
    assert last.startswith(f"mean score {about.score:.4f}; saved in ")
    assert graftwork("evaluate", tmp_path / "out" / "pairs").status == 0
    again = graftwork("tune", tmp_path / "out" / "recipe.yaml", "--output", tmp_path / "b", "--quiet", "--json")
    assert again.status == 0, again.err
    assert list(json.loads(again.out)["tasks"]) == ["words", "pairs"]
    assert contents(tmp_path / "b") == contents(tmp_path / "out")
    seeded = graftwork(
        *("tune", tmp_path / "out" / "recipe.yaml", "--train.seed", "1", "--task.validation_fraction", "0.3"),
        *("--output", tmp_path / "c", "--quiet", "--json"),
    )
    assert seeded.status == 0, seeded.err
    assert json.loads(seeded.out)["tasks"]["words"]["rows"] < about.tasks["words"].rows


def test_what_is_refused(graftwork, backbone_folder, files, tmp_path):
    named = [part for file in files for part in ("--task", file)]
    for wrong, said in (
        (["--task", files[0], "--task", files[0]], "two tasks named 'words'"),
        ([*named, "--task-weight", "pairs"], "expected: NAME=NUMBER"),
        ([*named, "--task-weight", "pairs=2", "--task-weight", "pairs=3"], "given twice"),
        ([*named, "--task-weight", "others=2"], "change: --task-weight"),
        ([*named, "--task-weight", "pairs=no"], "change: --task-weight"),
        (["--task", files[0], "--task-weight", "words=2"], "would do nothing with one task"),
        ([*named, "--sampling-temperature", "-1"], "change: --sampling-temperature"),
        ([*named, "--train.prefix_cache", "on"], "change: --train.prefix_cache"),
        ([*named, "--text", "no"], "column 'no'"),
    ):
        ran = graftwork("tune", *wrong, "--backbone", backbone_folder, "--output", tmp_path / "out", "--quiet")
        assert ran.status == 2, wrong
        assert said in ran.err
    assert not (tmp_path / "out").exists()
