"""GLUE's submission: files, rows, labels and numbers against what the leaderboard asks for, by hand."""

import json
import os
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest

from graftwork import AdaptedModel, Adapter, LoRA
from graftwork.errors import AdapterError, DataError
from graftwork.kinds.prediction import Prediction
from graftwork.studies import submission, submitting
from graftwork.studies.submission import TEST_SETS
from graftwork.studies.submitting import choose, glue_submission
from graftwork.tasks.builtin import BUILTIN

ROWS = {
    **{"CoLA": 1063, "SST-2": 1821, "MRPC": 1725, "STS-B": 1379, "MNLI-m": 9796, "MNLI-mm": 9847, "QNLI": 5463},
    **{"QQP": 390965, "RTE": 3000, "WNLI": 146, "AX": 1104},
}
LABELS = {
    ("CoLA", "SST-2", "MRPC", "QQP", "WNLI"): {"0", "1"},
    ("RTE", "QNLI"): {"entailment", "not_entailment"},
    ("MNLI-m", "MNLI-mm", "AX"): {"contradiction", "entailment", "neutral"},
}
SETS = {own.table: own for own in TEST_SETS}
GLUE = Path(os.environ.get("GRAFTWORK_DATA", "nowhere")) / "glue"


def test_the_tables_are_those_of_the_leaderboard():
    assert [own.table for own in TEST_SETS] == [
        *("CoLA", "SST-2", "MRPC", "STS-B", "MNLI-m", "MNLI-mm", "QNLI", "QQP", "RTE", "WNLI", "AX")
    ]
    assert {own.table: own.rows for own in TEST_SETS} == ROWS
    for own, labels in ((SETS[table], labels) for tables, labels in LABELS.items() for table in tables):
        assert {own.write(Prediction(label=label)) for label in BUILTIN[own.task].labels} == labels
        assert own.usual in labels
    assert SETS["CoLA"].write(Prediction(label="acceptable")) == "1"
    assert SETS["SST-2"].write(Prediction(label="negative")) == "0"
    assert SETS["WNLI"].write(Prediction(label="entailment")) == "1"
    assert SETS["RTE"].write(Prediction(label="not_entailment")) == "not_entailment"


def test_similarities_have_three_decimals_and_stay_on_the_scale():
    def written(value):
        return SETS["STS-B"].write(Prediction(label=value))

    assert [written(value) for value in (1.23456, 0.0, -0.3, 5.2, -0.0, 2.0)] == [
        *("1.235", "0.000", "0.000", "5.000", "0.000", "2.000")
    ]


@pytest.fixture
def small(monkeypatch):
    """Test sets of a few rows."""
    sets = tuple(replace(own, rows=3 + i) for i, own in enumerate(TEST_SETS))
    monkeypatch.setattr(submission, "TEST_SETS", sets)
    monkeypatch.setattr(submitting, "TEST_SETS", sets)
    return {own.table: own for own in sets}


WORDS = ["good one", "bad two", "mild three", 'a "four', "five", "six good", "seven bad", "eight"]


@pytest.fixture
def glue(small, tmp_path):
    """GLUE's folder, as it is distributed, with a test set for each of four tasks and the diagnostic set."""
    headers = {
        "CoLA": "index\tsentence",
        "STS-B": "index\tgenre\tfilename\tyear\told_index\tsource1\tsource2\tsentence1\tsentence2",
        "MRPC": "\ufeffQuality\t#1 ID\t#2 ID\t#1 String\t#2 String",
        "MNLI-m": "index\tpromptID\tsentence1\tsentence2",
        "MNLI-mm": "index\tpromptID\tsentence1\tsentence2",
        "QQP": "id\tquestion1\tquestion2",
        "AX": "index\tsentence1\tsentence2",
    }
    for table, header in headers.items():
        names = header.split("\t")
        lines = [header]
        for i in range(small[table].rows):
            texts = {names[-1]: WORDS[i % 8], **({} if table == "CoLA" else {names[-2]: WORDS[(i + 3) % 8]})}
            lines.append("\t".join(texts.get(name, str(i)) for name in names))
        file = tmp_path / "glue" / small[table].files[-1 if table == "MRPC" else 0]
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("\r\n".join(lines) + ("\r\n" if table == "QQP" else ""), encoding="utf-8")
    return tmp_path / "glue"


