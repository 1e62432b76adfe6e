"""Studies of a tiny backbone, run to their tables: once, again, after failures, and after changes."""

import json
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import yaml
from comparing import compare, tables_of
from scipy import stats

import graftwork as gw
from graftwork.errors import DataError, FailedRunsError, GraftworkError, InterruptedRunError, OutputError, TuneManyError
from graftwork.studies import compare_pair, comparing, joint_runs, mcnemar, read_results, single_run, work_loop
from graftwork.studies.predictions import read_predictions, score
from graftwork.studies.records import run_folders
from graftwork.training.progress import Log


@pytest.fixture(scope="module")
def small(values):
    """The values of a study of one task: two settings, two rates, two seeds."""

    def small(**changes):
        tasks = {"words": values()["tasks"]["words"]}
        return values(**{"tasks": tasks, "methods": {"lora": {"rank": [1, 2]}}, **changes})

    return small


@pytest.fixture(scope="module")
def done(small, tmp_path_factory):
    """A study that has ended; its folder is not to be changed."""
    folder = tmp_path_factory.mktemp("done") / "out"
    return compare(small(), output=folder)


@pytest.fixture
def nothing_runs(monkeypatch):
    def run(*arguments):
        raise AssertionError("something was run")

    monkeypatch.setattr(work_loop, "run", run)


def rows_of(file):
    header, *lines = file.read_text().splitlines()
    return [dict(zip(header.split(","), line.split(","), strict=True)) for line in lines]


def test_a_study_compares_the_chosen_rate_over_all_seeds(done):
    assert [(own.task, own.label, own.seed) for own in done.results] == [
        *(("words", "lora (rank=1)", 0), ("words", "lora (rank=1)", 1)),
        *(("words", "lora (rank=2)", 0), ("words", "lora (rank=2)", 1)),
    ]
    assert (done.failed, done.open) == ((), 0)
    assert len(run_folders(done.folder)) == 6
    assert read_results(done.folder) == done.results
    search = rows_of(done.folder / "search.csv")
    assert len(search) == 4
    assert "test" not in search[0]
    for setting in ("rank=1", "rank=2"):
        tried = [row for row in search if row["setting"] == setting]
        best = max(tried, key=lambda row: float(row["validation"]))
        assert [row["run"] for row in tried if row["chosen"] == "true"] == [best["run"]]
        rates = {own.learning_rate for own in done.results if own.setting == setting}
        assert [f"train.learning_rate={rate:g}" for rate in rates] == [best["tried"]]


def test_a_runs_folder_has_what_made_it(done):
    result = done.results[0]
    assert sorted(path.name for path in result.folder.iterdir()) == [
        *("adapter", "environment.json", "metrics.jsonl", "predictions.jsonl", "recipe.yaml", "result.json"),
    ]
    adapter = gw.Adapter.load(result.folder / "adapter")
    assert yaml.safe_load((result.folder / "recipe.yaml").read_text()) == dict(adapter.recipe)
    assert dict(adapter.metrics["test"]) == result.test
    assert result.trained_parameters == adapter.num_parameters
    said, labels = read_predictions(result.folder)
    assert len(said) == adapter.rows["test"]
    assert score(adapter.recipe["task"], "accuracy", said, labels) == result.test["accuracy"]
    lines = [json.loads(line) for line in (result.folder / "metrics.jsonl").read_text().splitlines()]
    measured = [line["accuracy"] for line in lines if line["split"] == "validation" and line["step"]]
    assert max(measured) == result.validation["accuracy"]
    assert json.loads((result.folder / "environment.json").read_text())["versions"]["torch"]


def test_the_tables_are_of_what_the_runs_say(done):
    lines = rows_of(done.folder / "results.csv")
    assert [(line["run"], float(line["test"])) for line in lines] == [
        (own.folder.name, own.test_score) for own in done.results
    ]
    summary = rows_of(done.folder / "summary.csv")
    scores = {
        row["setting"]: [own.test_score for own in done.results if own.setting == row["setting"]] for row in summary
    }
    for row in summary:
        assert float(row["test"]) == pytest.approx(np.mean(scores[row["setting"]]))
        assert float(row["test_standard_error"]) == pytest.approx(stats.sem(scores[row["setting"]]))
    [row] = rows_of(done.folder / "comparisons.csv")
    assert (row["method"], row["compared_with"]) == ("lora (rank=2)", "lora (rank=1)")
    difference = np.subtract(scores["rank=2"], scores["rank=1"])
    assert float(row["difference"]) == pytest.approx(difference.mean())
    assert float(row["rows_low"]) <= difference.mean() <= float(row["rows_high"])
    said = [read_predictions(own.folder) for own in done.results if own.seed == 0]
    right = [[one == label for one, label in zip(*own, strict=True)] for own in said]
    assert float(row["mcnemar_p"]) == mcnemar(right[1], right[0])


