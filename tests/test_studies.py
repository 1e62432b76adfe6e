"""Studies: a grid of measurements is recorded one by one, and taken up where it stopped."""

import json
import os
from functools import partial
from pathlib import Path

import pytest
import torch
from training.workbench import backbone_folder

from studies import (
    analogies,
    basins,
    domains,
    epochs,
    every_method,
    fast_step,
    pooling,
    rates,
    table_to_text,
    vectors,
    which_method,
)
from studies.grid import Grid, markdown
from studies.labelled import TASKS

__all__ = ["backbone_folder"]


def measure(letter, number, *, calls):
    """Fails for the number 2, and leaves a trace of each call."""
    (calls / f"{letter}{number}").touch(exist_ok=False)
    if number == 2:
        raise ValueError("two is too many")
    if number == 3:
        os._exit(9)
    return {"score": number / 10}


@pytest.fixture
def grid(tmp_path):
    return Grid(tmp_path / "r.jsonl", ("letter", "number"), tmp_path / "R.md", lambda records: f"{len(records)} found")


def test_a_grid_is_recorded_and_taken_up(grid, tmp_path):
    # One is measured, and the next was being written when the process was killed.
    grid.records.write_text(json.dumps({"letter": "a", "number": 1, "score": 0.7}) + '\n{"letter": "b", "num')
    wanted = [("a", 1), ("a", 2), ("a", 3), ("b", 1)]
    raised, killed = grid.run(wanted, partial(measure, calls=tmp_path), workers=1)
    assert raised.endswith("ValueError: two is too many\n")
    assert "BrokenProcessPool" in killed
    assert {path.name for path in tmp_path.iterdir()} == {"r.jsonl", "R.md", "a2", "a3", "b1"}
    assert grid.recorded() == [
        {"letter": "a", "number": 1, "score": 0.7},
        {"letter": "b", "number": 1, "score": 0.1},
    ]
    assert grid.page.read_text() == "2 found"


def test_a_page_is_written_anew_where_nothing_is_to_be_measured(grid):
    grid.records.write_text('{"letter": "a", "number": 1}\n')
    grid.page.write_text("old")
    assert grid.run([("a", 1)], measure, workers=1) == []
    assert grid.page.read_text() == "1 found"


def test_markdown():
    assert markdown(["a", "b"], [["x", "1"]]) == "| a | b |\n| --- | ---: |\n| x | 1 |"


def test_every_method_is_in_the_study():
    from graftwork.methods import METHODS, NAMED  # not for each process that measures

    assert set(every_method.methods()) == {*METHODS, *NAMED} - {"union"}


def test_a_table_of_some_cells():
    cell = {"metric": "f1", "steps": 1, "seconds": 12.0}
    records = [
        {"task": "mrpc", "method": "lora", "score": 0.5, "trained": 11, **cell},
        {"task": "rte", "method": "lora", "score": 0.25, "trained": 10, **cell, "metric": "accuracy"},
        {"task": "rte", "method": "ia3", "score": 0.125, "trained": 1_000, **cell, "metric": "accuracy"},
    ]
    *_, header, _, lora, ia3 = every_method.report(records).strip().splitlines()
    assert header == "| method | trained | mrpc (f1) | rte (accuracy) | seconds |"
    assert lora == "| lora | 10 | 0.500 | 0.250 | 12 + 12 |"
    assert ia3 == "| ia3 | 1,000 |  | 0.125 | - + 12 |"


def test_tables_that_are_held_out_are_not_trained_on(tmp_path):
    rows = [f'"table {i}","text {n} of {i}"' for i in range(110) for n in range(5)]
    (tmp_path / "devset.csv").write_text("\n".join(["mr,ref", *rows]) + "\n")
    held_out = table_to_text.split(tmp_path, tmp_path)
    told = {name: (tmp_path / f"{name}.csv").read_text().splitlines()[1:] for name in ("train", "validation")}
    tables = {name: {row.split(",")[0] for row in own} for name, own in told.items()}
    assert tables["validation"] == set(held_out)
    assert len(held_out) == 40
    assert not tables["validation"] & tables["train"]
    assert (len(told["validation"]), len(told["train"])) == (3 * 40, 8 * 40)


