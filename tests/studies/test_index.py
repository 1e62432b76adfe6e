"""The index of runs and `graftwork runs`: over folders that are written here, without any training."""

import csv
import json
import re
import sqlite3
from dataclasses import replace

import pyarrow.parquet
import pytest

from graftwork.errors import DataError, RecipeError
from graftwork.studies import index as module
from graftwork.studies.index import Index
from graftwork.studies.outputs import comparisons
from graftwork.studies.records import DONE, FAILED, Record, Store


def record(name, method="lora", *, seed=0, test=0.5, **changes):
    facts = {"hash": name, "state": DONE, "task": "words", "method": method, "setting": "", "tried": {}, "seed": seed}
    facts |= {"learning_rate": 0.001, "main_metric": "accuracy", "trained_parameters": 100, "backbone_parameters": 1000}
    scores = {"validation": {"accuracy": 0.6, "loss": 0.9}, "test": {"accuracy": test, "loss": 1.0}}
    return Record(**{**facts, "scores": scores, "seconds": 2.0, "ended": "2026-01-01", **changes})


def put(folder, own, *, said="nyny", rank=2):
    """Write a run's folder; `said` are the predictions for four rows that are n, y, n, n."""
    names = {"n": "no", "y": "yes"}
    lines = [
        json.dumps({"row": i, "label": names[label], "prediction": names[one]})
        for i, (label, one) in enumerate(zip("nynn", said, strict=True))
    ]
    recipe = {
        "task": {"kind": "classification", "labels": ["no", "yes"]},
        "method": {"name": own.method, "rank": rank, "targets": ["query", "value"]},
        "train": {"seed": own.seed, "learning_rate": own.learning_rate, "max_length": 128, "fast": True},
    }
    Store(folder).put(own, {"predictions.jsonl": "\n".join(lines) + "\n"}, recipe, None)


@pytest.fixture
def study(tmp_path):
    put(tmp_path, record("aa01", seed=0, test=0.75))
    put(tmp_path, record("aa02", seed=1, test=0.25), rank=8)
    put(tmp_path, record("bb01", "bitfit", test=1.0), said="nynn")
    error = {"kind": "MemoryError", "message": "MemoryError: no room", "traceback": "Traceback …\nMemoryError: no room"}
    put(tmp_path, record("bb02", "bitfit", seed=1, state=FAILED, scores={}, error=error))
    return tmp_path


def names(rows):
    return [row["hash"] for row in rows]


def test_the_index_says_what_the_folders_say(study):
    index = Index(study)
    assert names(index.find()) == ["bb01", "bb02", "aa01", "aa02"]
    [row] = index.find({"method": "bitfit", "state": "done"})
    assert (row["test"], row["validation"], row["trained_parameters"]) == (1.0, 0.6, 100)
    put(study, record("cc01", "bitfit", seed=7))
    Store(study).place("aa01").rename(study / "elsewhere")
    assert names(Index(study).find()) == ["bb01", "bb02", "cc01", "aa02"]


def test_a_run_that_has_changed_is_read_again(study):
    Index(study)
    place = Store(study).place("aa01")
    place.rename(study / "old")
    put(study, record("aa01", test=0.125))
    assert Index(study).find({"hash": "aa01"})[0]["test"] == 0.125


@pytest.mark.parametrize(
    ("where", "expected"),
    [
        (["seed=1"], ["bb02", "aa02"]),
        (["seed!=1", "method=lora"], ["aa01"]),
        (["test.accuracy>=0.75"], ["bb01", "aa01"]),
        (["test<0.5"], ["aa02"]),
        (["method.rank=8"], ["aa02"]),
        (["method.rank > 2"], ["aa02"]),
        (["method.targets=query,value", "seed=0"], ["bb01", "aa01"]),
        (["train.fast=true", "learning_rate<=0.001", "state=failed"], ["bb02"]),
        (["train.max_length<128"], []),
    ],
)
def test_conditions_are_of_columns_scores_and_settings(study, where, expected):
    assert names(Index(study).find(where=where)) == expected


def test_bad_conditions_are_refused(study):
    with pytest.raises(RecipeError, match=r"'method.rnak' is no column(.|\n)*method.rank"):
        Index(study).find(where=["method.rnak=3"])
    with pytest.raises(RecipeError, match="'seed' is no condition"):
        Index(study).find(where=["seed"])
    assert names(Index(study).find(where=["task=x' OR '1'='1"])) == []


