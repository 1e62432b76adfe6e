"""Adapters that are tuned already, in a pool: what is measured of them, what is refused, and what is known again."""

import json
from dataclasses import replace

import pytest
from combine.test_pool import METHOD, TRAIN, WORDS, add_all, rows_of, task_of
from combine.test_sequence import yaml_of
from training.workbench import contents, flags, names_in, write_csv

from graftwork import Adapter, Pool, Task, evaluate, tune
from graftwork.combine import adding
from graftwork.combine.sequence import add_in_turn
from graftwork.errors import AdapterError, RecipeError

SHORT = {**TRAIN, "max_steps": 3}


@pytest.fixture(scope="module")
def tasks(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tasks")
    return {name: task_of(folder, name, 60) for name in WORDS}


@pytest.fixture(scope="module")
def alone(backbone, tasks):
    """An adapter of each task, trained for a number of steps of its own."""
    steps = {"a": 4, "b": 6}
    return {
        name: tune(backbone, task=tasks[name], method=METHOD, **{**TRAIN, "max_steps": own})
        for name, own in steps.items()
    }


@pytest.fixture
def untuned(monkeypatch):
    monkeypatch.setattr(adding, "tune_recipe", lambda *_, **__: pytest.fail("tuned"))


def test_they_are_as_those_that_the_pool_tunes(backbone, tasks, tmp_path):
    tuned, given = (Pool(tmp_path / name, backbone=backbone, capacity=1, method=METHOD) for name in ("tuned", "given"))
    own = {name: tune(backbone, task=tasks[name], method=METHOD, **SHORT) for name in "ab"}
    own["b"].save(tmp_path / "b")
    add_all(tuned, tasks, "ab", max_steps=3)
    given.add(tasks["a"], adapter=own["a"])
    given.add(tasks["b"], adapter=tmp_path / "b", **SHORT)
    assert tuned.history == given.history
    assert names_in(tuned.folder / "adapters") == names_in(given.folder / "adapters")  # named after the contents


# Other data


def other_task(folder, labels=("a0", "a1"), name="a"):
    """Rows of a task of that name where the words decide the other way round: what is known of it is wrong."""
    first, second = labels
    rows = [{**row, "label": second if row["label"].endswith("0") else first} for row in rows_of("a", 60, seed=7)]
    return Task(name=name, text="text", data=str(write_csv(folder / "other.csv", rows)))


@pytest.fixture(scope="module")
def knowing(backbone, tasks):
    """An adapter that knows task a."""
    return tune(backbone, task=tasks["a"], method=METHOD, **{**TRAIN, "num_train_epochs": 12})


@pytest.mark.parametrize("place", ["with room", "consolidated"])
def test_scores_are_those_on_the_tasks_data_and_not_on_the_adapters(backbone, tasks, knowing, alone, tmp_path, place):
    assert knowing.metrics["validation"]["accuracy"] == 1.0
    other = other_task(tmp_path)
    there = evaluate(knowing, backbone=backbone, data=other.data, split="validation")["accuracy"]
    assert there < 0.5
    pool = Pool(tmp_path / "pool", backbone=backbone, capacity=1, method=METHOD)
    if place == "consolidated":
        pool.add(tasks["b"], adapter=alone["b"])
    step = pool.add(other, adapter=knowing, **({"max_steps": 1} if place == "consolidated" else {}))
    assert step.before["accuracy"] == there
    assert step.after == pool.evaluate("a")
    # So are those of a report, and those of the adapter that is taken out.
    [*_, measured] = add_in_turn(
        pool, [other], adapters={"a": knowing}, **({"max_steps": 1} if place == "consolidated" else {})
    )
    assert measured.scores["a"] == step.after["accuracy"]
    if place == "consolidated":
        out = pool.adapter("a")
        assert out.metrics["validation"] == step.after == evaluate(out, backbone=backbone)
        assert out.rows == {"validation": 6}


def test_an_adapter_without_a_recipe(backbone, tasks, alone, tmp_path):
    pool = Pool(tmp_path / "pool", backbone=backbone, capacity=1, method=METHOD)
    pool.add(tasks["a"], adapter=replace(alone["a"], recipe={}, metrics={}, rows={}))
    pool.add(tasks["b"], adapter=replace(alone["b"], recipe={}, metrics={}, rows={}), max_steps=1)
    assert pool.evaluate("b") == pool.history[-1].after
    assert evaluate(pool.adapter("b"), backbone=backbone) == pool.history[-1].after


def test_labels_in_another_order(backbone, tasks, alone, tmp_path):
    turned = tasks["a"].override(labels=["a1", "a0"])
    pool = Pool(tmp_path / "pool", backbone=backbone, method=METHOD)
    step = pool.add(turned, adapter=alone["a"])
    assert step.after["accuracy"] == alone["a"].metrics["validation"]["accuracy"]


# What is refused


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("another task", r"given for task 'a' \(classification\) is of task 'b' \(classification\)"),
        ("method", r"given for task 'a' has method lora \(.*\), which is not that of the pool"),
        (
            "labels",
            r"given for task 'a' has other labels than the task's data: it lacks 'x', 'y' and it has 'a0', 'a1'",
        ),
        ("pairs", r"given for task 'a' reads single texts, and the task is of pairs of texts"),
        ("length", r"given for task 'a' cuts texts at 64 tokens, and max_length is 8(.|\n)*--train.max_length"),
        ("pooling", r"given for task 'a' has pooling mean, and pooling is first"),
        ("tokens", r"given for task 'a' has tokens of its own, which adapters of a pool have not: <x>"),
    ],
)
@pytest.mark.parametrize("full", [False, True], ids=["with room", "full"])
def test_adapters_that_are_not_the_tasks_own(backbone, tasks, alone, tmp_path, untuned, name, said, full):
    own, task, options = alone["a"], tasks["a"], {}
    if name == "another task":
        own = replace(own, task=own.task.model_copy(update={"name": "b"}))
    elif name == "method":
        own = replace(own, method=METHOD.model_copy(update={"alpha": 3.0}))
    elif name == "labels":
        task = other_task(tmp_path, ("x", "y"))
    elif name == "pairs":
        rows = [{**row, "second": row["text"]} for row in rows_of("a", 60)]
        task = Task(name="a", text="text", text_pair="second", data=str(write_csv(tmp_path / "pairs.csv", rows)))
    elif name == "length":
        options = {"max_length": 8}
    elif name == "pooling":
        options = {"pooling": "first"}
    else:
        own = tune(backbone, task=task, method=METHOD, add_tokens=["<x>"], **{**TRAIN, "max_steps": 1})
    pool = Pool(tmp_path / "pool", backbone=backbone, capacity=1, method=METHOD)
    if full:
        pool.add(tasks["b"], adapter=alone["b"])
    before = contents(pool.folder) if full else None
    with pytest.raises(AdapterError, match=said) as error:
        pool.add(task, adapter=own, **options)
    assert "--adapter" in str(error.value)
    assert (contents(pool.folder) == before) if full else not pool.folder.exists()


