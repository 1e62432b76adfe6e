"""What is measured of pools over a sequence of tasks, and the command that adds tasks."""

import csv
import json
from dataclasses import replace

import pytest
from combine.test_pool import METHOD, TRAIN, WORDS, task_of
from training.workbench import KilledError, flags, names_in

from graftwork import Adapter, Pool, Task, evaluate
from graftwork.combine import adding, sequence
from graftwork.combine.sequence import Measured, add_in_turn, write_report
from graftwork.errors import OutputError, RecipeError
from graftwork.training.evaluation import evaluate_on


@pytest.fixture(scope="module")
def tasks(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tasks")
    return {name: task_of(folder, name, 60) for name in WORDS}


def read(file):
    with file.open(newline="") as opened:
        return list(csv.DictReader(opened))


def test_what_is_measured(backbone, tasks, tmp_path):
    pool = Pool(tmp_path / "pool", backbone=backbone, capacity=1, method=METHOD)
    found = add_in_turn(pool, [tasks["a"], tasks["b"]], **{**TRAIN, "num_train_epochs": 2})
    first, second = found
    assert [own.task for own in found] == ["a", "b"]
    assert first.scores == {"a": pool.history[0].after["accuracy"]}
    assert second.scores == {n: evaluate(pool.adapter(n), backbone=backbone)["accuracy"] for n in "ab"}
    assert second.mean == pytest.approx(sum(second.scores.values()) / 2)
    assert (first.forgetting, second.forgetting) == (0.0, pytest.approx(first.scores["a"] - second.scores["a"]))
    assert second.nbytes == pool.nbytes
    assert all(own.seconds > 0 for own in found)


def test_forgetting_is_from_the_highest_score(tmp_path, backbone, tasks, monkeypatch):
    pool = Pool(tmp_path / "pool", backbone=backbone, capacity=1, method=METHOD)
    monkeypatch.setattr("graftwork.combine.adding.evaluate_on", lambda *_, **__: {"accuracy": 0.0})
    scores = iter([0.5, 0.9, 0.6, 0.7, 0.8, 0.4])
    monkeypatch.setattr("graftwork.combine.pool.evaluate_on", lambda *_, **__: {"accuracy": next(scores)})
    found = add_in_turn(pool, list(tasks.values()), **{**TRAIN, "max_steps": 1})
    # a: 0.5, 0.9, 0.7; b: 0.6, 0.8.
    assert found[1].forgetting == pytest.approx(0.5 - 0.9)
    assert found[2].forgetting == pytest.approx(((0.9 - 0.7) + (0.6 - 0.8)) / 2)


def test_only_what_changed_is_scored_again(tmp_path, backbone, tasks, monkeypatch):
    pool = Pool(tmp_path / "pool", backbone=backbone, method=METHOD)
    asked = []

    def noted(task, adapter, **options):
        asked.append(task.name)
        return evaluate_on(task, adapter, **options)

    monkeypatch.setattr("graftwork.combine.pool.evaluate_on", noted)
    found = add_in_turn(pool, list(tasks.values()), **{**TRAIN, "max_steps": 1})
    assert asked == ["a", "b", "c"]
    assert found[-1].scores == {n: evaluate(pool.adapter(n), backbone=backbone)["accuracy"] for n in "abc"}


@pytest.mark.parametrize(("before", "best"), [(0.0, "when it was added"), (1.0, "now")])
def test_tasks_that_the_pool_has_already_can_be_forgotten(tmp_path, backbone, tasks, monkeypatch, before, best):
    pool = Pool(tmp_path / "pool", backbone=backbone, method=METHOD)
    pool.add(tasks["a"], **{**TRAIN, "max_steps": 1})
    # a before b is added; then a and b.
    scores = iter([before, 0.1, 0.5])
    monkeypatch.setattr("graftwork.combine.pool.evaluate_on", lambda *_, **__: {"accuracy": next(scores)})
    [measured] = add_in_turn(pool, [tasks["b"]], **{**TRAIN, "max_steps": 1})
    highest = {"now": 1.0, "when it was added": pool.history[0].after["accuracy"]}[best]
    assert measured.forgetting == pytest.approx(highest - 0.1)


def test_the_report(tmp_path):
    each = [
        Measured("a", 0, {"a": 0.9}, 0.9, 0.0, 1000, 0.1),
        Measured("b", 0, {"a": 0.8, "b": 0.7}, 0.75, 0.1, 1100, 0.1),
    ]
    write_report({"K = 1": each, "K = 2": each[:1]}, tmp_path / "report")
    assert names_in(tmp_path / "report") == ["scores.csv", "sequence.csv", "sequence.png", "sequence.svg"]
    rows = read(tmp_path / "report" / "sequence.csv")
    assert [(row["pool"], row["tasks"], row["mean"], row["bytes"]) for row in rows] == [
        ("K = 1", "1", "0.900000", "1000"),
        ("K = 1", "2", "0.750000", "1100"),
        ("K = 2", "1", "0.900000", "1000"),
    ]
    assert len(read(tmp_path / "report" / "scores.csv")) == 4
    with pytest.raises(OutputError, match=r"report .* exists already(.|\n)*change: --report, or --overwrite"):
        write_report({"K = 1": each}, tmp_path / "report")
    write_report({"K = 1": each}, tmp_path / "report", overwrite=True)
    (tmp_path / "report" / "thesis.txt").write_text("x")
    with pytest.raises(OutputError, match=r"holds thesis.txt, so it is not overwritten(.|\n)*change: --report"):
        write_report({"K = 1": each}, tmp_path / "report", overwrite=True)
    assert (tmp_path / "report" / "sequence.png").read_bytes()[:4] == b"\x89PNG"


def test_a_report_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(OutputError, match=r"cannot be created(.|\n)*change: --report"):
        write_report({"K = 1": [Measured("a", 0, {"a": 0.9}, 0.9, 0.0, 1000, 0.1)]}, tmp_path / "file" / "report")


def test_metrics_that_fall_are_refused(backbone, tmp_path, data):
    pool = Pool(tmp_path / "pool", backbone=backbone, method=METHOD)
    task = Task(name="n", kind="regression", text="text", data=str(data["numbers"]), metrics="mse")
    with pytest.raises(RecipeError, match="'mse' of task 'n' is lower for better adapters"):
        add_in_turn(pool, [task])


# Killed


@pytest.fixture
def killing(monkeypatch):
    """Kills what a pool does for a task, before it is tuned or before it is measured, the first time."""
    left = {}

    def kill(name, when):
        left[name] = when

    plain_tune, plain_measure = adding.tune_recipe, sequence.measure

    def tune(recipe, **options):
        if left.get(recipe.task["name"]) == "tuned":
            del left[recipe.task["name"]]
            raise KilledError
        return plain_tune(recipe, **options)

    def measure(pool, *args, **kwargs):
        if left.get(pool.tasks[-1]) == "measured":
            del left[pool.tasks[-1]]
            raise KilledError
        return plain_measure(pool, *args, **kwargs)

    monkeypatch.setattr(adding, "tune_recipe", tune)
    monkeypatch.setattr(sequence, "measure", measure)
    return kill


@pytest.mark.parametrize("when", ["tuned", "measured"])
def test_killed_it_goes_on_and_nothing_measured_is_lost(backbone, tasks, tmp_path, killing, when):
    settings = {**TRAIN, "max_steps": 2}

    def run(place, **options):
        pool = Pool(tmp_path / place / "pool", backbone=backbone, capacity=1, method=METHOD)
        return add_in_turn(pool, list(tasks.values()), report=tmp_path / place / "report", **settings, **options)

    whole = run("whole")
    killing("b", when)
    with pytest.raises(KilledError):
        run("killed")
    [first] = read(tmp_path / "killed" / "report" / "sequence.csv")
    again = run("killed")
    rows = read(tmp_path / "killed" / "report" / "sequence.csv")
    assert rows[0] == first, "what was measured is not measured again"
    assert [row["task"] for row in rows] == [own.task for own in again] == ["a", "b", "c"]
    for own, other in zip(again, whole, strict=True):
        assert own.scores == pytest.approx(other.scores, abs=1e-6)
        assert own.forgetting == pytest.approx(other.forgetting, abs=2e-6)
        assert (own.nbytes, own.member) == (other.nbytes, other.member)
    # All of it is there: nothing is done, and the report of something else is not taken for it.
    assert [own.task for own in run("killed")] == ["a", "b", "c"]
    write_report({"pool": [replace(whole[0], nbytes=1)]}, tmp_path / "killed" / "report", overwrite=True)
    with pytest.raises(OutputError, match="exists already"):
        run("killed")
    run("killed", overwrite=True)
    assert [row["task"] for row in read(tmp_path / "killed" / "report" / "sequence.csv")] == ["c"]


# The command


def yaml_of(folder, task):
    file = folder / f"{task.name}.yaml"
    file.write_text(f"name: {task.name}\ntext: text\ndata: {task.data}\n")
    return file


def test_the_command(graftwork, backbone_folder, tasks, tmp_path):
    files = [yaml_of(tmp_path, tasks[name]) for name in "ab"]
    given = ["--backbone", backbone_folder, "--dtype", "float32", "--quiet", *flags({**TRAIN, "num_train_epochs": 1})]
    method = ["--method", "lora", "--method.rank", "4"]
    run = graftwork(
        *("consolidate", tmp_path / "pool", "--task", files[0], "--task", files[1], "--capacity", "1"),
        *(*method, *given, "--report", tmp_path / "report", "--json"),
    )
    assert run.status == 0, run.err
    assert json.loads(run.out)["members"] == [["a", "b"]]
    assert len(read(tmp_path / "report" / "sequence.csv")) == 2
    # A task whose columns are flags, and one of the pool as an ordinary adapter.
    third = ["--data", tasks["c"].data, "--text", "text", "--export", "a", "--output", tmp_path / "a"]
    run = graftwork("consolidate", tmp_path / "pool", *third, *given)
    assert run.status == 0, run.err
    assert [line.split()[0] for line in run.out.splitlines()] == ["task", "a", "b", "c"]
    assert Adapter.load(tmp_path / "a").task.name == "a"
    # An adapter that is there already.
    again = ["consolidate", tmp_path / "other", "--task", files[0], *method, *given[:5], "--adapter", tmp_path / "a"]
    idle = graftwork(*again, "--train.seed", "1")
    assert "seed would do nothing: the adapter of a is given, and the pool has room for it" in idle.err
    run = graftwork(*again, "--json")
    assert run.status == 0, run.err
    [step] = json.loads(run.out)["history"]
    assert step["after"]["accuracy"] == evaluate(Adapter.load(tmp_path / "a"))["accuracy"]
    assert "is an adapter of task 'a', which is given twice" in graftwork(*again, "--adapter", tmp_path / "a").err
    wrong = ["consolidate", tmp_path / "third", "--task", files[1], *given, "--adapter", tmp_path / "a"]
    assert "is an adapter of task 'a', which is not among those that are added" in graftwork(*wrong).err
    shown = graftwork("consolidate", tmp_path / "pool", "--backbone", backbone_folder, "--quiet")
    assert shown.status == 0, shown.err
    scored = graftwork("evaluate", tmp_path / "a", "--quiet")
    assert scored.status == 0, scored.err


def test_an_interrupted_command_is_repeated(graftwork, backbone_folder, tasks, tmp_path, killing):
    files = [yaml_of(tmp_path, tasks[name]) for name in "ab"]
    given = ["--backbone", backbone_folder, "--dtype", "float32", *flags({**TRAIN, "max_steps": 1})]
    both = ["consolidate", tmp_path / "pool", "--task", files[0], "--task", files[1], *given]
    killing("b", "tuned")
    with pytest.raises(KilledError):
        graftwork(*both, "--report", tmp_path / "report")
    assert Pool(tmp_path / "pool").tasks == ("a",)
    run = graftwork(*both, "--report", tmp_path / "report", "--json")
    assert run.status == 0, run.err
    assert "the pool has the task 'a' already: it is not added again" in run.err
    assert [row["task"] for row in read(tmp_path / "report" / "sequence.csv")] == ["a", "b"]
    other = graftwork(*both, "--train.seed", "3")
    assert other.status == 2
    assert "train.seed was 0, is 3" in other.err
    taken = [*both, "--export", "b", "--output", tmp_path / "report"]
    assert "exists already" in graftwork(*taken).err


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "there is no pool"),
        (["--task", "rte", "--capacity", "0"], "change: --capacity"),
        (["--task", "rte", "--export", "a"], "--export and --output are given together"),
        (["--task", "rte", "--task", "mrpc", "--text", "x"], "is given for 2 tasks"),
        (["--report", "r"], "a report is of tasks that are added"),
        (["--text", "x"], "--data FILE with --text COLUMN"),
        (["--task", "rte", "--set", "x.y=1"], "unknown setting 'x.y'"),
        (["--task", "rte", "--train.progress", "true"], "change: --train.progress"),
        (["--task", "rte", "--train.pooling", "first"], "change: --train.pooling"),
        (["--task", "rte", "--train.split", "test", "--report", "r"], "change: --train.split"),
        (["--task", "rte", "--train.report", "r"], "change: --train.report"),
        (["--task", "rte", "--text", "a", "--task.text", "b"], "task.text is given both as a flag and as a setting"),
        (["--task", "rte", "--method", "lora", "--method.name", "ia3"], "method.name is given both as a flag"),
        (["--task", "rte", "--export", "rtee", "--output", "o"], "change: --export"),
        (["--task", "rte", "--export", "rte", "--output", "."], "'.' exists already"),
        (
            ["--task", "rte", "--capacity", "1", "--consolidation", "sequential", "--student-epochs", "3"],
            "change: --student-epochs",
        ),
        (["--task", "rte", "--method", "bihnet"], "change: --method"),
        (["--task", "rte", "--task", "rte"], "task 'rte' is given twice"),
    ],
)
def test_commands_that_are_refused(graftwork, backbone_folder, tmp_path, arguments, said):
    run = graftwork("consolidate", tmp_path / "pool", *arguments, "--backbone", backbone_folder, "--quiet")
    assert run.status == 2
    assert said in run.err
    assert not (tmp_path / "pool").exists()
