"""One run of a study: who holds it, what it is known by, where it goes on, and what is kept of its predictions."""

import json
import os
import shutil
import socket
import threading
import time
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
from comparing import compare
from PIL import Image

import graftwork as gw
from graftwork.errors import DataError, InterruptedRunError
from graftwork.folders import OWNER, Owner
from graftwork.kinds.scoring import compute
from graftwork.settings.yamlfile import read_yaml
from graftwork.studies import claims, single_run
from graftwork.studies.arms import LoadedTask
from graftwork.studies.claims import claimed
from graftwork.studies.identity import fingerprint_of_backbone, fingerprint_of_data, hash_of
from graftwork.studies.plan import Plan
from graftwork.studies.predictions import plain, score
from graftwork.studies.records import RUNS
from graftwork.studies.study import Study
from graftwork.studies.work_loop import work
from graftwork.tasks import Task, load
from graftwork.training import Recipe
from graftwork.training.progress import Log

# Who holds a run


def test_a_run_is_held_once(tmp_path):
    place = tmp_path / ".a.running"
    with claimed(place, "run a") as first:
        assert first is not None
        with claimed(place, "run a") as second:
            assert second is None
        assert (place / claims.PULSE).is_file()
    with claimed(place, "run a") as again:
        assert again is not None
        again.ended = True
    assert not place.exists()


def test_what_a_dead_process_held_is_taken_over(tmp_path):
    place = tmp_path / ".a.running"
    place.mkdir()
    dead = replace(Owner.this_process(), pid=2**22 + 1)
    (place / OWNER).write_text(json.dumps(asdict(dead)))
    with claimed(place, "run a") as taken:
        assert taken is not None


@pytest.mark.parametrize("silent", [0.0, claims.STALE + 5])
def test_a_process_elsewhere_is_dead_when_it_was_silent_for_long(tmp_path, silent):
    place = tmp_path / ".a.running"
    inner = place / ".adapter.tuning"
    inner.mkdir(parents=True)
    other = replace(Owner.this_process(), host=socket.gethostname() + "-other")
    for folder in (place, inner):
        (folder / OWNER).write_text(json.dumps(asdict(other)))
    (place / claims.PULSE).touch()
    os.utime(place / claims.PULSE, (time.time() - silent,) * 2)
    with claimed(place, "run a") as taken:
        assert (taken is None) == (silent == 0.0)
    assert (inner / OWNER).exists() == (silent == 0.0)


@pytest.mark.parametrize("later", [False, True])
def test_who_takes_over_from_a_dead_process_keeps_the_folder(tmp_path, monkeypatch, later):
    place = tmp_path / ".a.running"
    place.mkdir()
    dead, quick, third = (
        replace(Owner.this_process(), host=f"{socket.gethostname()}-{name}") for name in ("dead", "quick", "third")
    )
    (place / OWNER).write_text(json.dumps(asdict(dead)))
    plain, asked = Owner.of, []

    def read(folder):
        found = plain(folder)
        asked.append(folder)
        if len(asked) == 1:  # another process takes over between the look and the removal
            (place / OWNER).write_text(json.dumps(asdict(quick)))
        if later and folder != place:  # and one more after that
            (place / OWNER).write_text(json.dumps(asdict(third)))
        return found

    monkeypatch.setattr(claims.Owner, "of", read)
    with claimed(place, "run a") as taken:
        assert taken is None
    assert plain(place) == (third if later else quick)
    assert not list(place.glob("dead.*"))


