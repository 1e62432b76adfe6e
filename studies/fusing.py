"""Fusions of 16 domains' adapters, for each domain: against its own adapter, averages and multi-task training.

    python -m studies.fusing --data DATA --work FOLDER [--hows single attention] [--seeds 0 1 2]

DATA holds a `fdu_mtl` folder. FOLDER keeps the adapters. A run takes up where an earlier one stopped. The rate of each
way is the best of a few on the validation rows, in the mean over domains with seed 0.
"""

import argparse
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from statistics import mean
from typing import Any

from studies import domains, figures
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


def measure(how: str, rate: str, seed: int, *, data: Path, work: Path) -> Mapping[str, Any]:
    """The scores of all domains in one way.

    Returns:
        validation, test: accuracy by domain; trained: trained parameters of one domain's result; seconds.
    """
    import time

    import torch

    import graftwork as gw

    torch.set_num_threads(1)
    begun = time.process_time()
    domains.write(data, work / "data")
    backbone = gw.Backbone.load("minilm")
    names = domains.names(data)
    tasks = {name: domains.task(work / "data", name) for name in names}
    settings = domains.settings(rate, seed)
    if how == "multi-task":
        found = gw.tune_tasks(backbone, list(tasks.values()), method="pfeiffer", **settings)
    elif how == "single":
        found = {name: domains.own_adapter(backbone, task, rate, seed, work) for name, task in tasks.items()}
    else:
        method = method_of(how, backbone, tasks, seed, work)
        found = {name: gw.tune(backbone, task=task, method=method, **settings) for name, task in tasks.items()}
    scores = {name: domains.scores_of(adapter) for name, adapter in found.items()}
    first = found[names[0]]
    return {
        "validation": {name: own["validation"] for name, own in scores.items()},
        "test": {name: own["test"] for name, own in scores.items()},
        "trained": first.num_parameters,
        "seconds": round(time.process_time() - begun),
    }


def method_of(how: str, backbone: Any, tasks: Mapping[str, Any], seed: int, work: Path) -> Any:
    """The method of a way; its parts are the domains' own adapters of that seed."""
    import graftwork as gw

    if how == "head only":
        return gw.HeadOnly()
    best = domains.best_rate(GRID.recorded(), "single")
    parts = {name: domains.own_adapter(backbone, task, best, seed, work) for name, task in tasks.items()}
    composition: Any = {"average": gw.Average, "attention": gw.Fuse, "gate": gw.Gate}[how]
    return composition(parts=parts)


def report(records: list[Record]) -> str:
    """The page that is kept beside the records."""
    own = domains.at_best_rate(records, RATES)
    names = sorted({name for found in own.values() for record in found for name in record["test"]})
    rows = [
        [name, *(domains.interval([record["test"][name] for record in found]) for found in own.values())]
        for name in names
    ]
    means = ["mean", *(domains.interval([mean(r["test"].values()) for r in found]) for found in own.values())]
    rates = ["rate", *(found[0]["rate"] for found in own.values())]
    counts = ["trained", *(f"{found[0]['trained']:,}" for found in own.values())]
    seeds = ["seeds", *(f"{len(found)}" for found in own.values())]
    seconds = ["seconds", *(f"{mean(record['seconds'] for record in found):,.0f}" for found in own.values())]
    table = markdown(["domain", *own], [*rows, means, rates, counts, seeds, seconds])
    return f"""# Fusions of 16 domains' adapters

MiniLM, Pfeiffer's bottlenecks (reduction 16), {EPOCHS} epochs of at most {domains.TRAIN} reviews a domain, batches of
32, texts of at most {LENGTH} tokens; test accuracy in percent on {domains.TEST} reviews a domain, mean over seeds and
half the width of a 95 % interval (Student's t). `single`: a domain's own adapter; `average`, `attention` and `gate`:
the adapters of all 16 domains combined, and a new head, trained on the domain; `multi-task`: one adapter for all
domains, a head each. The budget is the same for all: {EPOCHS} epochs of the domain's rows (of multi-task: of all rows
together), besides what the parts took. The rate is the best of those that were tried, on the validation rows with
seed 0. Seconds are the processor's, for all domains.
Made by `python -m studies.fusing`.

{table}

![Mean test accuracy over the domains, by way](fusing.svg)
"""


def draw(records: list[Record]) -> None:
    """The figure of the page."""
    figures.bars(HERE.with_suffix(".svg"), domains.means(records, RATES), "mean test accuracy, %")


HERE = Path(__file__)
GRID = Grid(HERE.with_suffix(".jsonl"), ("how", "rate", "seed"), HERE.with_name("FUSING.md"), report)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m studies.fusing", description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="the folder that holds fdu_mtl")
    parser.add_argument("--work", type=Path, required=True, help="a folder for the domains' rows and adapters")
    parser.add_argument("--hows", nargs="+", choices=list(RATES), default=list(RATES))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--rates", nargs="+", help="those to try; all that are listed when left out")
    parser.add_argument("--workers", type=int, default=1, help="processes beside each other, one thread each")
    given = parser.parse_args()
    run = partial(measure, data=given.data, work=given.work)
    for how in given.hows:
        GRID.run([(how, rate, 0) for rate in given.rates or RATES[how]], run, workers=given.workers)
        best = domains.best_rate(GRID.recorded(), how)
        GRID.run([(how, best, seed) for seed in given.seeds], run, workers=given.workers)
    draw(GRID.recorded())
    GRID.fill([], run, workers=given.workers)


if __name__ == "__main__":
    main()
