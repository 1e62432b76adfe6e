"""How an input should become one vector: poolings beside each other on 13 tasks, for the defaults of graftwork.

MiniLM's checkpoint declares the mean, and holds a pooling layer that nobody trained: with its declaration left out it
stands for the encoders that declare nothing. SmolLM2 is a causal model, in which each token sees what stands before it.

    python -m studies.pooling --data DATA [--workers 2] [--backbones minilm smollm2] [--methods lora] [--tasks rte]

DATA holds the folders crowdflower, fdu_mtl, glue and sms_spam. A run takes up where an earlier one stopped.
"""

import argparse
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from studies.grid import Grid, Key, Record, markdown
from studies.labelled import TASKS, scored
from studies.probing import probed

POOLINGS = {"minilm": ("pooler", "first", "mean"), "smollm2": ("last", "mean")}
"""Those that are measured of each backbone."""

PROBE = "linear probe"
"""No method: the baseline's linear model on what the frozen backbone says."""

RUNS: dict[tuple[str, str], dict[str, Any]] = {
    ("minilm", PROBE): {},
    ("minilm", "head-only"): {"max_length": 64},
    ("minilm", "lora"): {"max_length": 64, "max_steps": 120, "per_device_train_batch_size": 16},
    ("smollm2", PROBE): {"share": 0.3},
    ("smollm2", "lora"): {"share": 0.3, "max_length": 64, "max_steps": 60, "per_device_train_batch_size": 16},
}
"""What each backbone is measured by; all else is graftwork's default."""

FEWER = ("corporate", "emotions", "sst2-200", "cola", "stsb")
"""The tasks of SmolLM2's LoRA runs, which take minutes each."""


def wanted(backbones: list[str], methods: list[str], tasks: list[str]) -> list[Key]:
    """What is to be measured."""
    return [
        (backbone, method, task)
        for backbone, method in RUNS
        for task in tasks
        if backbone in backbones and method in methods and ((backbone, method) != ("smollm2", "lora") or task in FEWER)
    ]


def measure(backbone: str, method: str, task: str, *, data: Path) -> Mapping[str, Any]:
    """The test scores by pooling."""
    options = RUNS[backbone, method]
    if method == PROBE:
        return probed(task, backbone, POOLINGS[backbone], data=data, **options)
    found = {
        pooling: scored(task, method, data=data, backbone=backbone, pooling=pooling, **options)
        for pooling in POOLINGS[backbone]
    }
    return {
        "scores": {pooling: own["scores"] for pooling, own in found.items()},
        "seconds": sum(own["seconds"] for own in found.values()),
    }


def mean(values: list[float]) -> float:
    return sum(values) / len(values)


def report(records: list[Record]) -> str:
    """The page that is kept beside the records."""
    by_place = {(r["backbone"], r["method"], r["task"]): r["scores"] for r in records}
    parts = []
    for backbone, poolings in POOLINGS.items():
        methods = [method for known, method in RUNS if known == backbone]
        lines: list[list[str]] = []
        every: dict[str, list[list[float]]] = {}
        for task, told in TASKS.items():
            cells: list[str] = []
            for method in methods:
                found = by_place.get((backbone, method, task))
                own = [mean(found[pooling]) for pooling in poolings] if found else []
                every.setdefault(method, []).extend([own] if own else [])
                cells += [f"**{s:.3f}**" if s == max(own) else f"{s:.3f}" for s in own] or [""] * len(poolings)
            if any(cells):
                lines.append([f"{task}: {told.what} ({told.metric})", *cells])
        if not lines:
            continue
        ends = [[f"{mean(list(column)):.3f}" for column in zip(*every[m], strict=True)] for m in methods]
        filled = [end or [""] * len(poolings) for end in ends]
        lines.append(["mean of the column", *(cell for end in filled for cell in end)])
        header = ["task", *(f"{method}, {pooling}" for method in methods for pooling in poolings)]
        parts.append(f"## {backbone}\n\n{markdown(header, lines)}\n")
    return f"""# Pooling

How an input becomes one vector, by backbone, method and task; seed 0, scores on 800 test rows (fewer where a task has
few), the checkpoint chosen on 400 others, at most 2,000 rows (CoLA 3,000) to train on. The best of a method is in bold.

- Linear probe: the baseline's logistic or ridge regression on the frozen backbone's states, texts of 128 tokens.
- MiniLM: head-only at graftwork's defaults; LoRA at its defaults, but 120 steps of 16 texts; texts of 64 tokens.
- SmolLM2: 3 in 10 of those rows; LoRA 60 steps of 16 texts of 64 tokens.

Precision is what `auto` gives on a processor with AMX, bfloat16. Made by `python -m studies.pooling`.

{chr(10).join(parts)}"""


HERE = Path(__file__)
KEYS = ("backbone", "method", "task")
GRID = Grid(HERE.with_suffix(".jsonl"), KEYS, HERE.with_name("POOLING.md"), report)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m studies.pooling", description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="the folder of crowdflower, fdu_mtl, glue, sms_spam")
    parser.add_argument("--backbones", nargs="+", choices=POOLINGS, default=list(POOLINGS))
    methods = list(dict.fromkeys(method for _, method in RUNS))
    parser.add_argument("--methods", nargs="+", choices=methods, default=methods)
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=list(TASKS))
    parser.add_argument("--workers", type=int, default=1, help="processes beside each other, one thread each")
    given = parser.parse_args()
    GRID.fill(
        wanted(given.backbones, given.methods, given.tasks), partial(measure, data=given.data), workers=given.workers
    )


if __name__ == "__main__":
    main()