def test_an_older_index_is_brought_to_today(study, monkeypatch):
    with monkeypatch.context() as before:
        before.setattr(module, "MIGRATIONS", module.MIGRATIONS[:1])
        before.setattr(module, "_insert", insert_before)
        before.setattr(module, "_remove", lambda base, name: None)
        Index(study)
    base = sqlite3.connect(study / module.FILE)
    assert base.execute("PRAGMA user_version").fetchone() == (1,)
    base.close()
    assert names(Index(study).find(where=["method.rank=8"])) == ["aa02"]
    base = sqlite3.connect(study / module.FILE)
    assert base.execute("PRAGMA user_version").fetchone() == (len(module.MIGRATIONS),)
    base.close()


def insert_before(base, own, recipe, stamp):
    """As the first version wrote a line, which knew no settings."""
    marks = ", ".join("?" * (len(module.COLUMNS) + 1))
    values = [None if name == "error" else vars(own).get(name) for name in module.COLUMNS]
    base.execute(f"INSERT INTO runs VALUES ({marks})", (*values, stamp))


def test_a_newer_or_damaged_index_is_told_of_and_made_anew(study, graftwork):
    Index(study)
    base = sqlite3.connect(study / module.FILE)
    base.execute("PRAGMA user_version = 99")
    base.close()
    with pytest.raises(DataError, match=r"newer graftwork(.|\n)*--rebuild"):
        Index(study)
    (study / module.FILE).write_bytes(b"no database" * 100)
    refused = graftwork("runs", study)
    assert refused.status == 2
    assert "--rebuild" in refused.err
    assert graftwork("runs", study, "--rebuild").status == 0
    assert len(Index(study).find()) == 4


def test_wrong_folders_are_told_of(study, tmp_path):
    with pytest.raises(DataError, match="has no runs in it"):
        Index(tmp_path / "runs")


@pytest.mark.parametrize(
    ("file", "text"), [("result.json", "{"), ("result.json", None), ("result.json", "[]"), ("recipe.yaml", "a: [")]
)
def test_damaged_runs_are_told_of_and_left_out(study, graftwork, caplog, file, text):
    Index(study)
    place = study / "runs" / "aa01"
    (place / file).unlink()
    if text is not None:
        (place / file).write_text(text)
    if file != "result.json":
        (place / "result.json").touch()
    ran = graftwork("runs", study)
    assert ran.status == 0
    assert [line.split()[0] for line in ran.out.splitlines()[1:]] == ["bb01", "bb02", "aa02"]
    assert f"{place / file}" in caplog.text
    assert ("remove the folder" in caplog.text) == (file == "result.json")


def test_a_run_that_vanishes_is_left_out_without_a_word(study, monkeypatch, caplog):
    folders = module.run_folders(study)
    monkeypatch.setattr(module, "run_folders", lambda study: [*folders, study / "runs" / "gone"])
    assert len(Index(study).find()) == 4
    assert caplog.text == ""


def test_runs_are_listed_and_filtered(graftwork, study):
    ran = graftwork("runs", study)
    assert ran.status == 0
    header, *lines = ran.out.splitlines()
    assert header.split() == [
        "run",
        "state",
        "task",
        "method",
        "rate",
        "seed",
        "metric",
        "validation",
        "test",
        "seconds",
    ]
    assert [line.split()[0] for line in lines] == ["bb01", "bb02", "aa01", "aa02"]
    some = graftwork("runs", study, "--method", "lora", "--where", "seed=1")
    assert [line.split()[0] for line in some.out.splitlines()[1:]] == ["aa02"]
    assert graftwork("runs", study, "--task", "other").out == "no runs\n"
    found = json.loads(graftwork("runs", study, "--state", "failed", "--json").out)
    assert [row["error"] for row in found] == ["MemoryError: no room"]


def test_one_run_is_shown(graftwork, study):
    ran = graftwork("runs", study, "--show", "aa02")
    assert ran.status == 0
    for said in ("accuracy 0.2500", "100 (10.00 %)", "rank: 8", "seed: 1"):
        assert said in ran.out
    failed = graftwork("runs", study, "--show", "bb02")
    assert "Traceback …\nMemoryError: no room" in failed.out
    assert json.loads(graftwork("runs", study, "--show", "bb02", "--json").out)["error"]["kind"] == "MemoryError"
    several = graftwork("runs", study, "--show", "aa")
    assert several.status == 2
    assert "there are 2 runs whose name begins with 'aa'" in several.err


