"""Tables and figures of studies: every number against what the runs say, worked out by hand."""

import csv
import json
import re
from collections import Counter
from dataclasses import replace
from html.parser import HTMLParser
from statistics import fmean, stdev

import numpy as np
import pytest
from invented import METHODS, TASKS, invented

from graftwork.errors import DataError, OutputError
from graftwork.studies.curves import confusion, confusions, learning_curves
from graftwork.studies.figures import pareto, score_against_parameters, sweep, sweeps
from graftwork.studies.groups import groups_of, metric_of, points, sign_of, split_of
from graftwork.studies.records import Record
from graftwork.studies.report import report, write_report
from graftwork.studies.tables import glue_scores, other_scores, sizes

SCORED = {**TASKS, "stsb": "spearman"}
"""Papers report Spearman's correlation, and R² chooses."""


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    return invented(tmp_path_factory.mktemp("runs"))


def mean(results, method, setting, task, metric=None):
    """The mean test score over seeds."""
    own = [one for one in results if (one.method, one.setting, one.task) == (method, setting, task)]
    return fmean(one.test[metric or SCORED[task]] for one in own)


def read(table):
    """The CSV's rows, by method and setting."""
    return list(csv.DictReader(table.csv().splitlines()))


def drawn(figure):
    """The data of the lines of the figure's first panel, by label."""
    panel = figure.draw().axes[0]
    handles, labels = panel.get_legend_handles_labels()
    lines = [own.lines[0] if hasattr(own, "lines") else own for own in handles]
    return {label: line.get_xydata().tolist() for label, line in zip(labels, lines, strict=True)}


def test_what_scores_are_of(results):
    assert split_of(results) == "test"
    assert split_of([*results[1:], replace(results[0], test={})]) == "validation"
    assert {task: metric_of(results, task) for task in TASKS} == SCORED
    assert [points(0.5, "accuracy"), points(50.0, "bleu"), points(1.0, "loss")] == [50, 50, 50]


@pytest.mark.parametrize(("metric", "sign"), [("accuracy", 1), ("bleu", 1), ("loss", -1), ("mae", -1), ("own", 1)])
def test_the_sign_of_a_metric_says_which_way_is_better(metric, sign):
    assert sign_of(metric) == sign


def test_the_score_against_parameters(results):
    figure = score_against_parameters(results)
    rows = read(figure)
    assert [(row["method"], row["setting"]) for row in rows] == list(METHODS)
    for row in rows:
        key = (row["method"], row["setting"])
        less = [100 * (mean(results, *key, task) - mean(results, "full", "", task)) for task in TASKS]
        expected = np.percentile(less, [20, 50, 80])
        assert [float(row[name]) for name in ("p20", "median", "p80")] == pytest.approx(list(expected), abs=1e-9)
        assert float(row["trained_parameters"]) == METHODS[key][1] + 800
        assert (row["tasks"], row["split"]) == ("4", "test")
    found = drawn(figure)
    assert found.keys() == {"full", "top", "houlsby", "houlsby (init_std=0.1)", "bitfit"}
    by_key = {(row["method"], row["setting"]): row for row in rows}
    curve = [by_key["houlsby", "bottleneck=8"], by_key["houlsby", ""]]
    assert found["houlsby"] == [[float(row["trained_parameters"]), float(row["median"])] for row in curve]
    panel = figure.draw().axes[0]
    assert panel.get_xscale() == "log"
    assert panel.get_ylabel() == "test score less full's (points)"


def test_without_full_fine_tuning_scores_are_plain(results):
    own = [one for one in results if one.method == "bitfit"]
    figure = score_against_parameters(own)
    [row] = figure.rows
    assert row["median"] == pytest.approx(np.median([100 * mean(own, "bitfit", "", task) for task in TASKS]))
    assert figure.draw().axes[0].get_ylabel() == "test score (points)"


def test_who_lacks_a_task_is_not_compared_over_tasks(results):
    some = [one for one in results if (one.method, one.task) != ("bitfit", "news")]
    for figure in (score_against_parameters(some), pareto(some, "bytes")):
        assert "bitfit" not in {row["method"] for row in figure.rows}
        assert "Not on all tasks, and so left out: bitfit." in figure.note