def test_processes_write_in_turn(tmp_path):
    inside, most = [], []

    def write():
        for _ in range(5):
            with claims.in_turn(tmp_path / ".writing", "writing"):
                inside.append(1)
                most.append(len(inside))
                time.sleep(0.002)
                inside.pop()

    threads = [threading.Thread(target=write) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == [1] * 15
    assert not (tmp_path / ".writing").exists()


def test_a_process_shows_that_it_lives(tmp_path, monkeypatch):
    monkeypatch.setattr(claims, "EVERY", 0.01)
    place = tmp_path / ".a.running"
    with claimed(place, "run a"):
        os.utime(place / claims.PULSE, (1.0, 1.0))
        deadline = time.monotonic() + 10
        while (place / claims.PULSE).stat().st_mtime == 1.0:
            assert time.monotonic() < deadline
            time.sleep(0.01)


# What it is known by

RECIPE = Recipe.parse(
    {
        "backbone": "minilm",
        "dtype": "float32",
        "task": {"name": "words", "text": "text", "data": "words.csv"},
        "method": {"name": "lora", "rank": 2},
        "train": {"learning_rate": 0.01},
    }
)


def named(**changes):
    facts = {"data": "d", "backbone": "b"} | {key: changes.pop(key) for key in ("data", "backbone") if key in changes}
    values = RECIPE.model_dump(mode="json")
    for key, value in changes.items():
        section, name = key.split("__")
        values[section][name] = value
    return hash_of(Recipe.parse(values), **facts)


@pytest.mark.parametrize(
    "change",
    [
        *({"data": "other"}, {"backbone": "other"}, {"train__seed": 1}, {"train__learning_rate": 0.02}),
        *({"method__rank": 3}, {"method__name": "dora"}, {"task__kind": "regression"}, {"train__max_length": 64}),
        {"train__per_device_eval_batch_size": 8},
    ],
)
def test_what_determines_a_run_is_in_its_name(change):
    assert named(**change) != named()


@pytest.mark.parametrize(
    "change",
    [
        *({"task__name": "other"}, {"task__data": "elsewhere.csv"}, {"train__logging_steps": 3}),
        *({"train__prefix_cache_gb": 9.0}, {"train__baseline": "off"}),
    ],
)
def test_what_changes_nothing_is_not(change):
    assert named(**change) == named()


def images(folder, *shades):
    """The fingerprint of data that are images, one class after the other."""
    for i, shade in enumerate(shades):
        file = folder / "ab"[i % 2] / f"{i}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (4, 4), shade).save(file)
    kind = {"kind": "image-classification", "validation_fraction": 0.25, "test_fraction": 0.25}
    return fingerprint_of_data(load(Task(name="x", data=str(folder), **kind)))


def test_images_count_by_their_pixels_and_not_by_their_paths(tmp_path):
    shades = list(range(0, 160, 10))
    first = images(tmp_path / "first", *shades)
    assert images(tmp_path / "second", *shades) == first
    assert images(tmp_path / "first", 255, *shades[1:]) != first


def swap_words(folder):
    file = folder / "tokenizer.json"
    written = json.loads(file.read_text())
    words = written["model"]["vocab"]
    words["good"], words["bad"] = words["bad"], words["good"]
    file.write_text(json.dumps(written))


def change_dropout(folder):
    file = folder / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "hidden_dropout_prob": 0.5}))


@pytest.mark.parametrize(
    ("change", "same"), [(swap_words, False), (change_dropout, False), (lambda folder: None, True)]
)
def test_dropout_and_tokenizer_of_the_backbone_are_part_of_it(values, backbone_folder, tmp_path, change, same):
    shutil.copytree(backbone_folder, tmp_path / "other")
    change(tmp_path / "other")
    study = {"tasks": {"words": values()["tasks"]["words"]}, "methods": {"full-fine-tuning": {}}, "search": None}
    first = Plan(Study.parse(values(**study)), tmp_path).arms[0]
    other = Plan(Study.parse(values(**study, backbone=str(tmp_path / "other"))), tmp_path).arms[0]
    assert first.backbone.fingerprint == other.backbone.fingerprint
    other.backbone.tokenizer(["good bad", "good"], padding=True, truncation=True, max_length=5)
    assert (first.job({}, 0).hash == other.job({}, 0).hash) == same
    assert fingerprint_of_backbone(other.backbone) == other.fingerprint


def test_the_library_is_part_of_it(monkeypatch):
    before = named()
    monkeypatch.setattr(gw, "__version__", "99.0")
    assert named() != before


# Where it goes on