@pytest.mark.parametrize("network", ["mlp-64", "cnn"])
def test_the_loss_between_two_networks_is_measured(network, monkeypatch, tmp_path):
    for name, value in {"EPOCHS": 2, "STE_EPOCHS": 1, "POINTS": 3, "SHOWN": (network, 1)}.items():
        monkeypatch.setattr(basins, name, value)
    found = basins.measure(network, 1)
    ways = {*basins.WAYS, *(f"{way}, not repaired" for way in basins.WAYS)} if network == "cnn" else {*basins.WAYS}
    assert found["barriers"].keys() == found["curves"].keys() == ways
    assert found["barriers"]["weights"] < found["barriers"]["naive"]
    ends = [found["curves"][way][place] for way in basins.WAYS for place in (0, -1)]
    # Permuted networks are the same functions, to the rounding of float32 and of what is recorded.
    assert ends[1::2] == pytest.approx([ends[1]] * 4, abs=1e-3)
    record = {"network": network, "pair": 1, **found}
    assert f"| {network} |" in basins.report([record])
    basins.draw([record], tmp_path / "drawn.svg")
    assert (tmp_path / "drawn.svg").exists()


def test_the_interval_is_students():
    mean, half = fast_step.interval([1.0, 2.0, 3.0])
    assert mean == 2
    # t of 0.975 at two degrees of freedom is 4.303.
    assert half == pytest.approx(4.3027 * 1 / 3**0.5, rel=1e-4)
    assert fast_step.interval([1.0]) == (1.0, float("inf"))


@pytest.mark.parametrize(
    "grid",
    [
        *(analogies.GRID, basins.GRID, epochs.GRID, every_method.GRID, fast_step.GRID, pooling.GRID, rates.GRID),
        *(table_to_text.GRID, vectors.GRID, which_method.GRID),
    ],
    ids=lambda grid: grid.page.stem,
)
def test_a_published_page_is_that_of_its_records(grid):
    if not grid.records.exists():
        pytest.skip("this study was not run")
    assert grid.page.read_text(encoding="utf-8") == grid.report(grid.recorded())


def test_studies_read_their_tasks_as_graftwork_does(tmp_path):
    (tmp_path / "crowdflower").mkdir()
    rows = [f"tweet {i // 2},{('Y', 'Yes', 'N', 'No', 'NA', 'N/A', '')[i // 2 % 7]}\n" for i in range(140)]
    (tmp_path / "crowdflower" / "1377884570_tweet_global_warming.csv").write_text("tweet,existence\n" + "".join(rows))
    TASKS["warming"].write(tmp_path, tmp_path)
    texts = [(tmp_path / f"{name}.jsonl").read_text() for name in ("train", "validation", "test")]
    found = [json.loads(line) for line in "".join(texts).splitlines()]
    assert len(found) == len({row["text"] for row in found}) == 60, "each text once, and none without a label"
    assert {row["label"] for row in found} == {"Yes", "No", "N/A"}


def test_domains_are_read_as_graftwork_does(tmp_path):
    (tmp_path / "fdu_mtl").mkdir()
    for name in domains.names():
        for split, count in (("train", 650), ("test", 410)):
            lines = "".join(f"{i % 2}\t{split} review {i} of {name}\n" for i in range(count))
            (tmp_path / "fdu_mtl" / f"{name}.task.{split}").write_text(lines)
    domains.write(tmp_path, tmp_path / "out")
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == sorted(domains.names())
    own = {split: (tmp_path / "out" / "books" / f"{split}.jsonl").read_text().splitlines() for split in domains.ROWS}
    assert {split: len(rows) for split, rows in own.items()} == domains.ROWS
    assert json.loads(own["validation"][0]) == {"text": "train review 400 of books", "label": "negative"}
    assert len({row["label"] for row in TASKS["domains"].read(tmp_path)}) == 16


def test_the_study_of_methods_is_a_study():
    from graftwork.studies import Study
    from graftwork.studies.arms import settings_of
    from graftwork.tasks import find_task

    study = Study.from_yaml(Path("studies/which_method.yaml"))
    assert sum(len(settings_of(name, own)) for name, own in study.methods.items()) == 19
    assert len(study.tasks) == 13
    for name, own in study.tasks.items():
        find_task(name if own.task is None else own.task["base"])


def test_a_task_of_the_study_of_methods_is_measured_and_shown(backbone_folder, tmp_path, monkeypatch):
    rows = [f"{('good', 'bad')[i % 2]} film {i},{('yes', 'no')[i % 2]}" for i in range(24)]
    (tmp_path / "films").mkdir()
    for split in ("train", "validation", "test"):
        (tmp_path / "films" / f"{split}.csv").write_text("\n".join(["text,label", *rows]) + "\n")
    (tmp_path / "study.yaml").write_text(f"""
backbone: {backbone_folder}
tasks: {{films: {{task: {{name: films, text: text, metrics: accuracy}}, data: data/films}}}}
methods: {{full-fine-tuning: {{}}, houlsby: {{bottleneck: [8, 64]}}}}
train: {{num_train_epochs: 1}}
search: {{grid: {{learning_rate: {{times: [1, 3]}}}}}}
seeds: 1
""")
    monkeypatch.setattr(which_method, "STUDY", tmp_path / "study.yaml")
    assert which_method.tasks() == ["films"]
    found = which_method.measure("films", data=tmp_path, work=tmp_path / "work", workers=1)
    record = json.loads(json.dumps({"task": "films", **found}))
    assert {one["method"] for one in record["results"]} == {"full-fine-tuning", "houlsby"}
    assert {*record["rates"].values()} <= {1.0, 3.0}
    assert len(record["spans"]) == 3, "two layers have three spans"
    page = which_method.report([record])
    assert "| houlsby (bottleneck=64) |" in page
    assert "still to be run" not in page
    which_method.draw([record], tmp_path)
    assert (tmp_path / "which_method.svg").exists()


