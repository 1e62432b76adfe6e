"""How far a run is, as it is shown: on a terminal, in a file, and not at all."""

import io
import re
import sys

import pytest
from rich.console import Console
from training.workbench import FAST

from graftwork import AdaptedModel, Backbone, LoRA, Task, TrainingSettings, evaluate, tune, tune_many
from graftwork.tasks import load_split
from graftwork.training import display
from graftwork.training.display import SILENT, Bars, Lines, readable_seconds, shown_on_stderr
from graftwork.training.run_summary import of_training
from graftwork.training.scoring import Scorer

UPPER = LoRA(rank=4, targets="layers.1.*")
"""Below it is something for a prefix cache to keep."""


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("GRAFTWORK_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def task(data):
    return Task(name="classes", text="text", data=str(data["classes"]))


@pytest.fixture
def every_line(monkeypatch):
    """As if each step took longer than is waited between two lines."""
    monkeypatch.setattr(display, "EVERY", 0.0)


class Clock:
    """Shows what it is set to."""

    def __init__(self):
        self.now = 100.0

    def __call__(self):
        return self.now


# Lines


def test_lines_come_every_few_seconds(capsys):
    clock = Clock()
    lines = Lines(clock)
    with lines.bar("a", 1000, "rows") as bar:
        for _ in range(20):
            clock.now += 1.0
            bar.advance(50)
    assert capsys.readouterr().err.splitlines() == [
        *("a: 250 of 1,000 rows, 0:05", "a: 500 of 1,000 rows, 0:10"),
        *("a: 750 of 1,000 rows, 0:15", "a: 1,000 of 1,000 rows, 0:20"),
    ]


def test_several_bars_have_one_pace(capsys):
    clock = Clock()
    lines = Lines(clock)
    bars = [lines.begin(name, 10, "steps") for name in "abc"]
    clock.now += 6.0
    for bar in bars:
        bar.advance(1)
    assert capsys.readouterr().err.splitlines() == ["a: 1 of 10 steps, 0:06"]


def test_a_score_is_a_line_at_once(capsys):
    lines = Lines(Clock())
    lines.begin("a", 10, "steps").tell("validation accuracy 0.500")
    assert capsys.readouterr().err == "a: validation accuracy 0.500\n"


@pytest.mark.parametrize(("seconds", "shown"), [(0.9, "0:00"), (65, "1:05"), (3600 + 125, "1:02:05")])
def test_seconds_are_readable(seconds, shown):
    assert readable_seconds(seconds) == shown


# On a terminal


def shown_on_terminal(act):
    file = io.StringIO()
    bars = Bars(Console(file=file, force_terminal=True, width=80, color_system=None))
    try:
        act(bars)
        bars.progress.refresh()
    finally:
        bars.stop()
    return re.sub(r"\x1b\[[\d;?]*[a-zA-Z]", "", file.getvalue())


def test_a_bar_shows_its_count_the_time_and_the_epoch_in_80_columns():
    def act(bars):
        bar = bars.begin("movie-reviews", 2140, "steps", done=100)
        bar.move(214, note="epoch 1/10 accuracy 0.757 loss 0.539")

    last = shown_on_terminal(act).rstrip().splitlines()[-1]
    for part in ("movie-reviews", "214/2140", "0:00:00", "epoch 1/10 accuracy 0.757"):
        assert part in last


def test_a_bar_of_scoring_goes_when_it_is_done():
    def act(bars):
        with bars.bar("words [/b]", 10, "steps"):
            pass
        with bars.bar("words, validation", 10, "rows", stays=False):
            bars.progress.refresh()
        bars.say("[bold]as it is")
        assert [task.description for task in bars.progress.tasks] == ["words [/b]"]

    found = shown_on_terminal(act)
    assert "words, validation" in found
    assert "[bold]as it is" in found


def test_where_lines_and_bars_are_shown(monkeypatch):
    for name in ("FORCE_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TERM", "xterm")
    with shown_on_stderr(shown=False) as found:
        assert found is SILENT
    with shown_on_stderr(shown=True) as found:
        assert isinstance(found, Lines)
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    with shown_on_stderr(shown=True) as found:
        assert isinstance(found, Bars)


def test_a_terminal_is_left_as_it_was(monkeypatch):
    monkeypatch.setenv("TTY_COMPATIBLE", "1")
    monkeypatch.setenv("TERM", "xterm")
    before = sys.stderr
    inside = []

    def fail():
        with shown_on_stderr(shown=True) as found:
            found.begin("a", 10, "steps")
            inside.append(sys.stderr)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert inside[0] is not before
    assert sys.stderr is before


# Runs


def parts_in(err):
    """What before the first colon names a part of a run."""
    return {line.partition(":")[0] for line in err.splitlines()}


def test_every_part_of_a_run_is_shown(backbone, task, capsys, every_line):
    test = task.override(test_fraction=0.2)
    settings = FAST | {"prefix_cache": "on", "baseline": "auto", "logging_steps": 1}
    tune(backbone, task=test, method=UPPER, progress=True, **settings)
    err = capsys.readouterr().err
    assert {"classes", *(f"classes, {part}" for part in ("baseline", "prefix cache", "validation", "test"))} <= (
        parts_in(err)
    )
    assert re.search(r"classes: \d+ of \d+ steps, \d:\d\d, epoch 2/2 accuracy \d\.\d+ loss \d\.\d+", err)
    assert len(re.findall(r"classes: step \d+ of \d+, validation accuracy \d\.\d\d\d$", err, re.MULTILINE)) == 2


def test_scores_are_told_once_each_where_nothing_else_is_due(backbone, task, capsys, monkeypatch):
    monkeypatch.setattr(display, "EVERY", 3600.0)
    tune(backbone, task=task, method=UPPER, progress=True, **FAST)
    backbone_line, steps, *scores = capsys.readouterr().err.splitlines()
    assert backbone_line.startswith("backbone ")
    assert " steps: 2 epochs of batches of 8" in steps
    assert [line.partition(", ")[2][:19] for line in scores] == ["validation accuracy"] * 2


def test_nothing_is_shown_unasked(backbone, task, capsys, every_line):
    adapter = tune(backbone, task=task, method=UPPER, **FAST)
    evaluate(adapter, backbone=backbone)
    assert capsys.readouterr().err == ""


def test_each_of_several_runs_is_shown(backbone, task, capsys, every_line):
    names = ("one", "two")
    tune_many(backbone, {name: {"task": task, "method": "lora"} for name in names}, progress=True, **FAST)
    err = capsys.readouterr().err
    for name in names:
        assert f"{name}: method lora; " in err
        assert re.search(rf"{name}: \d+ of \d+ steps, 0:0\d, epoch 1/2", err)
        assert f"{name}, validation: " in err
        assert re.search(rf"{name}: step \d+ of \d+, validation accuracy", err)


def test_generating_is_shown_and_gives_the_same_texts(backbones, kinds_data, capsys, every_line):
    backbone = Backbone.load(str(backbones["gpt2"]), dtype="float32", device="cpu")
    fields = {"kind": "generation", "text": "source", "label": "target", "metrics": ["bleu"]}
    task = Task.parse({"name": "g", "data": str(kinds_data["generation"]), **fields}, origin="it")
    adapter = tune(backbone, task=task, method=LoRA(rank=2), max_steps=1, max_new_tokens=3, progress=True)
    assert re.search(r"^g, validation, generating: \d+ of \d+ texts", capsys.readouterr().err, re.MULTILINE)
    rows = load_split(task, "validation", grouped=True)
    model = AdaptedModel(backbone, {"g": adapter})
    try:
        scorer = Scorer(model, "g", task, rows, batch_size=3)
        scorer()
        assert list(scorer.outcome[0]) == model.texts(list(rows["text"]), "g", batch_size=3)
    finally:
        model.detach()


# What a run begins with


def of(given, **resolved):
    values = {"learning_rate": 1e-3, "head_learning_rate": 3e-3, "num_train_epochs": 10.0, **resolved}
    return of_training(TrainingSettings(**{**values, **given}), TrainingSettings(**given), 340)


def test_defaults_are_named():
    assert of({}) == (
        "340 steps: 10 epochs of batches of 32; learning rate 0.001, head 0.003; "
        "defaults (docs/defaults.md): epochs, batch size, learning rate, head's learning rate"
    )
    assert of({"learning_rate": 0.5, "num_train_epochs": 2.0}).endswith(": batch size, head's learning rate")
    own = {"learning_rate": 0.5, "head_learning_rate": 0.5, "num_train_epochs": 2.0, "per_device_train_batch_size": 8}
    assert of(own) == "340 steps: 2 epochs of batches of 8; learning rate 0.5, head 0.5"
    assert of({**own, "gradient_accumulation_steps": 2}).startswith("340 steps: 2 epochs of batches of 16; ")


def test_the_number_of_steps_is_that_of_the_training(backbone, task, capsys):
    for settings in ({}, {"gradient_accumulation_steps": 5}, {"max_steps": 3}, {"num_train_epochs": 1.5}):
        tune(backbone, task=task, method=UPPER, progress=True, **FAST | settings)
        err = capsys.readouterr().err
        said = int(re.search(r"^(\d+) steps: ", err, re.MULTILINE)[1])
        assert said == max(int(number) for number in re.findall(r"step (\d+) of", err))
        assert {int(number) for number in re.findall(r"step \d+ of (\d+)", err)} == {said}
