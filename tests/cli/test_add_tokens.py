"""`graftwork tune --add-tokens`: tokens from a file, to the adapter and back; and files that it refuses."""

import json
import random

import pytest
from safetensors.torch import load_file
from training.workbench import FAST, backbone_folder, flags, sentence, write_csv

__all__ = ["backbone_folder"]

TOKENS = ("superb", "dire")


@pytest.fixture
def data(tmp_path):
    source = random.Random(0)
    rows = [{"text": sentence(source, TOKENS[i % 2]), "label": ("good", "bad")[i % 2]} for i in range(160)]
    return write_csv(tmp_path / "rows.csv", rows)


@pytest.fixture
def tune(graftwork, data, backbone_folder, tmp_path):
    def tune(content, *others):
        file = tmp_path / "tokens.txt"
        file.write_text(content, encoding="utf-8")
        asked = [
            "--data",
            data,
            "--text",
            "text",
            "--label",
            "label",
            "--backbone",
            backbone_folder,
            "--dtype",
            "float32",
        ]
        to = ["--add-tokens", file, "--output", tmp_path / "a", "--quiet"]
        return graftwork("tune", *asked, *to, *flags(FAST), *others)

    return tune


def test_tokens_of_a_file_are_tuned_saved_and_used(graftwork, tune, tmp_path):
    run = tune("superb\ndire\n", "--json")
    assert run.status == 0, run.err
    assert json.loads(run.out)["metrics"]["validation"]["accuracy"] >= 0.9
    assert load_file(tmp_path / "a" / "adapter.safetensors")["embeddings.word.added"].shape == (2, 32)
    assert "- Added tokens: `superb`, `dire`\n- Seed" in (tmp_path / "a" / "README.md").read_text()
    assert "superb, dire" in graftwork("inspect", tmp_path / "a").out
    # The recipe says them itself, and can be run again without the file.
    (tmp_path / "tokens.txt").unlink()
    run = graftwork("tune", tmp_path / "a" / "recipe.yaml", "--output", tmp_path / "b", "--quiet")
    assert run.status == 0, run.err
    for name in ("adapter.json", "adapter.safetensors"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    assert graftwork("evaluate", tmp_path / "a", "--dtype", "float32").status == 0
    one, other = graftwork("predict", tmp_path / "a", "one superb two six", "one dire two six").out.splitlines()
    assert one.split("\t")[1] != other.split("\t")[1]


@pytest.mark.parametrize(
    ("content", "why"),
    [
        ("superb\n\ndire\n", "tokens.txt, line 2 is empty"),
        ("superb\ndire\nsuperb\n", "tokens.txt, line 3 has token 'superb', as line 1 has"),
        ("", "tokens.txt has no tokens"),
        ("superb\ngood\n", "token 'good' is already in the tokenizer"),
        ("superb \n", "token 'superb ' begins or ends with white space"),
    ],
)
def test_files_that_are_refused(tune, tmp_path, content, why):
    run = tune(content)
    assert run.status == 2
    assert why in run.err
    assert "--add-tokens" in run.err
    assert not (tmp_path / "a").exists()


def test_a_file_that_is_not_there(graftwork, tmp_path):
    run = graftwork("tune", "--data", "x.csv", "--text", "t", "--add-tokens", tmp_path / "no.txt", "--output", "a")
    assert run.status == 2
    assert "no.txt cannot be read" in run.err
