"""Learning rates beside each other: what a method's default should be at MiniLM's size and some thousand rows.

    python -m studies.rates --data DATA [--workers 2] [--tasks stsb] [--methods lora houlsby]

DATA holds the folders crowdflower, fdu_mtl, glue and sms_spam. A run takes up where an earlier one stopped.
"""

import argparse
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from studies.grid import Grid, Record, markdown
from studies.labelled import TASKS, scored

STEPS, BATCH, LENGTH = 160, 16, 64
OF_TASKS = ("stsb", "corporate", "sst2-200")

RATES = {
    "pfeiffer": ("1e-4", "3e-4", "1e-3"),
    "houlsby": ("3e-4", "1e-3"),
    "parallel": ("1e-4", "1e-3"),
    "adamix": ("1e-4", "1e-3"),
    "compacter": ("3e-3", "1e-2"),
    "lora": ("5e-4", "1e-3", "2e-3"),
    "dora": ("5e-4", "2e-3"),
    "vera": ("4e-3", "2e-2"),
    "ia3": ("3e-3", "1e-2"),
    "bitfit": ("1e-3", "3e-3"),
    "layer-norm-tuning": ("1e-3", "3e-3"),
    "prefix-tuning": ("1e-4", "3e-4", "1e-3"),
    "prompt-tuning": ("3e-2", "3e-1"),
    "p-tuning-v2": ("5e-3", "3e-2"),
    "full-fine-tuning": ("5e-5", "2e-4"),
    "head-only": ("3e-3", "1e-2", "3e-2"),
}
"""By method; the first is what graftwork had, which was the paper's or its code's."""


def measure(method: str, rate: str, task: str, *, data: Path) -> Mapping[str, Any]:
    """The test score of a method at a rate."""
    options = {"max_steps": STEPS, "per_device_train_batch_size": BATCH, "max_length": LENGTH, "pooling": "mean"}
    found = scored(task, method, data=data, learning_rate=float(rate), **options)
    return {"score": found["scores"][0], "seconds": found["seconds"]}


def report(records: list[Record]) -> str:
    """The page that is kept beside the records."""
    by_place = {(record["method"], record["rate"], record["task"]): record["score"] for record in records}
    tasks = [task for task in OF_TASKS if any(known == task for *_, known in by_place)]
    lines = []
    for method, rates in RATES.items():
        for rate in rates:
            cells = [by_place.get((method, rate, task)) for task in tasks]
            if any(cell is not None for cell in cells):
                lines.append([f"{method} at {rate}", *("" if cell is None else f"{cell:.3f}" for cell in cells)])
    table = markdown(["method", *(f"{task} ({TASKS[task].metric})" for task in tasks)], lines)
    return f"""# Learning rates

MiniLM, pooled by the mean, seed 0; {STEPS} steps of {BATCH} texts of at most {LENGTH} tokens; scores on 800 test rows
(fewer where a task has few), at most 2,000 rows to train on. All else is the method's default; a head's rate is at
least 3e-3. The first rate of a method is what graftwork had before.
Precision is what `auto` gives on a processor with AMX, bfloat16. Made by `python -m studies.rates`.

{table}
"""


HERE = Path(__file__)
GRID = Grid(HERE.with_suffix(".jsonl"), ("method", "rate", "task"), HERE.with_name("RATES.md"), report)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m studies.rates", description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="the folder of crowdflower, fdu_mtl, glue, sms_spam")
    parser.add_argument("--tasks", nargs="+", choices=OF_TASKS, default=list(OF_TASKS))
    parser.add_argument("--methods", nargs="+", choices=RATES, default=list(RATES))
    parser.add_argument("--workers", type=int, default=1, help="processes beside each other, one thread each")
    given = parser.parse_args()
    wanted = [(method, rate, task) for task in given.tasks for method in given.methods for rate in RATES[method]]
    GRID.fill(wanted, partial(measure, data=given.data), workers=given.workers)


if __name__ == "__main__":
    main()