def test_what_the_study_of_methods_says_of_claims():
    def run(task, label, test):
        method, _, setting = label.rstrip(")").partition(" (")
        size = {
            "trained_parameters": 110,
            "head_parameters": 10,
            "backbone_parameters": 1000,
            "nbytes": 1,
            "seconds": 2.0,
        }
        scores = {"main_metric": "accuracy", "validation": {"accuracy": 0.5}, "test": {"accuracy": test}}
        return {"task": task, "method": method, "setting": setting, "learning_rate": 1e-3, "seed": 0, **scores, **size}

    scores = {"full-fine-tuning": (0.80, 0.70), "houlsby (bottleneck=64)": (0.79, 0.69), "not-shared": (0.9, 0.72)}
    scores["one-a-layer"] = (0.1, 0.70)
    records = [
        {
            "task": task,
            "results": [run(task, label, own[i]) for label, own in scores.items()],
            "rates": dict.fromkeys(scores, 3.0),
            "spans": [[0, 0, -0.01], [0, 1, -0.4], [1, 1, -0.03]],
        }
        for i, task in enumerate(("rte", "emotion"))
    ]
    page = which_method.report(records)
    assert "| houlsby (bottleneck=64) | 110 | 10.00 % | 74.0 | -1.0 | 2 s | 3 x 2 |" in page
    assert "houlsby (bottleneck=64) less full-fine-tuning: -1.0 points in the mean over 2 tasks" in page
    assert "not-shared less one-a-layer: +2.0 points in the mean over 1 tasks" in page
    assert "-3.0 % for the worst layer, -2.0 % in the mean" in page
    assert "-40.0 % in the mean over 2 tasks" in page
    assert "11 are still to be run: cola, mrpc" in page


def test_an_analogy_is_scored_at_the_scale_that_validation_chooses():
    scores = {"validation": [0.5, 0.6, 0.7, 0.6], "test": [0.50, 0.60, 0.55, 0.90], "own": 0.8}
    cells = [{"known": known, "asked": asked, "seed": 0, **scores} for known, asked in analogies.PAIRS]
    # Half of the pairs are measured before the others.
    assert "No seed has all of its pairs yet" in analogies.report(cells[::2])
    page = analogies.report([*cells, {**cells[0], "seed": 1}])
    rows = [line.split(" | ") for line in page.splitlines() if line.startswith("| the ")]
    assert [(row[0], row[-1]) for row in rows] == [
        ("| the known domain's model", "50.0 |"),
        ("| the analogy", "55.0 |"),
        ("| the asked domain's own", "80.0 |"),
    ]


def test_halves_of_texts_go_on_or_do_not():
    assert analogies.halves(["a b c d", "e f", "g h i j k l"]) == [
        {"text": "a b", "pair": "c d", "label": "same"},
        {"text": "e", "pair": "j k l", "label": "other"},
        {"text": "g h i", "pair": "j k l", "label": "same"},
    ]


def test_an_analogy_moves_the_body_and_leaves_the_head():
    start, away, near = ({"w": torch.tensor([value])} for value in (1.0, 2.0, 5.0))
    start["head.weight"] = torch.tensor([7.0])
    assert analogies.moved(start, away, near, 0.5) == {"w": torch.tensor([2.5]), "head.weight": torch.tensor([7.0])}


def test_lines_of_task_vectors_are_means_over_whole_seeds():
    def line(of, seed, own):
        scores = {"own": [own] * len(vectors.ALPHAS), "others": [0.5] * len(vectors.ALPHAS)}
        return {"study": "wise-ft", "of": of, "seed": seed, "at": list(vectors.ALPHAS), "scores": scores, "seconds": 1}

    one, other = vectors.SOURCES
    records = [line(one, 0, 0.6), line(other, 0, 0.8), line(one, 1, 0.1)]
    assert vectors.averaged(records, "wise-ft")["own"] == [[pytest.approx(0.7)] * len(vectors.ALPHAS)]
    page = vectors.report(records)
    assert "| 0.4 | 70.0 | 50.0 |" in page
    assert "1\nseeds" in page
    assert "## " not in vectors.report(records[:1])
