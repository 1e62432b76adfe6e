"""Tuning the top 2 of MiniLM's 6 layers for 5 epochs, with the states below them kept, against the same without.

Run as `python -m benchmarks.prefix_cache [--quick] [--device …]`. Texts of 9 to 63 words, in the precision that
graftwork chooses for the machine. Whole runs are timed, from the rows to the finished adapter, validation and the last
scoring included: one without a cache, one that finds it filled, as another seed does, and one that fills it itself.
Head-only tuning, for which nothing of the backbone runs in training, is timed besides. Runs with and without are seen
to learn the same first.

The bar is for the cache as it is found. With F the cost of a forward pass, and that of a backward pass through as many
layers, 5 epochs without a cache cost 5 · F (1 + 1/3), from one 5 · 2/3 F: 2 times less. To fill it costs 2/3 F more,
so that a run that fills it can be 1.67 times as fast.
"""

import csv
import os
import random
import shutil
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch

from benchmarks.measuring import at_least, in_turns, options_of, ratio, report
from graftwork import AdaptedModel, Adapter, Backbone, HeadOnly, LoRA, Task, tune
from graftwork.methods import Method

EPOCHS = 5
METHODS: dict[str, Method] = {"top 2 layers": LoRA(rank=8, targets="layers.[45].*"), "head only": HeadOnly()}
WORDS = ("the", "a", "film", "book", "man", "woman", "was", "is", "not", "very", "one", "two", "of", "and", "it")


def make_task(folder: Path, rows: int) -> Task:
    """Return a task whose label one word decides, among texts of many lengths."""
    source = random.Random(0)
    file = folder / "texts.csv"
    with file.open("w", newline="") as opened:
        writer = csv.writer(opened)
        writer.writerow(["text", "label"])
        for i in range(rows):
            words = source.choices(WORDS, k=source.randint(8, 62))
            words.insert(source.randrange(len(words)), ("good", "bad")[i % 2])
            writer.writerow([" ".join(words), i % 2])
    return Task(name="texts", text="text", data=str(file), validation_fraction=0.2)


def run(backbone: Backbone, task: Task, method: Method, cache: str) -> Adapter:
    """Return the adapter of one run."""
    return tune(backbone, task=task, method=method, num_train_epochs=EPOCHS, prefix_cache=cache)


def check(backbone: Backbone, task: Task, one: Adapter, other: Adapter, what: str) -> None:
    """Refuse to time runs that learn something else: their logits may differ by the rounding of some steps."""
    bound = 0.1 if backbone.dtype == torch.bfloat16 else 1e-3
    model = AdaptedModel(backbone, {"one": one, "other": other})
    texts = ["a good film", "a bad book", " ".join(WORDS)]
    difference = float((model.logits(texts, "one") - model.logits(texts, "other")).abs().max())
    model.detach()
    if difference > bound:
        sys.exit(f"{what}: logits differ by {difference}")


def main() -> int:
    """Measure, print the table and the JSON line, and return the exit status."""
    options = options_of("prefix_cache", "The prefix cache.", quick="1 round in place of 3, 160 texts in place of 640")
    rounds, rows = (1, 160) if options.quick else (3, 640)
    backbone = Backbone.load("minilm", device=options.device)
    ratios: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        os.environ["GRAFTWORK_CACHE"] = str(folder / "cache")
        task = make_task(folder, rows)
        for what, method in METHODS.items():

            def filling(method: Method = method) -> Adapter:
                shutil.rmtree(folder / "cache", ignore_errors=True)
                return run(backbone, task, method, "on")

            contestants: dict[str, Callable[[], Adapter]] = {
                "without": lambda method=method: run(backbone, task, method, "off"),
                "filling": filling,
                "found": lambda method=method: run(backbone, task, method, "on"),
            }
            check(backbone, task, contestants["without"](), filling(), what)
            times = in_turns(contestants, rounds=rounds, warmups=0)
            for case in ("filling", "found"):
                ratios[f"{what}, {case}"] = ratio(times["without"], times[case])
                print(f"{what:<16}{case:<10}{ratios[f'{what}, {case}']:>8.2f} x as fast as without", flush=True)
    bars = {"top 2 of 6 layers, 5 epochs": at_least(ratios["top 2 layers, found"], 1.8)}
    return report("prefix_cache", ratios, bars)


if __name__ == "__main__":
    sys.exit(main())