def test_the_folder_of_a_wrong_adapter_is_named(backbone, alone, tmp_path, untuned):
    alone["a"].save(tmp_path / "own")
    pool = Pool(tmp_path / "pool", backbone=backbone, method=METHOD)
    with pytest.raises(AdapterError, match=r"the adapter in '.*own' that is given for task 'a' has other labels"):
        pool.add(other_task(tmp_path, ("x", "y")), adapter=tmp_path / "own")


def test_settings_by_which_nothing_is_trained(backbone, tasks, alone, tmp_path):
    pool = Pool(tmp_path / "pool", backbone=backbone, capacity=1, method=METHOD)
    with pytest.raises(
        RecipeError, match=r"max_steps, learning_rate would do nothing: the adapter of a(.|\n)*--train.max_steps"
    ):
        pool.add(tasks["a"], adapter=alone["a"], max_steps=777, learning_rate=3.0)
    assert not pool.folder.exists()
    both = [tasks["a"], tasks["b"]]
    assert [task.name for task in pool.missing(both, adapters=alone, max_steps=5)] == ["a", "b"], "b has a student"
    wide = Pool(tmp_path / "wide", backbone=backbone, capacity=2, method=METHOD)
    with pytest.raises(RecipeError, match="max_steps would do nothing: the adapter of a, b is given"):
        wide.missing(both, adapters=alone, max_steps=5)
    assert [task.name for task in wide.missing(both, adapters={"a": alone["a"]}, max_steps=5)] == ["a", "b"]


