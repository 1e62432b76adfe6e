"""A tiny backbone and small data for each kind of task, learned in a second: what decides is one word, or how bright an
image is.
"""

import json
import random
from pathlib import Path

import pytest
import torch
from PIL import Image
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Split
from tokenizers.processors import TemplateProcessing
from training.workbench import WORDS, make_backbone, sentence
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    PreTrainedTokenizerFast,
    T5Config,
    T5ForConditionalGeneration,
    ViTConfig,
    ViTImageProcessor,
    ViTModel,
)

from graftwork.backbones.quiet import quiet_transformers

TAGS = {"good": "B-GOOD", "bad": "B-BAD"}
SPECIAL = {"pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"}

KINDS = {
    "tags": ("bert", ["--kind", "token-classification", "--text", "words", "--label", "tags"]),
    "choices": ("bert", ["--kind", "multiple-choice", "--text", "question", "--choices", "choices"]),
    "likelihood": ("gpt2", ["--kind", "multiple-choice", "--text", "question", "--choices", "choices"]),
    "likelihood-t5": ("t5", ["--kind", "multiple-choice", "--text", "question", "--choices", "choices"]),
    "generation": ("gpt2", ["--kind", "generation", "--text", "source", "--label", "target"]),
    "generation-t5": ("t5", ["--kind", "generation", "--text", "source", "--label", "target"]),
    "images": ("vit", ["--kind", "image-classification"]),
}
"""Case -> its backbone, and the flags that say what its data are."""

FILES = {"likelihood": "choices", "likelihood-t5": "choices", "generation-t5": "generation"}
"""The cases with another's data."""

SETTINGS = {"learning_rate": 0.01, "head_learning_rate": 0.01, "num_train_epochs": 4, "per_device_train_batch_size": 8}


def make_tokenizer(*, ends: bool) -> PreTrainedTokenizerFast:
    """Words and line breaks; `ends` as T5's do: each text ends with the token that ends texts."""
    vocabulary = {word: i for i, word in enumerate(["<pad>", "</s>", "<unk>", "\n", *WORDS])}
    tokenizer = Tokenizer(WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = Split(" ", "removed")
    if ends:
        tokenizer.post_processor = TemplateProcessing(
            single="$A </s>", pair="$A </s> $B </s>", special_tokens=[("</s>", 1)]
        )
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **SPECIAL)


def make_gpt2(folder: Path) -> Path:
    config = GPT2Config(
        **{"n_embd": 32, "n_layer": 2, "n_head": 2, "n_positions": 64, "vocab_size": len(WORDS) + 4},
        **{"bos_token_id": 1, "eos_token_id": 1, "pad_token_id": 0, "initializer_range": 0.2},
    )
    return _save(folder, GPT2LMHeadModel, config, make_tokenizer(ends=False))


def make_t5(folder: Path) -> Path:
    config = T5Config(
        **{"d_model": 32, "d_kv": 16, "d_ff": 64, "num_layers": 2, "num_heads": 2, "vocab_size": len(WORDS) + 4},
        **{"eos_token_id": 1, "pad_token_id": 0, "decoder_start_token_id": 0, "dropout_rate": 0.0},
        initializer_factor=2.0,
    )
    return _save(folder, T5ForConditionalGeneration, config, make_tokenizer(ends=True))


def make_vit(folder: Path) -> Path:
    config = ViTConfig(
        **{"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64},
        **{"image_size": 16, "patch_size": 8, "initializer_range": 0.2},
    )
    with quiet_transformers():
        processor = ViTImageProcessor(size={"height": 16, "width": 16})
    return _save(folder, ViTModel, config, processor)


def _save(folder, kind, config, processor):
    with torch.random.fork_rng(), quiet_transformers():
        torch.manual_seed(0)
        kind(config).save_pretrained(folder)
        processor.save_pretrained(folder)
    return folder


MAKERS = {"bert": make_backbone, "gpt2": make_gpt2, "t5": make_t5, "vit": make_vit}


def tag_rows(count: int = 80, seed: int = 0) -> list[dict]:
    source = random.Random(seed)
    sentences = [sentence(source, ("good", "bad")[i % 2]).split() for i in range(count)]
    return [{"words": words, "tags": [TAGS.get(word, "O") for word in words]} for words in sentences]


def choice_rows(count: int = 80, seed: int = 0) -> list[dict]:
    """Two, three or four choices, of which the one with `good` in it is right."""
    source = random.Random(seed)
    rows = []
    for i in range(count):
        choices = [sentence(source, "bad") for _ in range(1 + i % 3)]
        label = source.randint(0, len(choices))
        choices.insert(label, sentence(source, "good"))
        rows.append({"question": sentence(source, "mild"), "choices": choices, "label": label})
    return rows


def generation_rows(count: int = 80, seed: int = 0) -> list[dict]:
    """Every source has two targets."""
    source = random.Random(seed)
    sources = [sentence(source, ("good", "bad")[i % 2]) for i in range(count // 2)]
    said = {"good": ["good good", "good"], "bad": ["bad bad", "bad"]}
    return [
        {"source": text, "target": target}
        for text in sources
        for target in said["good" if "good" in text.split() else "bad"]
    ]


def make_images(folder: Path, count: int = 40) -> Path:
    """Grey images of 8 × 8 in folders `bright` and `dark`."""
    source = random.Random(0)
    for i in range(count):
        name, base = ("bright", 180) if i % 2 else ("dark", 20)
        (folder / name).mkdir(parents=True, exist_ok=True)
        image = Image.new("L", (8, 8))
        image.putdata([base + source.randint(0, 40) for _ in range(64)])
        image.save(folder / name / f"{i}.png")
    return folder


def write_jsonl(path: Path, rows: list[dict]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture(scope="session")
def backbones(tmp_path_factory):
    """A folder for each backbone."""
    folder = tmp_path_factory.mktemp("backbones-of-kinds")
    return {name: make(folder / name) for name, make in MAKERS.items()}


@pytest.fixture(scope="session")
def kinds_data(tmp_path_factory):
    """Each case's file, or folder of images."""
    folder = tmp_path_factory.mktemp("data-of-kinds")
    made = {
        "tags": write_jsonl(folder / "tags.jsonl", tag_rows()),
        "choices": write_jsonl(folder / "choices.jsonl", choice_rows()),
        "generation": write_jsonl(folder / "generation.jsonl", generation_rows()),
        "images": make_images(folder / "images"),
    }
    return {case: made[FILES.get(case, case)] for case in KINDS}
