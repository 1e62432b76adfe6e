"""What an adapter names is the same from any folder: a path never turns into the id of somebody else's data."""

import shutil

import datasets
import pytest
from tiny import outdate
from training.workbench import FAST, make_rows, write_csv

from graftwork import Adapter, Backbone, LoRA, Task, evaluate, tune, tune_many
from graftwork.errors import DataError
from graftwork.settings.yamlfile import dump_yaml
from graftwork.tasks import BUILTIN
from graftwork.tasks.task import HUB

SHORT = {**FAST, "max_steps": 2}


@pytest.fixture(autouse=True)
def asked(monkeypatch):
    """No data are fetched; gives the ids that would have been."""
    ids = []

    def load_dataset(name, subset):
        ids.append(name)
        rows = datasets.Dataset.from_list(make_rows("classes", 40))
        return datasets.DatasetDict(train=rows, validation=rows)

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    return ids


@pytest.fixture
def here(tmp_path, backbone_folder, monkeypatch):
    """A current folder with data under names that could be ids on the hub, a backbone, and another folder beside."""
    (tmp_path / "here").mkdir()
    (tmp_path / "there").mkdir()
    (tmp_path / "here" / "some").mkdir()
    (tmp_path / "here" / "some" / "reviews").mkdir()
    for split in ("train", "validation"):
        write_csv(tmp_path / "here" / "some" / "reviews" / f"{split}.csv", make_rows("classes", 40))
    write_csv(tmp_path / "here" / "rows.csv", make_rows("classes", 40))
    shutil.copytree(backbone_folder, tmp_path / "here" / "tiny")
    monkeypatch.chdir(tmp_path / "here")
    return tmp_path / "here"


def tuned(data, output=None, backbone="tiny"):
    backbone = Backbone.load(backbone, dtype="float32", device="cpu")
    task = Task(name="classes", text="text", data=data)
    return tune(backbone, task=task, method=LoRA(rank=2), output=output, **SHORT)


@pytest.mark.parametrize("data", ["some/reviews", "rows.csv", "./some/../rows.csv"])
def test_an_adapter_is_scored_from_any_folder(here, monkeypatch, asked, data):
    tuned(data, output="a")
    monkeypatch.chdir(here.parent / "there")
    adapter = Adapter.load(here / "a")
    assert adapter.recipe["task"]["data"] == str((here / data).resolve())
    assert adapter.recipe["backbone"] == adapter.backbone.name == str(here / "tiny")
    scores = evaluate(adapter)
    assert scores.items() <= {k: pytest.approx(v, abs=1e-4) for k, v in adapter.metrics["validation"].items()}.items()
    assert asked == []


def test_data_that_have_gone_are_not_fetched(here, monkeypatch, asked):
    tuned("some/reviews", output="a")
    (here / "some").rename(here / "other")
    for folder in (here, here.parent / "there"):
        monkeypatch.chdir(folder)
        with pytest.raises(DataError, match=r"there is no file or folder .*here/some/reviews(.|\n)*--data"):
            evaluate(Adapter.load(here / "a"))
    assert asked == []
    evaluate(Adapter.load(here / "a"), data=str(here / "other" / "reviews"))


def test_several_are_found_too(here, monkeypatch):
    backbone = Backbone.load("tiny", dtype="float32", device="cpu")
    task = Task(name="classes", text="text")
    found = tune_many(backbone, {"a": {"task": task, "data": "rows.csv"}}, output="out", **SHORT)
    assert found["a"].recipe["task"]["data"] == str(here / "rows.csv")
    monkeypatch.chdir(here.parent / "there")
    tune_many(backbone, {"a": {"task": task, "data": "../here/rows.csv"}}, output=here / "out", resume=True, **SHORT)


def test_data_of_the_hub_stay_the_hubs(here, monkeypatch, asked):
    monkeypatch.chdir(here.parent / "there")
    adapter = tuned("some/reviews", backbone=str(here / "tiny"))
    assert adapter.recipe["task"]["data"] == f"{HUB}some/reviews"
    monkeypatch.chdir(here)
    evaluate(adapter)
    assert asked == ["some/reviews"] * 2, "although there is a folder of that name"
    again = tuned(f"{HUB}some/reviews", backbone=str(here / "tiny"))
    assert again.recipe == adapter.recipe
    assert asked == ["some/reviews"] * 3


def outdated(folder, data):
    """The adapter in a folder, as an older graftwork saved it."""
    recipe = dict(Adapter.load(folder).recipe)
    recipe["task"] = {**recipe["task"], "data": data}
    (folder / "recipe.yaml").write_text(dump_yaml(recipe))
    outdate(folder)
    return Adapter.load(folder)


def test_an_older_adapter_does_not_say_what_its_data_are(here, monkeypatch, asked):
    tuned("some/reviews", output="a")
    adapter = outdated(here / "a", "some/reviews")
    evaluate(adapter)
    monkeypatch.chdir(here.parent / "there")
    with pytest.raises(
        DataError, match=r"'some/reviews', which is not a file or folder here(.|\n)*hf://datasets/some/rev"
    ):
        evaluate(adapter)
    assert asked == []
    evaluate(adapter, data=f"{HUB}some/reviews")
    assert asked == ["some/reviews"]
    evaluate(outdated(here / "a", BUILTIN["cola"].data))
    assert asked == ["some/reviews", "nyu-mll/glue"], "it is known that these are the hub's"