def test_runs_on_other_rows_are_not_compared(done, tmp_path):
    one, other = done.results[0], done.results[2]
    shutil.copytree(other.folder, tmp_path / "run")
    lines = (tmp_path / "run" / "predictions.jsonl").read_text().splitlines()
    (tmp_path / "run" / "predictions.jsonl").write_text("\n".join(lines[::-1]) + "\n")
    with pytest.raises(DataError, match="different rows"):
        compare_pair([one], [replace(other, folder=tmp_path / "run")])
    assert compare_pair([one], [replace(other, seed=5)]) is None
    assert compare_pair([one], [replace(other, test={})]) is None


def test_what_is_done_is_not_done_again(small, done, nothing_runs):
    before = tables_of(done.folder)
    assert compare(small(), output=done.folder) == done
    assert tables_of(done.folder) == before


def test_names_and_places_are_no_part_of_a_run(small, done, nothing_runs, tmp_path):
    words = small()["tasks"]["words"]["task"]
    moved = tmp_path / "elsewhere.csv"
    moved.write_bytes(Path(words["data"]).read_bytes())
    renamed = small(
        tasks={"other": {"task": {**words, "data": str(moved)}}}, methods={"mine": {"name": "lora", "rank": [1, 2]}}
    )
    found = compare(renamed, output=done.folder)
    assert [(own.task, own.method) for own in found.results[:1]] == [("other", "mine")]
    assert [own.test for own in found.results] == [own.test for own in done.results]
    compare(small(), output=done.folder)


def test_a_folder_has_one_study(small, done, nothing_runs):
    before = tables_of(done.folder)
    with pytest.raises(OutputError, match=r"has study 'study', whose tables those of 'another' would replace"):
        compare(small(name="another"), output=done.folder)
    assert tables_of(done.folder) == before


def test_a_study_whose_workers_leave_runs_undone_says_so(small, tmp_path, monkeypatch):
    monkeypatch.setattr(comparing, "work", lambda plan, announce: None)
    study = small(methods={"lora": {"rank": 1}}, search=None)
    with pytest.raises(OutputError, match="2 runs of the study are still to be done, and its workers have ended"):
        compare(study, output=tmp_path / "out")


def test_other_data_and_settings_make_other_runs(small, done, tmp_path):
    words = small()["tasks"]["words"]["task"]
    moved = tmp_path / "words.csv"
    moved.write_text(Path(words["data"]).read_text().replace("one", "two", 1))
    names = {path.name for path in run_folders(done.folder)}
    one = {"methods": {"lora": {"rank": 1}}, "search": None, "seeds": 1}
    other = compare(small(tasks={"words": {"task": {**words, "data": str(moved)}}}, **one), output=tmp_path / "a")
    assert not names & {path.name for path in run_folders(other.folder)}
    rows = compare(small(tasks={"words": {"task": words, "max_rows": {"train": 20}}}, **one), output=tmp_path / "b")
    assert not names & {path.name for path in run_folders(rows.folder)}


def test_one_failure_does_not_stop_a_study_and_is_tried_again_on_request(small, tmp_path, monkeypatch):
    plain, broken = single_run.tune_recipe, [True]

    def tune_recipe(recipe, **options):
        if recipe.train.seed == 1 and broken[0]:
            raise MemoryError("no room")
        return plain(recipe, **options)

    monkeypatch.setattr(single_run, "tune_recipe", tune_recipe)
    study = small(methods={"lora": {"rank": 1}}, search=None, seeds=3)
    with pytest.raises(
        FailedRunsError, match=r"1 of 3 runs failed(.|\n)*MemoryError: no room(.|\n)*--retry-failed"
    ) as end:
        compare(study, output=tmp_path / "out")
    assert [own.seed for own in end.value.finished.results] == [0, 2]
    [failed] = end.value.finished.failed
    folder = tmp_path / "out" / "runs" / failed.hash
    assert "Traceback" in json.loads((folder / "result.json").read_text())["error"]["traceback"]
    assert not (folder / "adapter").exists()
    broken[0] = False
    with pytest.raises(FailedRunsError):  # not on request
        compare(study, output=tmp_path / "out")
    found = compare(study, output=tmp_path / "out", retry_failed=True)
    assert [own.seed for own in found.results] == [0, 1, 2]
    kept = json.loads((folder / "result.json").read_text())
    assert (kept["state"], kept["error"]) == ("done", None)
    assert [error["message"] for error in kept["earlier_errors"]] == ["MemoryError: no room"]
    assert [path.name for path in (tmp_path / "out" / "runs").iterdir() if path.name.startswith(".")] == []