def test_a_run_that_was_cut_goes_on_from_its_checkpoint(values, tmp_path, monkeypatch):
    steps = {"max_steps": 6, "eval_strategy": "steps", "eval_steps": 2, "head_learning_rate": 0.03}
    study = values(
        tasks={"words": values()["tasks"]["words"]}, methods={"lora": {"rank": 1}}, search=None, seeds=1, train=steps
    )
    whole = compare(study, output=tmp_path / "whole")
    seen, plain_step, plain_tune = [], Log.on_step_end, single_run.tune_recipe

    def on_step_end(self, args, state, control, **options):
        seen.append(state.global_step)
        if seen == [1, 2, 3, 4, 5]:
            raise KeyboardInterrupt
        return plain_step(self, args, state, control, **options)

    monkeypatch.setattr(Log, "on_step_end", on_step_end)
    with pytest.raises(InterruptedRunError, match=r"interrupted; 0 runs done(.|\n)*the same command goes on"):
        compare(study, output=tmp_path / "cut")
    [working] = (tmp_path / "cut" / "runs").iterdir()
    before = float((working / single_run.SPENT).read_text())
    asked = []
    monkeypatch.setattr(
        single_run, "tune_recipe", lambda *a, **own: asked.append(own["resume"]) or plain_tune(*a, **own)
    )
    found = compare(study, output=tmp_path / "cut")
    assert (asked, seen) == ([True], [1, 2, 3, 4, 5, 5, 6])
    [one], [other] = found.results, whole.results
    assert (one.validation, one.test) == (other.validation, other.test)
    assert one.seconds > before > 0
    for name in ("metrics.jsonl", "predictions.jsonl", "recipe.yaml", "adapter/adapter.safetensors"):
        assert (one.folder / name).read_bytes() == (other.folder / name).read_bytes()


@pytest.mark.parametrize("share_passes", [False, True])
def test_a_run_is_trained_on_the_data_that_its_name_is_of(values, tmp_path, share_passes):
    task = values()["tasks"]["words"]["task"]
    file = tmp_path / "words.csv"
    text = Path(task["data"]).read_text()
    changes = {"methods": {"head-only": {}}, "search": None, "share_passes": share_passes}
    study = Study.parse(values(tasks={"words": {"task": {**task, "data": str(file)}}}, **changes))
    scores = []
    for later in (text, text.replace("negative", "x").replace("positive", "negative").replace("x", "positive")):
        file.write_text(text)
        output = tmp_path / str(len(scores))
        (output / RUNS).mkdir(parents=True)
        plan = Plan(study, output)
        file.write_text(later)
        work(plan, lambda job, record: None)
        scores.append({record.hash: record.scores for record in plan.records(plan.standings())})
    assert len(scores[0]) == 2
    assert scores[0] == scores[1]


def test_a_run_whose_images_changed_meanwhile_has_failed(values, tmp_path, monkeypatch):
    images(tmp_path / "images", *range(0, 160, 10))
    kind = {"kind": "image-classification", "validation_fraction": 0.25, "test_fraction": 0.25}
    data = load(Task(name="pictures", data=str(tmp_path / "images"), **kind))
    pictures = LoadedTask("pictures", data.task, data, fingerprint_of_data(data), (0,), {})
    pictures.refuse_changed()
    Image.new("L", (4, 4), 255).save(tmp_path / "images" / "a" / "0.png")
    with pytest.raises(DataError, match="images of task 'pictures' have changed"):
        pictures.refuse_changed()
    monkeypatch.setattr(LoadedTask, "refuse_changed", lambda own, plain=LoadedTask.refuse_changed: plain(pictures))
    study = values(tasks={"words": values()["tasks"]["words"]}, methods={"head-only": {}}, search=None, seeds=1)
    plan = Plan(Study.parse(study), tmp_path / "study")
    (tmp_path / "study" / RUNS).mkdir(parents=True)
    work(plan, lambda job, record: None)
    [failed] = plan.failed(plan.standings())
    assert failed.error["kind"] == "DataError"
    assert not (plan.store.working(failed.hash) / single_run.WORK).exists()


