"""What the tests of training and of the command line work with: a tiny backbone, small data, and comparisons.

The backbone is random, with weights large enough that words differ in its output; a label that is decided by one word
is learned in a second.
"""

import random
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NoReturn

import pytest
import torch
from transformers import BertConfig, BertModel, BertTokenizer

from graftwork.backbones import Backbone
from graftwork.training.progress import Log

FILLERS = ["one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"]
WORDS = ["good", "bad", "mild", *FILLERS]

FAST = {
    "learning_rate": 0.01,
    "head_learning_rate": 0.03,
    "num_train_epochs": 2,
    "per_device_train_batch_size": 8,
    "baseline": "off",
}
"""Settings under which the tiny backbone learns the small data, compared with nothing."""

NUMBERS = {"good": 3.0, "mild": 0.0, "bad": -3.0}


class KilledError(Exception):
    """Stands for a process that was killed."""


def make_backbone(folder: Path, *, seed: int = 0, hidden_size: int = 32) -> Path:
    """A BERT of two layers with random weights, and its tokenizer, saved in a folder."""
    folder.mkdir()
    (folder / "vocab.txt").write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS]) + "\n")
    tokenizer = BertTokenizer(str(folder / "vocab.txt"))
    tokenizer.save_pretrained(folder)
    config = BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=hidden_size,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=64,
        initializer_range=0.2,
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        BertModel(config).save_pretrained(folder)
    return folder


def sentence(source: random.Random, word: str) -> str:
    words = source.sample(FILLERS, source.randint(2, 6))
    words.insert(source.randrange(len(words) + 1), word)
    return " ".join(words)


def make_rows(kind: str, count: int = 120, seed: int = 0) -> list[dict[str, str]]:
    """Rows whose label one word decides: of a text, of a pair's two texts together, or as a number."""
    source = random.Random(seed)
    rows = []
    for i in range(count):
        if kind == "classes":
            word = ("bad", "good")[i % 2]
            rows.append({"text": sentence(source, word), "label": ("negative", "positive")[i % 2]})
        elif kind == "pairs":
            word = ("bad", "good")[i % 2]
            rows.append({"first": sentence(source, word), "second": sentence(source, "mild"), "label": f"is {word}"})
        else:
            word = ("good", "mild", "bad")[i % 3]
            rows.append({"text": sentence(source, word), "label": str(NUMBERS[word])})
    return rows


def write_csv(path: Path, rows: list[dict[str, str]]) -> Path:
    path.parent.mkdir(exist_ok=True)
    lines = [",".join(rows[0]), *(",".join(row.values()) for row in rows)]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def contents(folder: Path) -> dict[str, bytes]:
    """Every file of a folder by its name."""
    return {str(file.relative_to(folder)): file.read_bytes() for file in sorted(folder.rglob("*")) if file.is_file()}


def names_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def flags(settings: dict[str, Any]) -> list[str]:
    """Training settings as they are written on the command line."""
    return [part for name, value in settings.items() for part in (f"--train.{name}", str(value))]


class Death:
    """A process that dies: what lay on the disk at that moment is what is left, whatever is cleaned up later."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.working = folder

    def strike(self, working: Path) -> NoReturn:
        self.working = working
        shutil.copytree(working, self.folder / "kept")
        raise KilledError


@contextmanager
def killed(install: Callable[[pytest.MonkeyPatch, Death], None]) -> Iterator[None]:
    """Expect a run to be killed inside, where `install` lets death strike."""
    with TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        death = Death(Path(folder))
        install(patch, death)
        with pytest.raises(KilledError):
            yield
        shutil.rmtree(death.working, ignore_errors=True)
        shutil.copytree(death.folder / "kept", death.working)


def at_step(step: int) -> Callable[[pytest.MonkeyPatch, Death], None]:
    """After this step, before anything is saved there."""
    plain = Log.on_step_end

    def install(patch: pytest.MonkeyPatch, death: Death) -> None:
        def on_step_end(self: Log, args: Any, state: Any, control: Any, **kwargs: Any) -> Any:
            if state.global_step == step:
                death.strike(Path(args.output_dir))
            return plain(self, args, state, control, **kwargs)

        patch.setattr(Log, "on_step_end", on_step_end)

    return install


@pytest.fixture(autouse=True, scope="module")
def one_thread(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """One thread, which is fastest for so small a model, and a cache of this run's own."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GRAFTWORK_CACHE", str(tmp_path_factory.mktemp("cache")))
        patch.setenv("OMP_NUM_THREADS", "1")
        yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def backbone_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_backbone(tmp_path_factory.mktemp("backbones") / "tiny")


@pytest.fixture(scope="session")
def other_backbone_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A backbone of the same shape with other weights."""
    return make_backbone(tmp_path_factory.mktemp("backbones") / "other", seed=1)


@pytest.fixture(scope="module")
def backbone(backbone_folder: Path) -> Backbone:
    return Backbone.load(str(backbone_folder), dtype="float32", device="cpu")


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """One file for each kind of task."""
    folder = tmp_path_factory.mktemp("data")
    return {kind: write_csv(folder / f"{kind}.csv", make_rows(kind)) for kind in ("classes", "pairs", "numbers")}
