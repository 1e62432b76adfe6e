"""`graftwork tasks` as a user types it, and extra tasks in the other commands."""

import json

import pytest

from graftwork import Adapter
from graftwork.tasks import BUILTIN


def test_every_task_is_listed(graftwork):
    ran = graftwork("tasks")
    assert (ran.status, ran.err) == (0, "")
    header, *lines = ran.out.split("\n\n")[0].splitlines()
    assert header.split() == ["task", "kind", "labels", "metric", "rows", "reads", "source"]
    assert [line.split()[0] for line in lines] == list(BUILTIN)
    line = next(line for line in lines if line.startswith("airline_sentiment"))
    assert line.split() == [
        *("airline_sentiment", "classification", "3", "accuracy", "14,640", "--data", "https://data.world/crowdflower")
    ]
    found = json.loads(graftwork("tasks", "--json").out)
    assert [row["name"] for row in found] == list(BUILTIN)
    assert found[1]["rows"] == {"train": 8551, "validation": 1043}


@pytest.fixture
def tweets(tmp_path):
    rows = [f"{'good film' if i % 2 else 'dull film'} {i},{('Y', 'Yes', 'No', 'NA', '')[i % 5]}\n" for i in range(100)]
    (tmp_path / "1377884570_tweet_global_warming.csv").write_text("tweet,existence\n" + "".join(rows))
    return tmp_path


def test_one_is_shown(graftwork, tweets, backbone_folder):
    ran = graftwork("tasks", "global_warming", "--data", tweets, "--backbone", backbone_folder)
    assert (ran.status, ran.err) == (0, "")
    lines = [line.split() for line in ran.out.splitlines()]
    assert "rows as published  4,225" in ran.out
    assert ["No", "16", "2", "2"] in lines
    assert ["Yes", "32", "4", "4"] in lines
    assert "left out of train: 20 rows with label 'N/A' (5, 10, 15, 20, 25 and 15 more)\n" in ran.out.replace("  ", " ")
    assert "left out of train: 20 rows with nothing in column 'existence'" in ran.out
    assert "tokens: median" in ran.out
    assert len(ran.out.split("examples of train:\n")[1].splitlines()) == 5
    ran = graftwork("tasks", "global_warming", "--data", tweets, "--backbone", backbone_folder, "--json")
    found = json.loads(ran.out)
    assert {name: split["rows"] for name, split in found["splits"].items()} == {"train": 48, "validation": 6, "test": 6}
    assert found["splits"]["test"]["lengths"]["longest"] > 4
    assert found["dropped"]["train"]["label 'N/A'"] == {"rows": 20, "first": list(range(5, 102, 5))}
    assert found["task"]["cleaning"]["spellings"] == {"N": "No", "Y": "Yes", "NA": "N/A"}


def test_a_task_file_and_settings(graftwork, tweets):
    (tweets / "own.yaml").write_text("base: global_warming\ndata: 1377884570_tweet_global_warming.csv\n")
    ran = graftwork("tasks", tweets / "own.yaml", "--task.test_fraction", "0.2", "--json")
    assert {name: split["rows"] for name, split in json.loads(ran.out)["splits"].items()} == {
        "train": 42,
        "validation": 6,
        "test": 12,
    }


@pytest.mark.parametrize(
    ("given", "problem"),
    [
        (["global_warning"], "unknown task 'global_warning'"),
        (["global_warming"], "task global_warming has no data"),
        (["--data", "x.csv"], "no task is given"),
        (["global_warming", "--train.seed", "3"], "train.seed would do nothing"),
        (["global_warming", "--data", "x", "--task.data", "y"], "given both as a flag and as a setting"),
    ],
)
def test_what_is_wrong_is_one_error(graftwork, given, problem):
    ran = graftwork("tasks", *given)
    assert (ran.status, ran.out) == (2, "")
    assert problem in ran.err


def test_tune_and_evaluate_take_the_same_rows(graftwork, tweets, backbone_folder, tmp_path):
    output = tmp_path / "adapter"
    ran = graftwork(
        *("tune", "--task", "global_warming", "--data", tweets, "--backbone", backbone_folder, "--output", output),
        *("--method", "bitfit", "--train.max_steps", "2", "--train.max_length", "16", "--quiet", "--json"),
    )
    assert ran.status == 0, ran.err
    tuned = json.loads(ran.out)
    scores = json.loads(graftwork("evaluate", output, "--split", "test", "--quiet", "--json").out)
    assert scores["accuracy"] == tuned["metrics"]["test"]["accuracy"]
    assert Adapter.load(output).recipe["task"]["cleaning"]["drop_labels"] == ["N/A"]
    file = tweets / "1377884570_tweet_global_warming.csv"
    assert graftwork("evaluate", output, "--data", file, "--quiet", "--json").status == 0
    (tweets / "other.csv").write_text("tweet,verdict\na,Yes\n")
    ran = graftwork("evaluate", output, "--data", tweets / "other.csv", "--quiet")
    assert (ran.status, ran.err.splitlines()[-1]) == (
        2,
        "  change: --label; the data can be had from https://data.world/crowdflower",
    )


def test_a_missing_file_is_told_with_where_it_can_be_had(graftwork, backbone_folder, tmp_path):
    ran = graftwork(
        *("tune", "--task", "disasters", "--data", tmp_path, "--backbone", backbone_folder),
        *("--output", tmp_path / "out", "--quiet"),
    )
    assert ran.status == 2
    assert "there is no file" in ran.err
    assert "socialmedia-disaster-tweets-DFE.csv" in ran.err
    assert "the data can be had from https://data.world/crowdflower" in ran.err