@pytest.fixture
def adapters(backbone, tmp_path):
    """A function that saves untrained adapters of tasks, each with a validation score, in a folder."""

    def adapters(*tasks, **scores):
        for seed, task in enumerate([*tasks, *scores]):
            declared = BUILTIN[task.rstrip("_")]
            made = Adapter.new(
                backbone,
                LoRA(rank=2),
                kind=declared.kind,
                labels=declared.labels,
                pairs=declared.text_pair is not None,
                name=declared.name,
                seed=seed,
            )
            if task in scores:
                made = replace(made, metrics={"validation": {declared.main_metric: scores[task]}})
            made.save(tmp_path / "adapters" / task)
        return tmp_path / "adapters"

    return adapters


def lines(text):
    header, *rows = text.split("\n")
    assert header == "index\tprediction"
    assert rows.pop() == ""
    assert [row.split("\t")[0] for row in rows] == [str(i) for i in range(len(rows))]
    return [row.split("\t")[1] for row in rows]


def test_adapters_answer_and_the_missing_have_the_most_frequent_class(adapters, glue, small, graftwork, tmp_path):
    folder = adapters("cola", "stsb", "mnli", "mrpc", "qqp")
    out = tmp_path / "out"
    ran = graftwork("glue-submission", folder, "--data", glue, "--output", out, "--dtype", "float32", "--quiet")
    assert (ran.status, ran.err) == (0, "")
    assert "no adapter: SST-2, QNLI, RTE, WNLI have the most frequent class in every row" in ran.out
    with zipfile.ZipFile(out / "submission.zip") as archive:
        assert archive.namelist() == [f"{own.table}.tsv" for own in TEST_SETS]
        texts = {name.removesuffix(".tsv"): archive.read(name).decode() for name in archive.namelist()}
    assert {path.name for path in out.iterdir()} == {"submission.zip", *(f"{table}.tsv" for table in ROWS)}
    for table, text in texts.items():
        assert (out / f"{table}.tsv").read_bytes() == text.encode()
        assert "\r" not in text
        assert len(lines(text)) == small[table].rows
    assert set(lines(texts["SST-2"])) == {"1"}
    assert set(lines(texts["RTE"])) == {"entailment"}
    assert set(lines(texts["WNLI"])) == {"0"}
    model = AdaptedModel(backbone_of(folder), {path.name: path for path in folder.iterdir()})
    for table, task in {"CoLA": "cola", "MNLI-m": "mnli", "MNLI-mm": "mnli", "AX": "mnli", "MRPC": "mrpc"}.items():
        count = small[table].rows
        given = [WORDS[i] if task == "cola" else (WORDS[(i + 3) % 8], WORDS[i % 8]) for i in range(count)]
        said = [own.label for own in model.predict(given, adapters=task)]
        names = {"acceptable": "1", "unacceptable": "0", "equivalent": "1", "not_equivalent": "0"}
        assert lines(texts[table]) == [names.get(label, label) for label in said]
    numbers = lines(texts["STS-B"])
    said = model.predict([(WORDS[(i + 3) % 8], WORDS[i % 8]) for i in range(small["STS-B"].rows)], adapters="stsb")
    assert numbers == [f"{min(5.0, max(0.0, own.label)):.3f}" for own in said]
    before = (out / "submission.zip").read_bytes()
    again = graftwork(
        *("glue-submission", folder, "--data", glue, "--output", out, "--dtype", "float32", "--quiet", "--json"),
        *("--overwrite", "--batch-size", "2"),
    )
    assert json.loads(again.out)["missing"] == ["SST-2", "QNLI", "RTE", "WNLI"]
    assert (out / "submission.zip").read_bytes() == before


def backbone_of(folder):
    from graftwork import Backbone

    return Backbone.load(Adapter.load(next(iter(folder.iterdir()))).backbone.name, dtype="float32")


def test_the_best_of_several_answers(adapters, glue, backbone):
    made = glue_submission(adapters(cola=0.2, cola_=0.4, cola__=0.3), data=glue, backbone=backbone)
    [cola] = [own for own in made.tables if own.test_set.table == "CoLA"]
    assert (cola.adapter.name, cola.score) == ("cola_", 0.4)
    assert made.record()[0] == {"file": "CoLA.tsv", "rows": 3, "adapter": str(cola.adapter), "validation": 0.4}
    assert len(made.missing) == 10


