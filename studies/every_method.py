"""Every method on real tasks with MiniLM: score, trained parameters and seconds, one table.

Each cell of the table is one `graftwork.tune` with the method's own settings and the same number of steps for all
methods.

    python -m studies.every_method --data DATA [--workers 2] [--tasks stsb mrpc] [--methods lora houlsby]

DATA holds a `glue` and a `conll2003` folder. A run takes up where an earlier one stopped.
"""

import argparse
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from studies.grid import REPORTED, Grid, Record, markdown

BATCH = 16
STEPS = {"stsb": 200, "mrpc": 150, "conll2003": 200, "cola": 400, "rte": 50}

SETTINGS = {"prompt-tuning": {"num_virtual_tokens": 20}}
"""Beside the methods' own: 100 prompt vectors before a sentence of ten words would be nine tenths of all tokens."""


RAISED = {
    **dict.fromkeys(("pfeiffer", "adapterdrop", "parallel", "adamix", "prefix-tuning"), "1e-3"),
    **dict.fromkeys(("top-layers", "discriminative", "ulmfit"), "1e-3"),
    **{"p-tuning": "3e-3", "p-tuning-v2": "3e-2", "prompt-tuning": "3e-1"},
}
"""Methods whose papers' rates are for longer runs, and a higher one, with which they have a row besides."""


def methods() -> list[str]:
    """All that can be named alone; a `union` needs its members."""
    from graftwork.training.planning import survey

    return [row.name for row in survey() if row.name != "union"]


def rows() -> list[str]:
    """The rows of the table: a method with its own settings, or `METHOD at RATE`."""
    return [*methods(), *(f"{name} at {rate}" for name, rate in RAISED.items())]


def measure(task: str, row: str, *, data: Path) -> Mapping[str, Any]:
    """Tune one method on one task, on one thread.

    Args:
        row: of the table.

    Returns:
        metric: the task's main one; score: on its validation split; trained: number of parameters, the head's among
        them; steps; seconds: of the processor, loading the data and scoring included.
    """
    import time

    import torch

    import graftwork as gw
    from graftwork.training.evaluation import task_of
    from graftwork.training.planning import trained_for

    torch.set_num_threads(1)
    method, _, rate = row.partition(" at ")
    own = SETTINGS.get(method, {})
    changed: dict[str, Any] = {"learning_rate": float(rate)} if rate else {}
    begun = time.process_time()
    adapter = gw.tune(
        gw.Backbone.load("minilm", dtype="float32"),
        task=task,
        method=gw.make_method(method, own),
        data=str(data / ("conll2003" if task == "conll2003" else "glue")),
        max_steps=STEPS[task],
        per_device_train_batch_size=BATCH,
        prefix_cache="off",
        **changed,
    )
    seconds = time.process_time() - begun
    metric = REPORTED.get(task, task_of(adapter).main_metric)
    return {
        "metric": metric,
        "score": adapter.metrics["validation"][metric],
        "trained": trained_for(adapter),
        "steps": STEPS[task],
        "seconds": round(seconds),
    }


def report(records: list[Record]) -> str:
    """The page that is kept beside the records."""
    by_place = {(record["method"], record["task"]): record for record in records}
    metrics = {record["task"]: record["metric"] for record in records}
    tasks = [task for task in STEPS if task in metrics]
    lines = []
    for name in rows():
        cells = [by_place.get((name, task)) for task in tasks]
        counts = [cell["trained"] for cell in cells if cell]
        if counts:
            seconds = " + ".join(f"{cell['seconds']:.0f}" if cell else "-" for cell in cells)
            scores = [f"{cell['score']:.3f}" if cell else "" for cell in cells]
            lines.append([name, f"{min(counts):,}", *scores, seconds])
    table = markdown(["method", "trained", *(f"{task} ({metrics[task]})" for task in tasks), "seconds"], lines)
    steps = ", ".join(f"{task} {STEPS[task]}" for task in tasks)
    return f"""# Every method on real tasks

MiniLM (22.7M, float32), seed 0, {BATCH} texts a batch, steps: {steps}.
All else is each method's default, but for prompt tuning's 20 vectors and the rows that name another rate.
Scores are of the validation split. Seconds are the processor's, one thread, loading and scoring included. Trained
parameters are the fewest of the tasks', the head's among them (a head of tags uses no pooling layer).
Made by `python -m studies.every_method`.

**Measured with the pooling layer of MiniLM's checkpoint, which nobody trained, and with the rates of that time.** The
defaults are others now (see [docs/defaults.md](../docs/defaults.md)), and much that stands at chance here learns under
them: [POOLING.md](POOLING.md), [RATES.md](RATES.md).

One class for all inputs scores 0.812 on mrpc, 0 on cola, 0.473 or 0.527 on rte: so few steps teach most methods nothing
there. They are what two cores do in hours; stsb and conll2003 tell methods apart.

{table}
"""


HERE = Path(__file__)
GRID = Grid(HERE.with_suffix(".jsonl"), ("task", "method"), HERE.with_name("EVERY_METHOD.md"), report)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m studies.every_method", description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="the folder that holds glue and conll2003")
    parser.add_argument("--tasks", nargs="+", choices=STEPS, default=list(STEPS))
    parser.add_argument("--methods", nargs="+", choices=rows(), default=rows(), metavar="METHOD")
    parser.add_argument("--workers", type=int, default=1, help="processes beside each other, one thread each")
    given = parser.parse_args()
    wanted = [(task, name) for task in given.tasks for name in given.methods]
    GRID.fill(wanted, partial(measure, data=given.data), workers=given.workers)


if __name__ == "__main__":
    main()