def test_methods_that_have_no_task_in_common_are_not_compared(results):
    apart = [one for one in results if (one.method, one.task) in (("bitfit", "cola"), ("full", "news"))]
    assert score_against_parameters(apart) is None
    assert pareto(apart, "bytes") is None
    assert [len(own.rows) for own in (glue_scores(apart), other_scores(apart))] == [1, 1]


@pytest.mark.parametrize(("cost", "field"), [("bytes", "nbytes"), ("time", "seconds"), ("memory", "peak_memory")])
def test_the_front_of_score_and_cost(results, cost, field):
    figure = pareto(results, cost)
    rows = read(figure)
    found = {}
    for key in METHODS:
        own = [one for one in results if (one.method, one.setting) == key]
        score = fmean(100 * mean(results, *key, task) for task in TASKS)
        found[key] = (score, fmean(getattr(one, field) for one in own))
    for row in rows:
        score, price = found[row["method"], row["setting"]]
        assert (float(row["score"]), float(row[field])) == pytest.approx((score, price))
        others = [own for key, own in found.items() if key != (row["method"], row["setting"])]
        beaten = any(better >= score and cheaper <= price for better, cheaper in others)
        assert row["on_front"] == str(not beaten).lower()
    assert {row["on_front"] for row in rows} == {"true", "false"}
    assert drawn(figure)["bitfit"] == [pytest.approx([found["bitfit", ""][1], found["bitfit", ""][0]])]


def test_what_was_not_measured_is_not_drawn(results):
    unknown = [replace(own, peak_memory=None) for own in results]
    assert pareto(unknown, "memory") is None
    some = [replace(own, peak_memory=None) if own.method == "full" else own for own in results]
    assert "full" not in {row["method"] for row in pareto(some, "memory").rows}


def test_sweeps_have_what_recipes_say(results):
    assert [figure.name for figure in sweeps(results)] == ["sweep-bottleneck", "sweep-init_std", "sweep-top_layers"]
    rows = read(sweep(results, "bottleneck"))
    # The default is 64, which the study does not say; what has another scale of initial weights is no part of it.
    assert {(row["bottleneck"], row["other_settings"]) for row in rows} == {("8.0", ""), ("64.0", "")}
    for row in rows:
        setting = "bottleneck=8" if row["bottleneck"] == "8.0" else ""
        own = [one for one in results if (one.method, one.setting, one.task) == ("houlsby", setting, row["task"])]
        values = [one.test[SCORED[row["task"]]] for one in own]
        expected = (fmean(values), stdev(values) / 3**0.5)
        assert (float(row["mean"]), float(row["standard_error"])) == pytest.approx(expected)
        assert (row["metric"], row["seeds"]) == (SCORED[row["task"]], "3")
    curve = drawn(sweep(results, "bottleneck"))["cola (matthews correlation)"]
    assert curve == [[float(row["bottleneck"]), float(row["mean"])] for row in rows if row["task"] == "cola"]
    assert [row["init_std"] for row in sweep(results, "init_std").rows if row["task"] == "cola"] == [0.01, 0.1]
    top = sweep(results, "top_layers")
    assert [row["top_layers"] for row in top.rows if row["task"] == "cola"] == [1, 3]
    assert sweep(results, "rank") is None


def test_one_seed_has_no_error(tmp_path):
    own = invented(tmp_path, seeds=1, tasks=("films",))
    assert {row["standard_error"] for row in read(sweep(own, "bottleneck"))} == {""}
    assert {row["standard_error"] for row in read(other_scores(own))} == {""}
    assert "±" not in other_scores(own).shown[0]["films"]


def test_learning_curves(results):
    figures = {figure.name: figure for figure in learning_curves(results)}
    assert figures.keys() == {f"learning-{task}" for task in TASKS}
    rows = read(figures["learning-stsb"])
    assert {row["metric"] for row in rows} == {"r2"}
    for row in rows:
        own = [one for one in results if (one.method, one.setting, one.task) == (row["method"], row["setting"], "stsb")]
        factor = 1 - 1 / (1 + int(row["step"]) / 10)
        values = [one.test["r2"] * factor for one in own]
        expected = (fmean(values), min(values), max(values))
        assert tuple(float(row[name]) for name in ("mean", "low", "high")) == pytest.approx(expected)
        assert float(row["epoch"]) == int(row["step"]) / 10
    assert [row["step"] for row in rows if row["method"] == "bitfit"] == ["10", "20", "30"]