def test_a_score_that_is_not_known_is_no_choice(adapters):
    folder = adapters("cola", cola_=0.4)
    with pytest.raises(AdapterError, match=r"2 adapters are of cola, and .*cola' has no validation matthews"):
        choose(submitting.candidates(folder))


def test_a_study_answers_by_what_it_compares(adapters, glue, backbone, monkeypatch, tmp_path):
    """The runs of a study are those that its tables are made of, and not those of its search."""
    folder = adapters(cola=0.2, cola_=0.4)
    (tmp_path / "study").mkdir()
    (tmp_path / "study" / "chosen.json").write_text("[]")
    run = tmp_path / "run"
    run.mkdir()
    (folder / "cola").rename(run / "adapter")
    monkeypatch.setattr(submitting, "read_results", lambda source: [Run(run, "lora")])
    made = glue_submission(tmp_path / "study", data=glue, backbone=backbone)
    assert made.tables[0].adapter == run / "adapter"


def test_methods_are_known_by_the_names_of_the_study(adapters, monkeypatch, tmp_path):
    folder = adapters(cola=0.2, cola_=0.4)
    runs = []
    for name, setting, path in (("lora", "", "cola"), ("mine", "rank=2", "cola_")):
        (tmp_path / name).mkdir()
        (folder / path).rename(tmp_path / name / "adapter")
        runs.append(Run(tmp_path / name, name, setting))
    (tmp_path / "study").mkdir()
    (tmp_path / "study" / "chosen.json").write_text("[]")
    monkeypatch.setattr(submitting, "read_results", lambda source: runs)

    def names(method):
        return [own.folder.parent.name for own in submitting.candidates(tmp_path / "study", method=method)]

    assert [names(method) for method in ("lora", "mine", "mine (rank=2)")] == [["lora"], ["mine"], ["mine"]]
    runs[0].method = runs[0].label = "other"
    assert names("lora") == ["lora", "mine"]  # no name of the study: that of the library
    with pytest.raises(AdapterError, match="no adapter of method bitfit"):
        names("bitfit")


class Run:
    def __init__(self, folder, method, setting=""):
        self.folder, self.method = folder, method
        self.label = f"{method} ({setting})" if setting else method


def refused(adapters, glue, **options):
    with pytest.raises((AdapterError, DataError)) as caught:
        glue_submission(adapters, data=glue, **options)
    return str(caught.value)


def test_what_is_not_whole_is_refused(adapters, glue, tmp_path):
    folder = adapters("cola")
    test = glue / "CoLA" / "test.tsv"
    text = test.read_text()
    test.write_text(text.replace("1\tbad two", "7\tbad two"))
    assert "has row 7 in the place of row 1" in refused(folder, glue)
    test.write_text(text + "\n3\tone more\n")
    assert "has 4 rows" in refused(folder, glue)
    test.write_text(text.replace("bad two", "bad\ttwo"))
    assert "malformed at line 3: 3 fields instead of the header's 2" in refused(folder, glue)
    test.write_text(text.replace("sentence", "text"))
    assert "has no column sentence" in refused(folder, glue)
    test.unlink()
    assert "has no test set of CoLA: CoLA/test.tsv" in refused(folder, glue)
    assert "has no adapter of method houlsby of a GLUE task, and 1 others" in refused(folder, glue, method="houlsby")
    assert "there is no folder" in refused(tmp_path / "nowhere", glue)
    (tmp_path / "empty").mkdir()
    assert "has no adapter of a GLUE task" in refused(tmp_path / "empty", glue)


def test_other_labels_are_refused(backbone, glue, tmp_path):
    made = Adapter.new(backbone, LoRA(rank=2), labels=("no", "yes"), name="cola")
    made.save(tmp_path / "adapters" / "one")
    assert "is of cola, and predicts no, yes" in refused(tmp_path / "adapters", glue)


@pytest.mark.skipif(not GLUE.is_dir(), reason="GRAFTWORK_DATA names no folder that holds glue/")
def test_the_test_sets_that_are_here_are_whole():
    here = [own for own in TEST_SETS if any((GLUE / name).is_file() for name in own.files)]
    assert here
    for own in here:
        given = own.inputs(GLUE)
        assert len(given) == own.rows
        assert isinstance(given[0], str) == (BUILTIN[own.task].text_pair is None)
    without = replace(SETS["MRPC"], files=SETS["MRPC"].files[1:])
    assert without.inputs(GLUE) == SETS["MRPC"].inputs(GLUE)
