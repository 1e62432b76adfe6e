"""Fusions of the adapters of 16 domains of reviews, and of GLUE tasks: against a task's own adapter, averages and
multi-task training.

    python -m studies.fusing --data DATA --work FOLDER [--groups domains] [--hows single attention] [--seeds 0 1 2]

DATA holds the folders `fdu_mtl` and `glue`. FOLDER keeps the adapters. A run takes up where an earlier one stopped. The
rate of each way is the best of a few on the validation rows, in the mean over tasks with seed 0.
"""

import argparse
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from statistics import mean
from typing import Any

from studies import domains, figures, groups
from studies.domains import EPOCHS, LENGTH
from studies.grid import Grid, Record, markdown

RATES: dict[str, tuple[str, ...]] = {
    "head only": ("1e-2",),
    "single": ("1e-3", "3e-3"),
    "average": ("1e-2",),
    "attention": ("3e-4", "1e-3"),
    "gate": ("1e-3",),
    "multi-task": ("1e-3", "3e-3"),
}
"""By way, the rates that are tried."""

TARGETS: dict[str, tuple[str, ...]] = {"domains": (), "glue": ("mrpc", "rte")}
"""By group, the tasks for which all adapters are combined; none: all."""


def measure(group: str, how: str, rate: str, seed: int, *, data: Path, work: Path) -> Mapping[str, Any]:
    """The scores of all tasks of a group in one way; of a composition, those of the group's targets.

    Returns:
        validation, test: main metric by task; trained: trained parameters of one task's result; seconds.
    """
    import time

    import torch

    import graftwork as gw

    torch.set_num_threads(1)
    begun = time.process_time()
    backbone = gw.Backbone.load("minilm")
    tasks = groups.tasks_of(group, data, work)
    settings = domains.settings(rate, seed)
    if how == "multi-task":
        found = gw.tune_tasks(backbone, list(tasks.values()), method="pfeiffer", **settings)
    elif how == "single":
        kept = groups.kept(group, work)
        found = {name: domains.own_adapter(backbone, task, rate, seed, kept) for name, task in tasks.items()}
    else:
        method = method_of(group, how, backbone, tasks, seed, work)
        targets = TARGETS[group] or tuple(tasks)
        found = {name: gw.tune(backbone, task=tasks[name], method=method, **settings) for name in targets}
    scores = {name: domains.scores_of(adapter, tasks[name].main_metric) for name, adapter in found.items()}
    first = next(iter(found.values()))
    return {
        "validation": {name: own["validation"] for name, own in scores.items()},
        "test": {name: own["test"] for name, own in scores.items()},
        "trained": first.num_parameters,
        "seconds": round(time.process_time() - begun),
    }


def method_of(group: str, how: str, backbone: Any, tasks: Mapping[str, Any], seed: int, work: Path) -> Any:
    """The method of a way; its parts are the tasks' own adapters of that seed."""
    import graftwork as gw

    if how == "head only":
        return gw.HeadOnly()
    best, kept = domains.best_rate(recorded(group), "single"), groups.kept(group, work)
    parts = {name: domains.own_adapter(backbone, task, best, seed, kept) for name, task in tasks.items()}
    composition: Any = {"average": gw.Average, "attention": gw.Fuse, "gate": gw.Gate}[how]
    return composition(parts=parts)


def recorded(group: str) -> list[Record]:
    """What was measured of a group."""
    return [record for record in GRID.recorded() if record["group"] == group]


def report(records: list[Record]) -> str:
    """The page that is kept beside the records."""
    parts = [
        f"## {TITLES[group]}\n\n{table([record for record in records if record['group'] == group], group)}\n\n"
        f"![Mean test score, by way](fusing-{group}.svg)\n"
        for group in dict.fromkeys(record["group"] for record in records)
    ]
    return f"""# Fusions of several tasks' adapters

MiniLM, Pfeiffer's bottlenecks (reduction 16), {EPOCHS} epochs, batches of 32, texts of at most {LENGTH} tokens; test
scores in percent, mean over seeds and half the width of a 95 % interval (Student's t). `single`: a task's own adapter;
`average`, `attention` and `gate`: the adapters of all tasks combined, and a new head, trained on the task;
`multi-task`: one adapter for all tasks, a head each. The budget is the same for all: {EPOCHS} epochs of the task's rows
(of multi-task: of all rows together), besides what the parts took. The rate is the best of those that were tried, on
the validation rows with seed 0. Seconds are the processor's, for all tasks of the table together.
Made by `python -m studies.fusing`.

{chr(10).join(parts)}"""


TITLES = {
    "domains": f"16 domains of reviews, {domains.TRAIN} rows each",
    "glue": f"Tasks of GLUE, at most {groups.ROWS['glue']['train']:,} rows each",
}


def table(records: list[Record], group: str) -> str:
    """The scores of a group's tasks by way."""
    own = domains.at_best_rate(records, RATES)
    names = TARGETS[group] or sorted({name for found in own.values() for name in found[0]["test"]})
    rows = [
        [name, *(domains.interval([record["test"][name] for record in found]) for found in own.values())]
        for name in names
    ]
    means = ["mean", *(domains.interval(each) for each in means_of(own, names).values())]
    rates = ["rate", *(found[0]["rate"] for found in own.values())]
    counts = ["trained", *(f"{found[0]['trained']:,}" for found in own.values())]
    seeds = ["seeds", *(f"{len(found)}" for found in own.values())]
    seconds = ["seconds", *(f"{mean(record['seconds'] for record in found):,.0f}" for found in own.values())]
    return markdown(["task", *own], [*rows, means, rates, counts, seeds, seconds])


def means_of(own: Mapping[str, list[Record]], names: Sequence[str]) -> dict[str, list[float]]:
    """By way, the mean test score over tasks, one a seed."""
    return {how: [mean(record["test"][name] for name in names) for record in found] for how, found in own.items()}


def draw() -> None:
    """The figures of the page."""
    for group in TARGETS:
        own = domains.at_best_rate(recorded(group), RATES)
        if own:
            names = TARGETS[group] or tuple(next(iter(own.values()))[0]["test"])
            figures.bars(HERE.with_name(f"fusing-{group}.svg"), means_of(own, names), "mean test score, %")


HERE = Path(__file__)
GRID = Grid(HERE.with_suffix(".jsonl"), ("group", "how", "rate", "seed"), HERE.with_name("FUSING.md"), report)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m studies.fusing", description="Fusions of several tasks' adapters.")
    parser.add_argument("--data", type=Path, required=True, help="the folder that holds fdu_mtl and glue")
    parser.add_argument("--work", type=Path, required=True, help="a folder for the tasks' rows and adapters")
    parser.add_argument("--groups", nargs="+", choices=list(TARGETS), default=list(TARGETS))
    parser.add_argument("--hows", nargs="+", choices=list(RATES), default=list(RATES))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--rates", nargs="+", help="those to try; all that are listed when left out")
    parser.add_argument("--workers", type=int, default=1, help="processes beside each other, one thread each")
    given = parser.parse_args()
    run = partial(measure, data=given.data, work=given.work)
    for group in given.groups:
        groups.tasks_of(group, given.data, given.work)  # written once, before several processes read them
        for how in given.hows:
            GRID.run([(group, how, rate, 0) for rate in given.rates or RATES[how]], run, workers=given.workers)
            best = domains.best_rate(recorded(group), how)
            GRID.run([(group, how, best, seed) for seed in given.seeds], run, workers=given.workers)
    draw()
    GRID.fill([], run, workers=given.workers)


if __name__ == "__main__":
    main()