def test_confusion_matrices(results):
    figures = {figure.name: figure for figure in confusions(results)}
    assert figures.keys() == {"confusion-cola", "confusion-films", "confusion-news"}
    own = [one for one in results if (one.method, one.setting, one.task) == ("bitfit", "", "news")]
    figure = confusion(own)
    lines = [json.loads(line) for one in own for line in (one.folder / "predictions.jsonl").read_text().splitlines()]
    counted = Counter((line["label"], line["prediction"]) for line in lines)
    rows = read(figure)
    assert {(row["label"], row["prediction"]): int(row["rows"]) for row in rows if row["rows"] != "0"} == counted
    labels = Counter(line["label"] for line in lines)
    assert all(float(row["share"]) == pytest.approx(int(row["rows"]) / labels[row["label"]]) for row in rows)
    [panel, _] = figure.draw().axes
    [image] = panel.get_images()
    assert image.get_array()[0, 1] == pytest.approx(100 * counted["a", "b"] / labels["a"])
    assert [text.get_text() for text in panel.get_yticklabels()] == ["a", "b", "c"]
    news = groups_of([one for one in results if one.task == "news"])
    best = max(news, key=lambda group: fmean(one.validation_score for one in group.runs))
    assert figures["confusion-news"].note.startswith(best.label)


def test_the_table_of_sizes(results):
    rows = {(row["method"], row["setting"]): row for row in read(sizes(results))}
    houlsby = rows["houlsby", ""]
    assert (houlsby["shared"], houlsby["trained_of_backbone"], houlsby["classifiers"]) == (
        *("not shared", "all layer norms", "1"),
    )
    assert float(houlsby["without_head"]) == 600_000
    assert float(houlsby["percent_of_backbone"]) == pytest.approx(100 * 600_000 / 22_700_000)
    assert rows["full", ""]["trained_of_backbone"] == "all"
    assert rows["top", "top_layers=3"]["trained_of_backbone"] == "top 3 layers"
    assert rows["bitfit", ""]["shared"] == ""


def test_the_tables_of_scores(results):
    glue, other = glue_scores(results), other_scores(results)
    assert {row["task"] for row in glue.rows} == {"cola", "stsb"}
    for row in (*read(glue), *read(other)):
        expected = mean(results, row["method"], row["setting"], row["task"])
        assert float(row["mean"]) == pytest.approx(expected)
        assert row["metric"] == SCORED[row["task"]]
    for table, tasks in ((glue, ("cola", "stsb")), (other, ("films", "news"))):
        assert [line["method"] for line in table.shown][4] == "houlsby"
        line = table.shown[4]
        expected = fmean(100 * mean(results, "houlsby", "", task) for task in tasks)
        assert float(line["mean"]) == pytest.approx(expected, abs=0.051)
        for task in tasks:
            best = max((round(100 * mean(results, *key, task), 1), key) for key in METHODS)[1]
            marked = [own["method"] for own in table.shown if own[task].endswith("*")]
            assert groups_of([o for o in results if (o.method, o.setting) == best])[0].label in marked
    assert other_scores([one for one in results if one.task == "cola"]) is None
    assert glue_scores([one for one in results if one.task == "films"]) is None


def test_scores_are_shown_on_the_scale_of_their_metric(results):
    shown = {
        "bleu": ({"lora": (60.0, 62.0), "bitfit": (40.0,)}, {"lora": "61.0 ± 1.0*", "bitfit": "40.0"}),
        "loss": ({"lora": (2.0,), "bitfit": (1.0, 1.5)}, {"lora": "2.000", "bitfit": "1.250 ± 0.250*"}),
        "accuracy": ({"lora": (0.5,), "bitfit": (0.25,)}, {"lora": "50.0*", "bitfit": "25.0"}),
    }
    runs = [
        replace(
            results[0],
            **{"task": f"by {metric}", "method": method, "setting": "", "main_metric": metric, "seed": seed},
            **{"validation": {metric: value}, "test": {metric: value}},
        )
        for metric, (values, _) in shown.items()
        for method, own in values.items()
        for seed, value in enumerate(own)
    ]
    table = other_scores(runs)
    for metric, (_, expected) in shown.items():
        assert {line["method"]: line[f"by {metric}"] for line in table.shown} == expected
    assert [line["mean"] for line in table.shown] == [
        f"{(61 + 100 / 3 + 50) / 3:.1f}",
        f"{(40 + 100 / 2.25 + 25) / 3:.1f}",
    ]
    assert "Of loss, the value itself is shown, and lower is better" in table.note