def test_without_a_folder_nothing_is_said_of_one(small, monkeypatch):
    stop = [MemoryError("no room")]

    def tune_recipe(recipe, **options):
        raise stop[0]

    monkeypatch.setattr(single_run, "tune_recipe", tune_recipe)
    study = small(methods={"lora": {"rank": [1]}}, search=None, seeds=[3])
    with pytest.raises(FailedRunsError) as end:
        gw.compare(study)
    said = str(end.value)
    assert "words, lora (rank=1), learning rate 0.0005, seed 3: MemoryError: no room\n" in said
    assert "give output to keep them" in said
    assert not any(word in said for word in ("graftwork.", "retry", "tables"))
    stop[0] = KeyboardInterrupt()
    with pytest.raises(InterruptedRunError, match="0 runs done, and none is kept: give output to keep them"):
        gw.compare(study)


def test_hours_that_are_spent_end_a_study(small, tmp_path, capsys):
    study = small(methods={"lora": {"rank": 1}}, search=None, seeds=3, budget={"hours": 1e-6})
    found = compare(study, output=tmp_path / "out", progress=True)
    assert (len(found.results), found.open) == (1, 2)
    assert "spent: 1 run, 0.00 hours of 1e-06; 2 runs not begun, as the budget is spent" in capsys.readouterr().err
    more = compare({**study, "budget": {"hours": 1}}, output=tmp_path / "out")
    assert (len(more.results), more.open) == (3, 0)


def test_seeds_share_passes_where_the_study_says_so(small, tmp_path, monkeypatch):
    study = small(methods={"lora": {"rank": 1}}, search=None, seeds=3)
    alone = compare(study, output=tmp_path / "alone")
    found = compare({**study, "share_passes": True}, output=tmp_path / "shared")
    assert [own.folder.name for own in found.results] == [own.folder.name for own in alone.results]
    for one, other in zip(found.results, alone.results, strict=True):
        # Sums over more rows are rounded otherwise, which training makes more of.
        assert one.test["loss"] == pytest.approx(other.test["loss"], rel=1e-3)
        facts = json.loads((one.folder / "result.json").read_text())
        assert (facts["shared"], facts["peak_memory"]) == (3, None)
    runs = tmp_path / "shared" / "runs"
    (runs / ".0123456789abcdef.shared" / ".left.tuning").mkdir(parents=True)
    compare({**study, "share_passes": True}, output=tmp_path / "shared")
    assert [path.name for path in runs.iterdir() if path.name.startswith(".")] == []

    def fail(*arguments, **options):
        raise TuneManyError("all failed", change="", finished={})

    monkeypatch.setattr(joint_runs, "tune_joint_recipe", fail)
    again = compare({**study, "share_passes": True, "seeds": 2}, output=tmp_path / "again")
    assert [own.test for own in again.results] == [own.test for own in alone.results[:2]]


def test_time_is_kept_when_runs_that_share_passes_are_cut(small, tmp_path, monkeypatch):
    study = small(methods={"lora": {"rank": 1}}, search=None, seeds=3, share_passes=True)
    study["train"] = {**study["train"], "max_steps": 3, "eval_strategy": "steps", "eval_steps": 1}
    seen, plain = [], Log.on_step_end

    def on_step_end(self, args, state, control, **options):
        seen.append(state.global_step)
        if len(seen) == 6:
            raise KeyboardInterrupt
        return plain(self, args, state, control, **options)

    monkeypatch.setattr(Log, "on_step_end", on_step_end)
    with pytest.raises(InterruptedRunError):
        compare(study, output=tmp_path / "out")
    [place] = (tmp_path / "out" / "runs").glob(".*.shared")
    assert 0 < float((place / single_run.SPENT).read_text()) < 1000
    (place / single_run.SPENT).write_text("3000")
    found = compare(study, output=tmp_path / "out")
    assert all(1000 < own.seconds < 2000 for own in found.results)
    assert len(found.results) == 3
    assert {json.loads((own.folder / "result.json").read_text())["shared"] for own in found.results} == {3}
    assert not list((tmp_path / "out" / "runs").glob(".*"))


