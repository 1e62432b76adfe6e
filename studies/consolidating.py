"""Pools of K adapters for tasks that arrive one after another: 16 domains of reviews, and tables of crowdflower.com.

    python -m studies.consolidating --data DATA --work FOLDER [--sequences domains] [--hows "K = 2"] [--seeds 0 1 2]

DATA holds the folders crowdflower and fdu_mtl. A run takes up where an earlier one stopped.
"""

import argparse
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from statistics import mean
from tempfile import TemporaryDirectory
from typing import Any

from studies import domains, figures
from studies.grid import Grid, Record, markdown
from studies.labelled import TASKS

LENGTH, EPOCHS, RATE, ROWS = 64, 5, 1e-3, 400
"""Of every task's adapter, and of every student's training."""

CROWDFLOWER = ("airline", "corporate", "disasters", "warming", "political", "emotions")
SEQUENCES = ("crowdflower", "domains")
HOWS: dict[str, dict[str, Any]] = {
    "one a task": {},
    **{f"K = {k}": {"capacity": k} for k in (8, 4, 2, 1)},
    **{f"K = {k}, random": {"capacity": k, "selection": "random"} for k in (8, 4, 2)},
    "one, tuned on": {"capacity": 1, "consolidation": "sequential"},
}
"""By way, the pool's settings."""


def measure(sequence: str, how: str, seed: int, *, data: Path, work: Path) -> Mapping[str, Any]:
    """What a pool is worth over a sequence.

    Returns:
        means, forgetting: after each task, over the tasks so far, of test accuracy; nbytes: of the pool after each;
        seconds: of a prediction of 100 inputs after each; took: seconds of the processor.
    """
    import time

    import torch

    import graftwork as gw
    from graftwork.combine.sequence import add_in_turn

    torch.set_num_threads(1)
    begun = time.process_time()
    backbone = gw.Backbone.load("minilm")
    tasks = tasks_of(sequence, data, work)
    with TemporaryDirectory(dir=work) as folder:
        pool = gw.Pool(Path(folder) / "pool", backbone=backbone, method="pfeiffer", **HOWS[how], seed=seed)
        found = add_in_turn(
            pool,
            tasks,
            split="test",
            seed=seed,
            num_train_epochs=EPOCHS,
            learning_rate=RATE,
            max_length=LENGTH,
            baseline="off",
        )
    return {
        "means": [round(own.mean, 4) for own in found],
        "forgetting": [round(own.forgetting, 4) for own in found],
        "nbytes": [own.nbytes for own in found],
        "seconds": [round(own.seconds, 4) for own in found],
        "took": round(time.process_time() - begun),
    }


def tasks_of(sequence: str, data: Path, work: Path) -> list[Any]:
    """The tasks of a sequence, in the order of their names."""
    if sequence == "domains":
        domains.write(data, work / "domains")
        return [domains.task(work / "domains", name) for name in domains.names(data)]
    found = []
    for name in CROWDFLOWER:
        folder = work / "crowdflower" / name
        if not folder.exists():
            folder.mkdir(parents=True)
            task = TASKS[name]
            task.write(data, folder, share=min(1.0, ROWS / task.train))
        found.append(TASKS[name].task(name, str(folder)))
    return found


def report(records: list[Record]) -> str:
    """The page that is kept beside the records."""
    tables = []
    for sequence in dict.fromkeys(record["sequence"] for record in records):
        lines = []
        for how in HOWS:
            own = [r for r in records if (r["sequence"], r["how"]) == (sequence, how)]
            if own:
                lines.append(
                    [
                        how,
                        domains.interval([record["means"][-1] for record in own]),
                        domains.interval([record["forgetting"][-1] for record in own]),
                        f"{own[0]['nbytes'][-1] / 1e6:.2f}",
                        f"{mean(record['seconds'][-1] for record in own):.2f}",
                        f"{len(own)}",
                    ]
                )
        header = ["pool", "mean accuracy, %", "forgetting, points", "MB", "seconds for 100 inputs", "seeds"]
        figure = f"![Mean test accuracy after each task](consolidating-{sequence}.svg)"
        tables.append(f"## {sequence}\n\n{markdown(header, lines)}\n\n{figure}\n")
    return f"""# Pools of few adapters for many tasks

MiniLM, Pfeiffer's bottlenecks (reduction 16); at most {ROWS} rows a task, {EPOCHS} epochs at rate {RATE:g} for each
task's adapter and for each student, texts of at most {LENGTH} tokens. Test accuracy after the last task, in the mean
over all tasks; forgetting is how much lower that is than at its highest, over earlier tasks; each with half the width
of its 95 % interval over seeds. TransRate chooses the member. Made by `python -m studies.consolidating`.

{chr(10).join(tables)}
"""


def draw(records: list[Record]) -> None:
    """The figures of the page: the mean score after each task."""
    for sequence in dict.fromkeys(record["sequence"] for record in records):
        found = {how: [r["means"] for r in records if (r["sequence"], r["how"]) == (sequence, how)] for how in HOWS}
        own = {how: [mean(after) for after in zip(*means, strict=True)] for how, means in found.items() if means}
        file = HERE.with_name(f"consolidating-{sequence}.svg")
        figures.curves(file, own, "tasks so far", "mean test accuracy, %")


HERE = Path(__file__)
GRID = Grid(HERE.with_suffix(".jsonl"), ("sequence", "how", "seed"), HERE.with_name("CONSOLIDATING.md"), report)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m studies.consolidating", description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="the folder that holds crowdflower and fdu_mtl")
    parser.add_argument("--work", type=Path, required=True, help="a folder for the tasks' rows")
    parser.add_argument(
        "--sequences", nargs="+", choices=("domains", "crowdflower"), default=["crowdflower", "domains"]
    )
    parser.add_argument("--hows", nargs="+", choices=list(HOWS), default=list(HOWS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--workers", type=int, default=1, help="processes beside each other, one thread each")
    given = parser.parse_args()
    wanted = [(sequence, how, seed) for seed in given.seeds for sequence in given.sequences for how in given.hows]
    GRID.run(wanted, partial(measure, data=given.data, work=given.work), workers=given.workers)
    draw(GRID.recorded())
    GRID.fill(wanted, partial(measure, data=given.data, work=given.work), workers=given.workers)


if __name__ == "__main__":
    main()