def test_two_runs_are_compared(graftwork, study):
    ran = graftwork("runs", study, "--compare", "bb01", "aa02")
    assert ran.status == 0
    assert [line.split() for line in ran.out.splitlines() if line.startswith("method.rank")] == [
        ["method.rank", "2", "8"]
    ]
    assert "train.max_length" not in ran.out
    # Of four rows, one is right in the first run alone.
    assert "+0.2500 (95 %: +0.0000 to " in ran.out
    assert re.search("McNemar's exact test +p = 1\n", ran.out)
    found = json.loads(graftwork("runs", study, "--compare", "bb01", "aa02", "--json").out)
    assert found["settings"]["train.seed"] == [0, 1]
    assert found["statistics"]["by_rows"]["mean"] == 0.25
    failed = graftwork("runs", study, "--compare", "bb01", "bb02")
    assert (failed.status, "no comparison by rows" in failed.out) == (0, True)


def test_runs_on_different_rows_are_shown_beside_each_other(graftwork, study):
    file = study / "runs" / "aa02" / "predictions.jsonl"
    file.write_text("".join(file.read_text().splitlines(keepends=True)[:3]))
    ran = graftwork("runs", study, "--compare", "aa01", "aa02")
    assert ran.status == 0
    assert re.search(r"method.rank +2 +8", ran.out)
    assert re.search(r"test accuracy +0.7500 +0.2500", ran.out)
    assert "no comparison by rows: the runs were scored on different rows" in ran.out
    assert json.loads(graftwork("runs", study, "--compare", "aa01", "aa02", "--json").out)["statistics"] is None


def test_a_pair_on_different_rows_leaves_the_others_as_they_are(study, caplog):
    put(study, record("cc01", "ia3", test=0.5))
    put(study, record("dd01", "houlsby", test=0.5))
    file = study / "runs" / "cc01" / "predictions.jsonl"
    file.write_text("".join(file.read_text().splitlines(keepends=True)[:3]))
    store = Store(study)
    lora, ia3, houlsby = comparisons(
        [store.find(name).result(store.place(name)) for name in ("bb01", "aa01", "cc01", "dd01")]
    )
    assert (ia3["difference"], ia3["seeds"], ia3["rows_p"], ia3["mcnemar_p"]) == (-0.5, 1, None, None)
    assert all(own["rows_p"] is not None for own in (lora, houlsby))
    assert "ia3 and bitfit on words are compared by seeds alone: the runs were scored on different" in caplog.text


def test_runs_are_exported(graftwork, study, tmp_path):
    assert graftwork("runs", study, "--export", tmp_path / "all.csv").status == 0
    rows = list(csv.DictReader((tmp_path / "all.csv").read_text().splitlines()))
    assert [row["hash"] for row in rows] == ["bb01", "bb02", "aa01", "aa02"]
    assert [row["test.accuracy"] for row in rows] == ["1.0", "", "0.75", "0.25"]
    assert graftwork("runs", study, "--method", "lora", "--export", tmp_path / "some.parquet").status == 0
    table = pyarrow.parquet.read_table(tmp_path / "some.parquet").to_pylist()
    assert [(row["hash"], row["seed"], row["validation.loss"]) for row in table] == [("aa01", 0, 0.9), ("aa02", 1, 0.9)]
    refused = graftwork("runs", study, "--export", tmp_path / "all.xlsx")
    assert (refused.status, ".csv or .parquet" in refused.err) == (2, True)


def test_a_record_is_read_as_it_was_written(study):
    own = record("dd01", earlier_errors=[{"kind": "a", "message": "b", "traceback": "c"}], peak_memory=5)
    put(study, own)
    assert Store(study).find("dd01") == own
    assert Store(study).find("nothing") is None
    assert replace(own, task="other") == own.named("other", own.method, own.setting)


def test_of_two_processes_that_end_one_run_the_first_is_kept(study):
    slow = Store(study)
    assert slow.find("dd01") is None
    first = record("dd01", seconds=1.0)
    put(study, first)
    assert slow.put(replace(first, seconds=9.0), {}, {}, None).seconds == 1.0
    assert slow.find("dd01").seconds == 1.0