BAD = {
    "an unknown task": ({"tasks": ["sts"]}, r"task 'sts': unknown task(.|\n)*tasks.sts"),
    "an unknown method": ({"methods": ["lorra"]}, r"unknown method 'lorra'(.|\n)*lora(.|\n)*methods.lorra"),
    "an unknown key": ({"seed": 3}, r"unknown key 'seed' \(expected for example seeds"),
    "an unknown key of a task": ({"tasks": {"cola": {"dta": "x"}}}, r"unknown key 'tasks.cola.dta'"),
    "an unknown setting": ({"methods": {"lora": {"rnak": 3}}}, r"method 'lora': (.|\n)*rnak"),
    "an unknown training setting": ({"train": {"epochs": 3}}, r"train(.|\n)*unknown key 'epochs'"),
    "an empty grid": ({"search": {"grid": {}}}, r"search.grid(.|\n)*empty"),
    "an empty list of rates": ({"search": {"grid": {"learning_rate": []}}}, r"learning_rate is empty"),
    "an empty list of a setting": ({"methods": {"lora": {"rank": []}}}, r"rank is an empty list"),
    "a value twice": ({"methods": {"lora": {"rank": [2, 2]}}}, r"rank has a value twice"),
    "one key twice": (
        {"search": {"grid": {"learning_rate": [0.1], "train.learning_rate": [0.2]}}},
        r"learning_rate and train.learning_rate are one setting",
    ),
    "ends that are not whole": (
        {"search": {"optuna": {"max_steps": {"low": 1.5, "high": 4.5, "whole": True}}, "trials": 2}},
        r"whole numbers between 1.5 and 4.5",
    ),
    "no tasks": ({"tasks": {}}, r"tasks"),
    "no seeds": ({"seeds": 0}, r"at least one seed"),
    "a seed twice": ({"seeds": [1, 1]}, r"a seed is repeated"),
    "a seed elsewhere": ({"train": {"seed": 1}}, r"train(.|\n)*a study's seeds are its key seeds"),
    "a value that does not suit": ({"search": {"grid": {"learning_rate": [-1.0]}}}, r"learning_rate=-1.0"),
    "a key that is not searched": ({"search": {"grid": {"rank": [1, 2]}}}, r"method.KEY"),
    "what is set and searched": (
        {"methods": {"lora": {"rank": 2}}, "search": {"grid": {"method.rank": [1, 2]}}},
        r"method.rank is both set and searched",
    ),
    "optuna without trials": (
        {"search": {"optuna": {"learning_rate": {"low": 0.1, "high": 0.2}}}},
        r"trials is missing",
    ),
    "a range upside down": (
        {"search": {"optuna": {"learning_rate": {"low": 0.3, "high": 0.2}}, "trials": 3}},
        r"expected low < high",
    ),
    "more runs than the budget": ({"budget": {"runs": 5}}, r"takes 6 runs \(4 of its search\), and its budget is 5"),
    "a longer search than the budget": ({"budget": {"search_runs": 3}}, r"takes 4 runs, and the budget of each method"),
    "more seeds of the search": (
        {"search": {"grid": {"learning_rate": [0.1]}, "seeds": 3}},
        r"the search wants 3 seeds",
    ),
    "one method twice": (
        {"methods": {"lora": {"rank": 4}, "mine": {"name": "LoRA", "rank": [2, 4]}}},
        r"words: lora and words: mine \(rank=4\) are the same method",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_a_bad_study_is_refused_before_anything_runs(case, small, nothing_runs, tmp_path):
    changes, said = BAD[case]
    with pytest.raises(GraftworkError, match=said):
        compare(small(**changes), output=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_optuna_is_asked_for_before_anything_runs(small, nothing_runs, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "optuna", None)
    rate = {"learning_rate": {"low": 0.001, "high": 0.01}}
    study = small(methods={"lora": {"rank": 1, "search": {"optuna": rate, "trials": 3}}})
    with pytest.raises(GraftworkError, match=r'not installed(.|\n)*pip install "graftwork\[search\]"'):
        compare(study, output=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_one_file_under_two_names_is_refused(small, nothing_runs, tmp_path):
    words = small()["tasks"]["words"]
    copy = tmp_path / "copy.csv"
    copy.write_bytes(Path(words["task"]["data"]).read_bytes())
    for other in (words, {"task": {**words["task"], "data": str(copy)}}):
        with pytest.raises(GraftworkError, match="tasks 'words' and 'more' are the same rows"):
            compare(small(tasks={"words": words, "more": other}), output=tmp_path / "out")
    assert not (tmp_path / "out").exists()