# Known again


def test_the_pool_knows_tasks_by_their_adapters_and_their_students_training(backbone, tasks, alone, tmp_path):
    pool = Pool(tmp_path / "pool", backbone=backbone, capacity=1, method=METHOD)
    settings = {**TRAIN, "max_steps": 5}
    pool.add(tasks["a"], adapter=alone["a"])
    pool.add(tasks["b"], adapter=alone["b"], **settings)
    again = Pool(tmp_path / "pool", backbone=backbone)
    assert again.missing([tasks["a"], tasks["b"]], adapters=alone, **settings) == []
    with pytest.raises(RecipeError, match=r"has the task 'b' already(.|\n)*max_steps was 5, is 6"):
        again.has(tasks["b"], adapter=alone["b"], **{**settings, "max_steps": 6})
    with pytest.raises(RecipeError, match=r"has the task 'b' already(.|\n)*adapter was '.*', is None(.|\n)*--adapter"):
        again.has(tasks["b"], **settings)
    with pytest.raises(RecipeError, match=r"has the task 'a' already(.|\n)*task.data was"):
        again.has(other_task(tmp_path), adapter=alone["a"])
    changed = replace(alone["a"], tensors={name: 2 * tensor for name, tensor in alone["a"].tensors.items()})
    with pytest.raises(RecipeError, match=rf"adapter was '{alone['a'].digest}', is '{changed.digest}'"):
        again.has(tasks["a"], adapter=changed)


@pytest.mark.parametrize("report", [False, True], ids=["no report", "report"])
def test_a_command_with_adapters_is_repeated(graftwork, backbone_folder, tasks, alone, tmp_path, report):
    given = []
    for name, own in alone.items():
        own.save(tmp_path / name)
        given += ["--task", yaml_of(tmp_path, tasks[name]), "--adapter", tmp_path / name]
    given += ["--report", tmp_path / "report"] if report else []
    options = ["--backbone", backbone_folder, "--dtype", "float32", "--method", "lora", "--method.rank", "4"]
    command = ["consolidate", tmp_path / "pool", *given, *options, "--capacity", "1", *flags({**TRAIN, "max_steps": 5})]
    first = graftwork(*command, "--json")
    assert first.status == 0, first.err
    before = contents(tmp_path / "pool")
    again = graftwork(*command, "--json")
    assert again.status == 0, again.err
    assert json.loads(again.out) == json.loads(first.out)
    assert contents(tmp_path / "pool") == before


# Taken out of a pool


def test_an_adapter_of_several_tasks_says_so_and_its_recipe_is_not_run(graftwork, backbone, tasks, alone, tmp_path):
    pool = Pool(tmp_path / "pool", backbone=backbone, capacity=1, method=METHOD)
    pool.add(tasks["a"], adapter=alone["a"])
    pool.adapter("a").save(tmp_path / "own")
    assert "Consolidated" not in (tmp_path / "own" / "README.md").read_text()
    pool.add(tasks["b"], adapter=alone["b"], max_steps=1)
    pool.adapter("a").save(tmp_path / "out")
    out = Adapter.load(tmp_path / "out")
    assert out.consolidated_with == ("b",)
    assert "- Consolidated with: b (in a pool" in (tmp_path / "out" / "README.md").read_text()
    assert "consolidated with  b" in graftwork("inspect", tmp_path / "out").out
    assert json.loads(graftwork("inspect", tmp_path / "out", "--json").out)["consolidated_with"] == ["b"]
    run = graftwork("tune", tmp_path / "out" / "recipe.yaml", "--output", tmp_path / "again")
    assert run.status == 2
    assert "a pool made of those of 'a' and b; a run by it would make another one" in run.err
    assert not (tmp_path / "again").exists()
