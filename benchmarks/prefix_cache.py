"""Tuning the top 2 of MiniLM's 6 layers for 5 epochs, with the states below them kept, against the same without.

Run as `python -m benchmarks.prefix_cache [--quick | --tiny] [--device …] [--dtype …]`. Texts of 9 to 63 words, in the
precision that graftwork chooses for the machine or in another. Whole runs are timed, from the rows to the finished
adapter, validation and the last scoring included: one without a cache, one that finds it filled, as another seed does,
and one that fills it itself. Head-only tuning, for which nothing of the backbone runs in training, is timed besides.
Runs with and without are seen to learn the same first.

With F the cost of a forward pass, and that of a backward pass through as many
layers, 5 epochs without a cache cost 5 · F (1 + 1/3), from one 5 · 2/3 F: 2 times less, of which 1.8 is the bar. To
fill it costs 2/3 F more, so that a run that fills it can be 1.67 times as fast; there the bar is 1.3.
"""

import csv
import os
import random
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from benchmarks.measuring import at_least, check, in_turns, options_of, ratio, report
from benchmarks.models import load
from graftwork import AdaptedModel, Adapter, Backbone, HeadOnly, LoRA, Task, tune
from graftwork.methods import Method

METHODS: dict[str, Method] = {"top 2 layers": LoRA(rank=8, targets="layers.[45].*"), "head only": HeadOnly()}
WORDS = ("the", "a", "film", "book", "man", "woman", "was", "is", "not", "very", "one", "two", "of", "and", "it")


@dataclass(frozen=True)
class Size:
    """How much is measured: rounds, rows, four fifths of which are trained on, words of the longest, and epochs."""

    rounds: int
    rows: int
    words: int = 63
    epochs: int = 5


SIZES = {"full": Size(3, 640), "quick": Size(1, 160), "tiny": Size(1, 20, words=9, epochs=1)}


@contextmanager
def cache_in(folder: Path) -> Iterator[None]:
    """Have states kept in a folder of this run's own for the length of a block."""
    before = os.environ.get("GRAFTWORK_CACHE")
    os.environ["GRAFTWORK_CACHE"] = str(folder)
    try:
        yield
    finally:
        if before is None:
            del os.environ["GRAFTWORK_CACHE"]
        else:
            os.environ["GRAFTWORK_CACHE"] = before


def make_task(folder: Path, size: Size) -> Task:
    """Return a task whose label one word decides, among texts of many lengths."""
    source = random.Random(0)
    file = folder / "texts.csv"
    with file.open("w", newline="") as opened:
        writer = csv.writer(opened)
        writer.writerow(["text", "label"])
        for i in range(size.rows):
            words = source.choices(WORDS, k=source.randint(8, size.words - 1))
            words.insert(source.randrange(len(words)), ("good", "bad")[i % 2])
            writer.writerow([" ".join(words), i % 2])
    return Task(name="texts", text="text", data=str(file), validation_fraction=0.2)


def check_learned(backbone: Backbone, one: Adapter, other: Adapter, what: str) -> None:
    """Refuse to time runs that learn something else."""
    model = AdaptedModel(backbone, {"one": one, "other": other})
    texts = ["a good film", "a bad book", " ".join(WORDS)]
    check(model.logits(texts, "one"), model.logits(texts, "other"), what, dtype=backbone.dtype)
    model.detach()


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print the table and the JSON line, and return the exit status."""
    options = options_of(
        "prefix_cache", "The prefix cache.", argv, quick="1 round in place of 3, 160 texts in place of 640"
    )
    size = SIZES[options.size]
    backbone = load(options)
    ratios: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as name, cache_in(Path(name) / "cache"):
        folder = Path(name)
        task = make_task(folder, size)

        def run(method: Method, cache: str) -> Adapter:
            return tune(backbone, task=task, method=method, num_train_epochs=size.epochs, prefix_cache=cache)

        for what, method in METHODS.items():

            def filling(method: Method = method) -> Adapter:
                shutil.rmtree(folder / "cache", ignore_errors=True)
                return run(method, "on")

            contestants: dict[str, Callable[[], Adapter]] = {
                "without": lambda method=method: run(method, "off"),
                "filling": filling,
                "found": lambda method=method: run(method, "on"),
            }
            check_learned(backbone, contestants["without"](), filling(), what)
            times = in_turns(contestants, rounds=size.rounds, warmups=0)
            for case in ("filling", "found"):
                ratios[f"{what}, {case}"] = ratio(times["without"], times[case])
                print(f"{what:<16}{case:<10}{ratios[f'{what}, {case}']:>8.2f} x as fast as without", flush=True)
    bars = {
        f"top 2 of 6 layers, {size.epochs} epochs, found": at_least(ratios["top 2 layers, found"], 1.8),
        f"top 2 of 6 layers, {size.epochs} epochs, filling included": at_least(ratios["top 2 layers, filling"], 1.3),
    }
    return report("prefix_cache", ratios, bars)


if __name__ == "__main__":
    sys.exit(main())
