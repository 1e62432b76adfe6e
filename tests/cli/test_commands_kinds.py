"""Every kind of task on the command line: tune, evaluate, predict, inspect, and the card that is saved."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny import outdate
from training.kinds import KINDS, SETTINGS, backbones, kinds_data, write_jsonl
from training.workbench import flags

from graftwork.cli import main

__all__ = ["backbones", "kinds_data"]

CASES = ("tags", "choices", "generation", "images")


@pytest.fixture(scope="module")
def tuned(backbones, kinds_data, tmp_path_factory):
    """A folder with one adapter for each case."""
    folder = tmp_path_factory.mktemp("adapters-of-kinds")
    for case in CASES:
        backbone, named = KINDS[case]
        arguments = ["--backbone", str(backbones[backbone]), "--dtype", "float32", "--method", "lora", "--quiet"]
        data = ["--data", str(kinds_data[case]), *named, "--task.validation_fraction", "0.2"]
        with pytest.raises(SystemExit) as end:
            main(["tune", *data, *arguments, "--method.rank", "4", *flags(SETTINGS), "--output", str(folder / case)])
        assert end.value.code == 0
    return folder


@pytest.mark.parametrize("case", CASES)
def test_evaluate_gives_the_very_scores_in_the_folder(graftwork, tuned, case):
    run = graftwork("evaluate", tuned / case, "--dtype", "float32", "--json")
    assert run.status == 0, run.err
    found = json.loads(run.out)
    assert (found.pop("task"), found.pop("split")) == (case, "validation")
    saved = json.loads((tuned / case / "adapter.json").read_text())["metrics"]["validation"]
    assert found == {name: value for name, value in saved.items() if name in found}
    assert set(saved) == {"loss", *found}


SAYS = {
    "tags": ("words -> O, B-BAD, B-GOOD", 'model.predict([["Some", "words"]])'),
    "choices": ("questions with choices -> a choice", 'model.predict([("a question", ["one choice", "another"])])'),
    "generation": ("texts -> a text", 'model.predict(["some text"])'),
    "images": ("images -> bright, dark", 'model.predict(["image.png"])'),
}


@pytest.mark.parametrize("case", CASES)
def test_inspect_and_the_card_say_what_it_takes(graftwork, tuned, case):
    described, call = SAYS[case]
    assert f"{case} ({described})" in graftwork("inspect", tuned / case).out
    card = (tuned / case / "README.md").read_text()
    taken, said = described.split(" -> ")
    assert f"- Input: {taken}\n- Output: {said}\n" in card
    assert call in card


# predict


def no_such_constant(name):
    raise AssertionError(f"{name} is no JSON")


def test_predict_says_numbers_of_an_empty_text_or_nothing(graftwork, backbones, kinds_data, tmp_path):
    """A causal model's tokenizer makes nothing of it."""
    data = ["--data", kinds_data["generation"], "--text", "source", "--label", "target"]
    to = ["--backbone", backbones["gpt2"], "--method", "lora", "--output", tmp_path / "a", "--quiet"]
    assert graftwork("tune", *data, *to, "--dtype", "float32", "--train.max_steps", "1").status == 0
    for inputs in ([""], ["", "good"]):
        run = graftwork("predict", tmp_path / "a", *inputs, "--json")
        assert run.status == 0, run.err
        found = [json.loads(line, parse_constant=no_such_constant) for line in run.out.splitlines()]
        assert [one["text"] for one in found] == inputs
        assert all(0 < one["score"] <= 1 for one in found)
    file = tmp_path / "a" / "adapter.safetensors"
    tensors = load_file(file)
    tensors["head.classifier.bias"][0] = torch.nan
    save_file(tensors, file, metadata={"format": "pt"})
    outdate(tmp_path / "a")
    run = graftwork("predict", tmp_path / "a", "good", "--json")
    assert (run.status, run.out) == (2, "")
    assert "NaN" in run.err


def test_predict_tags(graftwork, tuned, tmp_path):
    lines = graftwork("predict", tuned / "tags", "one good two", "bad").out.split("\n")
    assert [line.split("\t")[0] for line in lines] == ["one", "good", "two", "", "bad", "", ""]
    assert {line.split("\t")[1] for line in lines if line} <= {"O", "B-GOOD", "B-BAD"}
    found = json.loads(graftwork("predict", tuned / "tags", "one good", "--json").out)
    assert (found["text"], found["words"]) == ("one good", ["one", "good"])
    assert len(found["tags"]) == 2
    table = write_jsonl(tmp_path / "words.jsonl", [{"w": ["one", "good"]}, {"w": ["bad"]}])
    run = graftwork("predict", tuned / "tags", "--file", table, "--text", "w", "--json")
    assert [json.loads(line)["words"] for line in run.out.splitlines()] == [["one", "good"], ["bad"]]