# The report


class Page(HTMLParser):
    """What a page refers to, and its headings."""

    def __init__(self, text):
        super().__init__()
        self.references, self.headings, self.open = [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.references += [value for name, value in attributes if name in ("src", "href", "data")]
        self.headings += [dict(attributes)["id"] for _ in [0] if tag == "h2"]
        if tag not in ("meta", "img"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


@pytest.fixture(scope="module")
def few(tmp_path_factory):
    """Runs of which a report is drawn quickly."""
    own = invented(tmp_path_factory.mktemp("few"), tasks=("films",), seeds=2, methods=(("full", ""), ("bitfit", "")))
    return [replace(one, peak_memory=None) for one in own]


def test_a_figure_is_the_same_each_time(few, tmp_path):
    written = []
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        pareto(few, "time").write(tmp_path / name)
        written.append({path.name: path.read_bytes() for path in (tmp_path / name).iterdir()})
    assert written[0] == written[1]
    assert written[0].keys() == {f"pareto-time.{form}" for form in ("csv", "png", "svg")}


def test_the_report_is_one_page(few, tmp_path):
    page = write_report(few, tmp_path, title="films & more", settings="tasks: [<films>]\n")
    figures = ("parameters", "pareto-bytes", "pareto-time", "learning-films", "confusion-films")
    assert {path.name for path in tmp_path.iterdir()} == {
        "report.html",
        *(f"{name}.csv" for name in (*figures, "scores", "sizes")),
        *(f"{name}.{form}" for name in figures for form in ("png", "svg")),
    }
    text = page.read_text(encoding="utf-8")
    shown = Page(text)
    assert shown.headings == ["scores", "sizes", *figures, "settings", "runs"]
    assert not shown.open
    assert len(shown.references) == len(figures)
    assert all(own.startswith("data:image/svg+xml;base64,") for own in shown.references)
    assert "<h1>films &amp; more</h1>" in text
    assert "tasks: [&lt;films&gt;]" in text
    assert not re.search(r"<script|<link|url\(|@import", text)


@pytest.fixture
def study(few, tmp_path):
    """The folder of a study that has run."""
    entries = []
    for number, own in enumerate(few):
        folder = tmp_path / "study" / "runs" / f"{number:04}"
        folder.parent.mkdir(parents=True, exist_ok=True)
        folder.symlink_to(own.folder, target_is_directory=True)
        record = Record(
            hash=folder.name,
            state="done",
            tried={},
            scores={"validation": own.validation, "test": own.test},
            **{name: getattr(own, name) for name in ("task", "method", "setting", "seed", "learning_rate")},
            **{name: getattr(own, name) for name in ("main_metric", "trained_parameters", "backbone_parameters")},
            **{name: getattr(own, name) for name in ("nbytes", "seconds", "peak_memory", "head_parameters")},
        )
        (folder / "result.json").write_text(record.as_json())
        entries.append({"run": folder.name, "task": own.task, "method": own.method, "setting": own.setting})
    (tmp_path / "study" / "chosen.json").write_text(json.dumps(entries))
    (tmp_path / "study" / "study.yaml").write_text("tasks: [films]\n")
    return tmp_path / "study"


def test_the_command_reports_a_study(study, graftwork, few, monkeypatch):
    monkeypatch.setattr("graftwork.studies.report.figures", learning_curves)
    ran = graftwork("report", study, "--quiet")
    assert (ran.status, ran.err) == (0, "")
    page = study / "report" / "report.html"
    assert ran.out == f"saved in {page}\n"
    assert "tasks: [films]" in page.read_text()
    assert (study / "report" / "scores.csv").read_text() == other_scores(few).csv()
    assert "exists already" in graftwork("report", study, "--quiet", "--output", study / "report").err


def test_what_cannot_be_reported_is_refused(study, tmp_path):
    with pytest.raises(DataError, match=r"chosen.json cannot be read"):
        report(tmp_path)
    (study / "report").mkdir()
    (study / "report" / "mine.txt").touch()
    with pytest.raises(OutputError, match="is no report's folder"):
        report(study)
    (study / "chosen.json").write_text("[]")
    with pytest.raises(DataError, match="no run of the study"):
        report(study)
