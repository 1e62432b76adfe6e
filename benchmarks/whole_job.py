"""A whole job, as its user sees it: LoRA of rank 8 on MRPC for 3 epochs, by graftwork's command and by peft's scripts.

Run as `python -m benchmarks.whole_job --glue FOLDER [--quick | --tiny] [--device …] [--dtype …]`, where FOLDER has
`MRPC/train.tsv` and `MRPC/dev.tsv` as GLUE has them. Each contestant is a process from its start to the saved adapter,
with the defaults of its documentation: `graftwork tune`, and `benchmarks/peft_script.py` as documented (float32) and as
a skilled user writes it (bfloat16 by autocast, rows of like lengths). The scores are those of the 408 validation rows,
by which each chooses its checkpoint too.
"""

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from benchmarks.measuring import TINY, add_places, at_least, ratio, report
from benchmarks.models import load
from graftwork import Backbone

HEADER = "Quality\t#1 ID\t#2 ID\t#1 String\t#2 String\n"
SAME_SCORE = 0.97
"""How low an accuracy may be to be the same, as a share of the other: about one standard error over 408 rows less."""


@dataclass(frozen=True)
class Size:
    """How much is measured: rounds, and epochs."""

    rounds: int
    epochs: int = 3


SIZES = {"full": Size(1), "quick": Size(1, epochs=1), "tiny": Size(1, epochs=1)}


def write_rows(folder: Path) -> None:
    """Write a few pairs as GLUE has them."""
    source = random.Random(0)
    (folder / "MRPC").mkdir()
    for file, rows in (("train.tsv", 32), ("dev.tsv", 16)):
        lines = [
            f"{i % 2}\t{i}\t{i}\t" + "\t".join(" ".join(source.choices("abcdef", k=6)) for _ in range(2)) + "\n"
            for i in range(rows)
        ]
        (folder / "MRPC" / file).write_text(HEADER + "".join(lines), encoding="utf-8")


def commands(backbone: str, model: str, glue: Path, epochs: int, options: argparse.Namespace) -> dict[str, list[str]]:
    """Return each contestant's command, less its output."""
    peft = [sys.executable, "-m", "benchmarks.peft_script", "--model", model, "--data", str(glue / "MRPC")]
    peft += ["--epochs", str(epochs)]
    ours = [sys.executable, "-m", "graftwork", "tune", "--task", "mrpc", "--data", str(glue), "--backbone", backbone]
    ours += ["--method", "lora", "--method.rank", "8", "--train.num_train_epochs", str(epochs), "--json"]
    ours += ["--dtype", options.dtype] if options.dtype != "auto" else []
    return {"graftwork": ours, "peft, as documented": peft, "peft, skilled": [*peft, "--skilled"]}


def run(command: list[str], output: Path, environment: Mapping[str, str]) -> tuple[float, dict[str, float]]:
    """Return how many seconds a command took, and the scores that it printed."""
    start = time.perf_counter()
    own = {**os.environ, **environment}
    done = subprocess.run([*command, "--output", str(output)], capture_output=True, text=True, check=False, env=own)
    wall = time.perf_counter() - start
    if done.returncode:
        sys.exit(f"{' '.join(command)} failed:\n{done.stderr[-2000:]}")
    return wall, scores_of(done.stdout)


def scores_of(printed: str) -> dict[str, float]:
    """Return the scores in what a contestant printed: a JSON object, in the last line that is one."""
    found: dict[str, Any] = json.loads([line for line in printed.splitlines() if line.startswith("{")][-1])
    scores = found["metrics"]["validation"] if "metrics" in found else found
    return {name: float(scores[name]) for name in ("accuracy", "f1")}


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print the table and the JSON line, and return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.whole_job", description="A whole job, by its commands.")
    sizes = parser.add_mutually_exclusive_group()
    sizes.add_argument("--quick", dest="size", action="store_const", const="quick", help="1 epoch in place of 3, once")
    sizes.add_argument("--tiny", dest="size", action="store_const", const="tiny", help=TINY)
    parser.add_argument("--glue", type=Path, help="the folder with GLUE's data")
    add_places(parser)
    parser.set_defaults(size="full")
    options = parser.parse_args(argv)
    size = SIZES[options.size]
    if options.device not in ("auto", "cpu"):
        parser.error("--device is auto or cpu: each command chooses by itself")
    if options.glue is None and options.size != "tiny":
        parser.error("--glue FOLDER is needed: the folder that has MRPC/train.tsv and MRPC/dev.tsv")
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        glue, backbone = options.glue, "minilm"
        if options.size == "tiny":
            write_rows(folder)
            glue, backbone = folder, str(folder / "model")
        loaded: Backbone = load(options, "float32")
        loaded.model.save_pretrained(folder / "model")
        loaded.require_tokenizer().save_pretrained(folder / "model")
        times: dict[str, list[float]] = {}
        scores: dict[str, list[dict[str, float]]] = {}
        environment = {"GRAFTWORK_CACHE": str(folder / "cache")}
        if options.device == "cpu":
            environment["CUDA_VISIBLE_DEVICES"] = ""
        for turn in range(size.rounds):
            for name, command in commands(backbone, str(folder / "model"), glue, size.epochs, options).items():
                wall, found = run(command, folder / f"{name} {turn}", environment)
                times.setdefault(name, []).append(wall)
                scores.setdefault(name, []).append(found)
                print(f"{name:<22}{wall:>8.1f} s   accuracy {found['accuracy']:.3f}   F1 {found['f1']:.3f}", flush=True)
    mean = {name: fmean(own["accuracy"] for own in found) for name, found in scores.items()}
    ours = times.pop("graftwork")
    ratios = {f"{name} / graftwork": ratio(own, ours) for name, own in times.items()}
    bars = {
        "peft, as documented / graftwork": at_least(ratios["peft, as documented / graftwork"], 4.0),
        "peft, skilled / graftwork": at_least(ratios["peft, skilled / graftwork"], 2.0),
        "accuracy / peft's best": at_least(mean["graftwork"] / max(mean[name] for name in times), SAME_SCORE),
    }
    return report("whole_job", ratios, bars)


if __name__ == "__main__":
    sys.exit(main())
