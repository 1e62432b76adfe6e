"""`graftwork merge --task` of language models: texts and choices, against a computation by transformers alone."""

import json

import pytest
import torch
from cli.conftest import graftwork
from tiny import make_config, make_tokenizer
from training.workbench import one_thread, write_csv
from transformers import AutoModelForCausalLM, AutoTokenizer, BertForSequenceClassification

__all__ = ["graftwork", "one_thread"]

LONGER = {"gpt2": {"n_positions": 300}}

SOURCES = ["the film is", "a book was", "very", "not very", "the man", "a woman"]
TARGETS = ["good", "bad and dull", "gripping", "dull", "sleeps", "rests"]


@pytest.fixture(scope="module", params=["gpt2", "llama"])
def models(request, tmp_path_factory):
    """Three language models of one start, and tasks of texts and of choices."""
    where = tmp_path_factory.mktemp(request.param)
    for seed, name in enumerate(("base", "a", "b")):
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(make_config(request.param, **LONGER.get(request.param, {})))
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.copy_(torch.randn(parameter.shape) * 0.3)
        model.save_pretrained(where / name)
        tokenizer = make_tokenizer()
        tokenizer.eos_token = "[SEP]"
        tokenizer.save_pretrained(where / name)
    rows = [{"text": s, "label": t} for s, t in zip(SOURCES, TARGETS, strict=True)]
    write_csv(where / "train.csv", rows)
    write_csv(where / "validation.csv", rows)
    lines = ["name: says", "kind: generation", "text: text", "separator: ' is '", "metrics: loss"]
    lines += ["splits: {train: train.csv, validation: validation.csv}"]
    (where / "says.yaml").write_text("\n".join(lines) + "\n")
    write_csv(where / "one.csv", rows[:1])
    lines[0], lines[-2:] = (
        "name: spells",
        ["metrics: [exact_match, loss]", "splits: {train: one.csv, validation: one.csv}"],
    )
    (where / "spells.yaml").write_text("\n".join(lines) + "\n")
    chosen = [
        {"text": s, "x": t, "y": TARGETS[(i + 2) % 6], "label": "0"}
        for i, (s, t) in enumerate(zip(SOURCES, TARGETS, strict=True))
    ]
    for split in ("train", "validation"):
        write_csv(where / f"{split}-choices.csv", chosen)
    lines = ["name: chooses", "kind: multiple-choice", "text: text", "choices: [x, y]", "separator: ' is '"]
    lines += ["splits: {train: train-choices.csv, validation: validation-choices.csv}"]
    (where / "chooses.yaml").write_text("\n".join(lines) + "\n")
    return where


@pytest.mark.parametrize("task", ["says", "chooses"])
def test_language_models_are_scored(graftwork, models, tmp_path, task):
    own = [models / "a", models / "b"]
    command = ["merge", "ties", *own, "--base", models / "base", "--task", models / f"{task}.yaml", "--json", "--quiet"]
    ran = graftwork(*command, "--output", tmp_path / "out")
    assert (ran.status, ran.err) == (0, ""), ran.err
    scores = json.loads(ran.out)["scores"]
    assert [*scores] == ["result", "base", "a", "b"]
    keys = {"says": {"says loss"}, "chooses": {"chooses accuracy"}}[task]
    assert all(found.keys() == keys for found in scores.values())
    if task == "says":
        for name, folder in {"result": tmp_path / "out", "a": models / "a"}.items():
            assert scores[name]["says loss"] == pytest.approx(loss_of(folder), rel=1e-4)
        assert len({found["says loss"] for found in scores.values()}) == 4


def loss_of(folder):
    """The mean over all tokens of targets and their ends, by transformers alone."""
    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModelForCausalLM.from_pretrained(folder).eval()
    total, count = 0.0, 0
    for source, target in zip(SOURCES, TARGETS, strict=True):
        first = tokenizer(source)["input_ids"][:-1]  # this tokenizer begins and ends a text
        first += tokenizer("is", add_special_tokens=False)["input_ids"]
        last = tokenizer(target, add_special_tokens=False)["input_ids"]
        ids = torch.tensor([[*first, *last, tokenizer.eos_token_id]])
        with torch.no_grad():
            log_p = model(input_ids=ids).logits[0].log_softmax(-1)
        for place in range(len(first), ids.shape[1]):
            total, count = total - float(log_p[place - 1, ids[0, place]]), count + 1
    return total / count


def test_texts_are_generated_for_the_scores_of_texts(graftwork, models, tmp_path):
    command = ["merge", "average", models / "a", models / "b", "--task", models / "spells.yaml", "--json", "--quiet"]
    ran = graftwork(*command, "--output", tmp_path / "out")
    assert (ran.status, ran.err) == (0, ""), ran.err
    assert {*json.loads(ran.out)["scores"]["result"]} == {"spells exact_match", "spells loss"}


def test_a_model_without_a_language_model_head_is_refused(graftwork, models, tmp_path):
    for name in "ab":
        BertForSequenceClassification(make_config("bert")).save_pretrained(tmp_path / name)
        make_tokenizer().save_pretrained(tmp_path / name)
    command = ["merge", "average", tmp_path / "a", tmp_path / "b", "--task", models / "says.yaml", "--quiet"]
    ran = graftwork(*command, "--output", tmp_path / "out")
    assert (ran.status, "no language-model head" in ran.err) == (2, True)
    assert not (tmp_path / "out").exists()


def test_a_sweep_chooses_the_lowest_loss(graftwork, models, tmp_path):
    command = ["merge", "interpolate", models / "a", "--base", models / "base", "--task", models / "says.yaml"]
    ran = graftwork(*command, "--sweep", "t=0,0.5,1", "--json", "--quiet", "--output", tmp_path / "out")
    assert (ran.status, ran.err) == (0, ""), ran.err
    said = json.loads(ran.out)
    losses = {one["value"]: one["says loss"] for one in said["sweep"]}
    assert said["method"]["t"] == min(losses, key=losses.__getitem__)