def test_predict_choices(graftwork, tuned, tmp_path, kinds_data):
    run = graftwork("predict", tuned / "choices", "mild one", "bad two", "good one", "--json")
    found = json.loads(run.out)
    assert (found["text"], found["choices"]) == ("mild one", ["bad two", "good one"])
    assert found["choice"] == found["choices"][int(found["label"])]
    label, score, question, choice = graftwork(
        "predict", tuned / "choices", "mild one", "bad two", "good one"
    ).out.rstrip("\n").split("\t")  # fmt: skip
    assert (label, question, choice) == (found["label"], "mild one", found["choice"])
    assert float(score) == pytest.approx(found["score"], abs=1e-4)
    (tmp_path / "lines.txt").write_text("mild one\tbad two\tgood one\n")
    assert graftwork("predict", tuned / "choices", "--file", tmp_path / "lines.txt", "--json").out == run.out
    table = ["--file", kinds_data["choices"], "--text", "question", "--choices", "choices"]
    rows = graftwork("predict", tuned / "choices", *table, "--json").out.splitlines()
    right = [json.loads(row) for row in kinds_data["choices"].read_text().splitlines()]
    said = [json.loads(row)["label"] for row in rows]
    assert sum(a == str(b["label"]) for a, b in zip(said, right, strict=True)) > 0.8 * len(right)


def test_predict_generated_texts(graftwork, tuned):
    run = graftwork("predict", tuned / "generation", "one good", "two bad", "--max-new-tokens", "1")
    assert len(run.out.splitlines()) == 2
    found = json.loads(graftwork("predict", tuned / "generation", "one good", "--num-beams", "2", "--json").out)
    assert found.keys() == {"text", "generated"}


def test_predict_images(graftwork, tuned, kinds_data, tmp_path):
    dark, bright = (kinds_data["images"] / name for name in ("dark/0.png", "bright/1.png"))
    run = graftwork("predict", tuned / "images", dark, bright)
    assert [line.split("\t")[::2] for line in run.out.splitlines()] == [["dark", str(dark)], ["bright", str(bright)]]
    (tmp_path / "paths.txt").write_text(f"{dark}\n{bright}\n")
    assert graftwork("predict", tuned / "images", "--file", tmp_path / "paths.txt").out == run.out
    (tmp_path / "table.csv").write_text(f"file\n{dark}\n{bright}\n")
    assert graftwork("predict", tuned / "images", "--file", tmp_path / "table.csv", "--image", "file").out == run.out


WRONG = {
    "choices that are none": ("choices", ["only a question"], ["question 1 has 0 choices"]),
    "blank text to be tagged": ("tags", [" "], ["input 1 has no words"]),
    "image that is none": ("images", ["gone.png"], ["'gone.png' cannot be read"]),
    "beams for tags": ("tags", ["one", "--num-beams", "2"], ["does not generate", "--num-beams"]),
    "choices for tags": ("tags", ["--file", "x.csv", "--text", "a", "--choices", "b"], ["single texts", "--text only"]),
    "no choices": ("choices", ["--file", "x.csv", "--text", "a"], ["--text and --choices"]),
    "text for images": ("images", ["--file", "x.csv", "--text", "a"], ["--image COLUMN"]),
}


@pytest.mark.parametrize("case", WRONG)
def test_predict_refuses(graftwork, tuned, tmp_path, monkeypatch, case):
    kind, arguments, named = WRONG[case]
    monkeypatch.chdir(tmp_path)
    run = graftwork("predict", tuned / kind, *arguments)
    assert (run.status, run.out) == (2, "")
    assert [part for part in named if part not in run.err] == [], run.err


def test_evaluate_refuses_beams_where_nothing_is_generated(graftwork, tuned):
    run = graftwork("evaluate", tuned / "tags", "--num-beams", "2")
    assert run.status == 2
    assert "--num-beams" in run.err


def test_tune_names_the_flags_of_missing_columns(graftwork, backbones, kinds_data, tmp_path):
    arguments = ["--data", kinds_data["choices"], "--kind", "multiple-choice", "--text", "question", "--choices", "a,b"]
    run = graftwork("tune", *arguments, "--backbone", backbones["bert"], "--output", tmp_path / "out")
    assert run.status == 2
    assert "--choices" in run.err


# plan


@pytest.mark.parametrize(
    ("backbone", "kind", "labels", "head"),
    [
        ("bert", "token-classification", "5", 5 * 32 + 5),
        ("bert", "multiple-choice", "2", 32 + 1),
        ("gpt2", "multiple-choice", "2", 0),
        ("gpt2", "generation", "2", 0),
        ("vit", "image-classification", "10", 10 * 32 + 10),
    ],
)
def test_plan_counts_the_head_of_the_kind(graftwork, backbones, backbone, kind, labels, head):
    arguments = ["--backbone", backbones[backbone], "--method", "lora", "--kind", kind, "--labels", labels, "--json"]
    run = graftwork("plan", *arguments)
    assert run.status == 0, run.err
    assert json.loads(run.out)["trained"]["head"] == head


def test_plan_needs_a_language_model_to_generate(graftwork, backbones):
    run = graftwork("plan", "--backbone", backbones["bert"], "--method", "lora", "--kind", "generation")
    assert run.status == 2
    assert "no language-model head" in run.err