@pytest.mark.parametrize("same", [True, False])
def test_a_run_goes_on_unless_what_determines_it_has_changed(values, tmp_path, monkeypatch, same):
    steps = {"max_steps": 3, "eval_strategy": "steps", "eval_steps": 1}
    study = values(tasks={"words": values()["tasks"]["words"]}, methods={"lora": {"rank": 1}}, search=None, seeds=1)
    study["train"] = {**study["train"], **steps}
    seen, plain = [], Log.on_step_end

    def on_step_end(self, args, state, control, **options):
        seen.append(state.global_step)
        if seen == [1, 2]:
            raise KeyboardInterrupt
        return plain(self, args, state, control, **options)

    monkeypatch.setattr(Log, "on_step_end", on_step_end)
    with pytest.raises(InterruptedRunError):
        compare(study, output=tmp_path / "out")
    [working] = (tmp_path / "out" / "runs").iterdir()
    (working / single_run.SPENT).write_text("1000")
    begun = working / f".{single_run.WORK}.tuning" / "recipe.yaml"
    if same:
        study["train"]["logging_steps"] = 1
        study["tasks"] = {"other": study["tasks"]["words"]}
    else:
        begun.write_text(begun.read_text().replace("rank: 1\n", "rank: 2\n"))
    [one] = compare(study, output=tmp_path / "out").results
    assert seen == ([1, 2, 2, 3] if same else [1, 2, 1, 2, 3])
    assert (one.seconds > 1000) == same
    recipe = read_yaml(one.folder / "adapter" / "recipe.yaml")
    assert recipe["method"]["rank"] == 1
    assert (recipe["train"]["logging_steps"] == 1) == same


# What is kept of its predictions

RANDOM = np.random.default_rng(0)
TAGS = ("O", "B-A", "I-A")
OUTCOMES = {
    "classification": (("a", "b", "c"), RANDOM.normal(size=(20, 3)), RANDOM.integers(0, 3, 20)),
    "image-classification": (("a", "b"), RANDOM.normal(size=(20, 2)), RANDOM.integers(0, 2, 20)),
    "multiple-choice": (None, RANDOM.normal(size=(20, 4)), RANDOM.integers(0, 4, 20)),
    "multi-label-classification": (("a", "b", "c"), RANDOM.normal(size=(20, 3)), RANDOM.integers(0, 2, (20, 3))),
    "regression": (None, RANDOM.normal(size=(20, 1)), RANDOM.normal(size=20)),
    "token-classification": (
        TAGS,
        [[TAGS[i] for i in RANDOM.integers(0, 3, 5)] for _ in range(20)],
        [[TAGS[i] for i in RANDOM.integers(0, 3, 5)] for _ in range(20)],
    ),
    "generation": (None, ["the cat sat here", "a dog ran"], [["the cat sat down", "a cat sat"], ["a dog ran off"]]),
}
METRICS = {
    "classification": ("accuracy", "f1_macro"),
    "image-classification": ("accuracy",),
    "multiple-choice": ("accuracy",),
    "multi-label-classification": ("f1_micro", "f1_macro", "subset_accuracy"),
    "regression": ("r2", "spearman", "mae"),
    "token-classification": ("token_accuracy", "seqeval_f1"),
    "generation": ("bleu",),
}


@pytest.mark.parametrize("kind", OUTCOMES)
def test_predictions_by_name_have_the_scores_of_the_outputs(kind):
    labels, predictions, there = OUTCOMES[kind]
    fields = {"text": "x", "label": "y"} | ({} if labels is None else {"labels": labels})
    fields |= {"image": "x", "text": None} if kind == "image-classification" else {}
    fields |= {"choices": ("b", "c", "d", "e")} if kind == "multiple-choice" else {}
    task = Task(name="t", kind=kind, **fields)
    said, labelled = plain(task, predictions, there)
    read = json.loads(json.dumps([said, labelled]))
    values = task.model_dump(mode="json", exclude_none=True)
    for metric in METRICS[kind]:
        expected = compute([metric], kind, predictions, there)[metric]
        assert score(values, metric, *read) == pytest.approx(expected, rel=1e-12)
