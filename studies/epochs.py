"""Epochs and batch sizes beside each other: how long a run should be where nothing is said, for few rows and for many.

    python -m studies.epochs --data DATA [--workers 2] [--tasks stsb] [--methods lora]

DATA holds the folders crowdflower, fdu_mtl, glue and sms_spam. A run takes up where an earlier one stopped.
"""

import argparse
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from studies.grid import Grid, Record, markdown
from studies.labelled import TASKS, scored

LENGTH = 64
OF_TASKS = ("sst2-200", "corporate", "stsb")
OF_METHODS = ("lora", "pfeiffer", "head-only")
RUNS = ((3, 32), (5, 32), (10, 32), (3, 16))
"""Epochs and batch sizes. 10 epochs of batches of 32 are what is done where nothing is said."""


def measure(method: str, epochs: int, batch: int, task: str, *, data: Path) -> Mapping[str, Any]:
    """The test score of a method after so many epochs, of the checkpoint that was best in validation."""
    options = {"num_train_epochs": epochs, "per_device_train_batch_size": batch, "max_length": LENGTH}
    found = scored(task, method, data=data, pooling="mean", **options)
    return {"score": found["scores"][0], "seconds": found["seconds"]}


def report(records: list[Record]) -> str:
    """The page that is kept beside the records."""
    by_place = {tuple(record[key] for key in GRID.keys): record["score"] for record in records}
    lines = []
    for method in OF_METHODS:
        for epochs, batch in RUNS:
            cells = [by_place.get((method, epochs, batch, task)) for task in OF_TASKS]
            if any(cell is not None for cell in cells):
                named = f"{method}, {epochs} epochs of batches of {batch}"
                lines.append([named, *("" if cell is None else f"{cell:.3f}" for cell in cells)])
    table = markdown(["run", *(f"{task} ({TASKS[task].metric})" for task in OF_TASKS)], lines)
    return f"""# Epochs and batch sizes

MiniLM, pooled by the mean, seed 0, texts of at most {LENGTH} tokens; at most 2,000 rows to train on (SST-2: 200);
scores on 800 test rows (fewer where a task has few), of the checkpoint that was best in validation. All else is the
method's default; head-only has its former rate, 3e-3. Precision is what `auto` gives on a processor with AMX, bfloat16.
Made by `python -m studies.epochs`.

{table}
"""


HERE = Path(__file__)
GRID = Grid(HERE.with_suffix(".jsonl"), ("method", "epochs", "batch", "task"), HERE.with_name("EPOCHS.md"), report)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m studies.epochs", description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="the folder of crowdflower, fdu_mtl, glue, sms_spam")
    parser.add_argument("--tasks", nargs="+", choices=OF_TASKS, default=list(OF_TASKS))
    parser.add_argument("--methods", nargs="+", choices=OF_METHODS, default=list(OF_METHODS))
    parser.add_argument("--workers", type=int, default=1, help="processes beside each other, one thread each")
    given = parser.parse_args()
    wanted = [(method, *run, task) for task in given.tasks for method in given.methods for run in RUNS]
    GRID.fill(wanted, partial(measure, data=given.data), workers=given.workers)


if __name__ == "__main__":
    main()
