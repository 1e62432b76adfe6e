"""What a study's file may say, and what it means."""

from pathlib import Path

import pytest
import yaml

from graftwork.errors import GraftworkError, RecipeError
from graftwork.settings.yamlfile import dump_yaml, read_yaml
from graftwork.studies import Study, compare
from graftwork.studies.arms import settings_of
from graftwork.studies.study import StudyMethod

ROOT = Path(__file__).parents[2]


def settings(method, **given):
    """The texts that tell the settings of a method apart."""
    study = Study.parse({"tasks": ["cola"], "methods": {method: given}})
    return settings_of(method, study.methods[method])


def test_lists_of_names_are_short_for_mappings():
    short = Study.parse({"tasks": ["cola", "rte"], "methods": ["lora", "bitfit"]})
    long = Study.parse({"tasks": {"cola": {}, "rte": None}, "methods": {"lora": {}, "bitfit": None}})
    assert short == long
    named = Study.parse({"tasks": {"mine": "cola"}, "methods": {"x": "lora"}})
    assert (named.tasks["mine"].task, named.methods["x"].name) == ("cola", "lora")


def test_seeds_are_counted_or_listed():
    assert Study.parse({"tasks": ["cola"], "methods": ["lora"]}).seeds == (0, 1, 2)
    assert Study.parse({"tasks": ["cola"], "methods": ["lora"], "seeds": [5, 3]}).seeds == (5, 3)
    assert Study.parse({"tasks": {"cola": {"seeds": 2}}, "methods": ["lora"]}).tasks["cola"].seeds == (0, 1)


def test_lists_are_grids_and_settings_that_are_lists_stay_lists():
    assert list(settings("lora")) == [""]
    assert list(settings("lora", rank=[2, 8], alpha=[4.0, 16.0])) == [
        *("rank=2, alpha=4", "rank=2, alpha=16", "rank=8, alpha=4", "rank=8, alpha=16"),
    ]
    [one] = settings("lora", targets=["query", "value"]).values()
    assert one == {"name": "lora", "targets": ["query", "value"]}
    assert list(settings("lora", targets=[["query", "value"], ["ffn.up"]])) == ["targets=query,value", "targets=ffn.up"]
    assert settings("low", name="LoRA", rank=[3])["rank=3"] == {"name": "lora", "rank": 3}


def test_keys_of_a_method_in_a_study_are_no_settings():
    own = Study.parse(
        {"tasks": ["cola"], "methods": {"x": {"name": "lora", "rank": 2, "train": {"max_steps": 3}}}}
    ).methods["x"]
    assert own == StudyMethod(name="lora", settings={"rank": 2}, train={"max_steps": 3})


def test_a_study_is_the_same_written_and_read(tmp_path):
    values = {
        "name": "mine",
        "tasks": {"a": {"task": {"text": "t", "data": "a.csv"}, "max_rows": {"train": 5}, "seeds": [4]}, "cola": {}},
        "methods": {"lora": {"rank": [1, 2], "train": {"max_steps": 3}}, "bitfit": {}},
        "search": {
            "optuna": {"learning_rate": {"low": 1e-5, "high": 0.1, "log": True}, "max_steps": [1, 2]},
            "trials": 3,
        },
        "budget": {"hours": 2.0},
    }
    study = Study.parse(values)
    (tmp_path / "study.yaml").write_text(dump_yaml(study.as_values()))
    assert Study.parse(read_yaml(tmp_path / "study.yaml")) == study
    grid = Study.parse({**values, "search": {"grid": {"learning_rate": {"times": [0.5, 1]}}}})
    assert Study.parse(yaml.safe_load(dump_yaml(grid.as_values()))) == grid


def test_paths_are_looked_up_beside_the_file(tmp_path):
    (tmp_path / "rows.csv").write_text("text,label\n")
    (tmp_path / "task.yaml").write_text("name: x\ntext: text\n")
    tasks = {
        "one": {"task": {"text": "text", "data": "rows.csv"}},
        "two": {"task": "task.yaml", "data": "rows.csv"},
        "three": {"task": "cola", "data": "some/hub-id"},
    }
    (tmp_path / "study.yaml").write_text(dump_yaml({"tasks": tasks, "methods": ["lora"]}))
    found = Study.from_yaml(tmp_path / "study.yaml")
    assert found.name == "study"
    assert found.tasks["one"].task["data"] == found.tasks["two"].data == str(tmp_path / "rows.csv")
    assert found.tasks["two"].task == str(tmp_path / "task.yaml")
    assert found.tasks["three"].data == "some/hub-id"


def test_flags_override_the_file(tmp_path):
    (tmp_path / "study.yaml").write_text("tasks: [cola]\nmethods: [lora]\ntrain: {max_steps: 3, num_train_epochs: 1}\n")
    found = Study.from_yaml(tmp_path / "study.yaml", {"train.max_steps": 5, "seeds": 1, "budget.runs": 4})
    assert (found.train["max_steps"], found.seeds, found.budget.runs) == (5, (0,), 4)


@pytest.mark.parametrize(
    ("name", "given", "said"),
    [
        ("lora", {"rank": []}, r"methods.lora"),
        ("lora", {"rank": ["x"]}, r"rank='x'"),
        ("lorra", {}, r"unknown method 'lorra'"),
    ],
)
def test_what_is_wrong_with_a_method_says_which(name, given, said):
    with pytest.raises(GraftworkError, match=said):
        settings(name, **given)


def test_all_that_is_wrong_with_a_file_is_told_at_once():
    values = {"tasks": {"cola": {"rows": 3}}, "methods": ["lora"], "seeds": 0, "budget": {"runs": -1}}
    with pytest.raises(RecipeError) as end:
        Study.parse(values, origin="study.yaml")
    for said in ("unknown key 'tasks.cola.rows'", "at least one seed", "budget.runs=-1", "study.yaml"):
        assert said in str(end.value)


def test_the_example_and_the_documents_are_studies(tmp_path):
    text = (ROOT / "docs" / "studies.md").read_text(encoding="utf-8")
    blocks = []
    for block in text.split("```yaml\n")[1:]:
        (tmp_path / "block.yaml").write_text(block.split("```")[0], encoding="utf-8")
        blocks.append(read_yaml(tmp_path / "block.yaml"))
    example = read_yaml(ROOT / "examples" / "study.yaml")
    assert {**blocks[0], "backbone": None} == {**example, "backbone": None}
    base = {"tasks": ["cola"], "methods": ["lora"]}
    for block in (*blocks, example):
        study = Study.parse({**base, **block})
        for name, own in study.methods.items():
            assert settings_of(name, own)


def test_a_study_under_torchrun_is_refused(monkeypatch, tmp_path):
    """Its processes would each take a run, and sum each other's gradients."""
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(RecipeError, match=r"started as 2 processes.*\n.*\n.*--workers"):
        compare({"tasks": ["cola"], "methods": ["lora"]}, output=tmp_path / "study")
    assert not [*tmp_path.iterdir()]
