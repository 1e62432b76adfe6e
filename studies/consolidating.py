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

from studies import domains, figures, groups
from studies.domains import EPOCHS, LENGTH
from studies.grid import Grid, Record, markdown

SEQUENCES: dict[str, tuple[str, ...]] = {"crowdflower": ("1e-3", "3e-3"), "domains": ("3e-3",)}
"""By sequence, the rates that are tried: for the tasks' own adapters, and so for all trainings. That of the domains is
what `studies.fusing` found best of 1e-3 and 3e-3."""
ALONE, FUSION = "one a task", "fusion of all"
HOWS: dict[str, dict[str, Any]] = {
    ALONE: {},
    FUSION: {},
    **{f"K = {k}": {"capacity": k} for k in (8, 4, 2, 1)},
    **{f"K = {k}, random": {"capacity": k, "selection": "random"} for k in (8, 4, 2)},
    "one, tuned on": {"capacity": 1, "consolidation": "sequential"},
}
"""By way, the pool's settings."""


def measure(sequence: str, how: str, rate: str, seed: int, *, data: Path, work: Path) -> Mapping[str, Any]:
    """What a pool is worth over a sequence.

    Returns:
        means, forgetting: after each task, over the tasks so far, of test scores; nbytes: of the adapters after each;
        seconds: of a prediction of 100 inputs after each; validation: the mean validation score of the
        tasks' own adapters; took: seconds of the processor.
    """
    import time

    import torch

    import graftwork as gw
    from graftwork.combine.sequence import add_in_turn

    torch.set_num_threads(1)
    begun = time.process_time()
    backbone = gw.Backbone.load("minilm")
    tasks = list(groups.tasks_of(sequence, data, work).values())
    kept = groups.kept(sequence, work)
    own = {task.name: domains.own_adapter(backbone, task, rate, seed, kept) for task in tasks}
    with TemporaryDirectory(dir=work) as folder:
        pool = gw.Pool(Path(folder) / "pool", backbone=backbone, method="pfeiffer", **HOWS[how], seed=seed)
        settings = domains.settings(rate, seed)
        students = "capacity" in HOWS[how] and len(tasks) > HOWS[how]["capacity"]
        if how == FUSION:
            found = fused_in_turn(backbone, tasks, own, settings)
        else:
            found = add_in_turn(pool, tasks, adapters=own, split="test", **(settings if students else {}))
    return {
        "means": [round(one.mean, 4) for one in found],
        "forgetting": [round(one.forgetting, 4) for one in found],
        "nbytes": [one.nbytes for one in found],
        "seconds": [round(one.seconds, 4) for one in found],
        "validation": round(mean(own[task.name].metrics["validation"][task.main_metric] for task in tasks), 4),
        "took": round(time.process_time() - begun),
    }


def fused_in_turn(backbone: Any, tasks: list[Any], own: Mapping[str, Any], settings: Mapping[str, Any]) -> list[Any]:
    """What fusions are worth: as each task comes, one of its own adapter and all earlier ones (AdapterFusion)."""
    import graftwork as gw
    from graftwork.combine.sequence import Measured, seconds_of

    found: list[Any] = []
    scores: dict[str, float] = {}
    nbytes = 0
    for i, task in enumerate(tasks):
        parts = {one.name: own[one.name] for one in tasks[: i + 1]}
        fused = gw.tune(backbone, task=task, method=gw.Fuse(parts=parts), **settings) if i else own[task.name]
        scores = {**scores, task.name: fused.metrics["test"][task.main_metric]}
        # A part is there once, whatever the number of fusions that it is in.
        held = sum(part.num_bytes for part in parts.values())
        nbytes += fused.num_parameters * 4 if i else 0
        took = seconds_of(backbone, fused, "test")
        found.append(Measured(task.name, i, dict(scores), mean(scores.values()), 0.0, held + nbytes, took))
    return found


def report(records: list[Record]) -> str:
    """The page that is kept beside the records."""
    tables = []
    for sequence in dict.fromkeys(record["sequence"] for record in records):
        known = at_best_rate(records, sequence)
        lines = [
            [
                how,
                domains.interval([record["means"][-1] for record in own]),
                domains.interval([record["forgetting"][-1] for record in own]),
                f"{own[0]['nbytes'][-1] / 1e6:.2f}",
                f"{len(own)}",
            ]
            for how, own in known.items()
        ]
        header = ["way", "mean score, %", "forgetting, points", "MB", "seeds"]
        figure = f"![Mean test score after each task](consolidating-{sequence}.svg)"
        rate = next(iter(known.values()))[0]["rate"]
        tables.append(f"## {sequence}\n\nRate {rate}.\n\n{markdown(header, lines)}\n\n{figure}\n")
    return f"""# Pools of few adapters for many tasks

MiniLM, Pfeiffer's bottlenecks (reduction 16); at most {domains.TRAIN} rows a task, {EPOCHS} epochs for each task's
adapter and for each student, texts of at most {LENGTH} tokens. The rate of all is that at which the tasks' own
adapters are best on the validation rows with seed 0, of 1e-3 and 3e-3 (over the domains, as `studies.fusing` found).
`{FUSION}`: as each task comes, a fusion of its own adapter and all earlier ones (AdapterFusion); all adapters are kept
for it. Test score after the last task, in the mean over all tasks; forgetting is how much lower that is than at its
highest, over earlier tasks; each with half the width of its 95 % interval over seeds. TransRate chooses the member. A
prediction runs one adapter, whatever K; a fusion runs all of its parts (benchmarks/fuse.py says what that takes). Made
by `python -m studies.consolidating`.

{chr(10).join(tables)}
"""


def at_best_rate(records: list[Record], sequence: str) -> dict[str, list[Record]]:
    """By way, what was measured of a sequence at the rate that is best for the tasks' own adapters with seed 0."""
    own = [record for record in records if record["sequence"] == sequence]
    tried = {record["rate"]: record["validation"] for record in own if record["seed"] == 0}
    best = max(tried, key=tried.__getitem__)
    known = {how: [record for record in own if (record["how"], record["rate"]) == (how, best)] for how in HOWS}
    return {how: found for how, found in known.items() if found}


def draw(records: list[Record]) -> None:
    """The figures of the page: the mean score after each task."""
    for sequence in dict.fromkeys(record["sequence"] for record in records):
        means = {how: [r["means"] for r in own] for how, own in at_best_rate(records, sequence).items()}
        curves = {how: [mean(after) for after in zip(*own, strict=True)] for how, own in means.items()}
        file = HERE.with_name(f"consolidating-{sequence}.svg")
        figures.curves(file, curves, "tasks so far", "mean test score, %")


HERE = Path(__file__)
GRID = Grid(HERE.with_suffix(".jsonl"), ("sequence", "how", "rate", "seed"), HERE.with_name("CONSOLIDATING.md"), report)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m studies.consolidating", description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="the folder that holds crowdflower and fdu_mtl")
    parser.add_argument("--work", type=Path, required=True, help="a folder for the tasks' rows")
    parser.add_argument("--sequences", nargs="+", choices=list(SEQUENCES), default=list(SEQUENCES))
    parser.add_argument("--hows", nargs="+", choices=list(HOWS), default=list(HOWS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--workers", type=int, default=1, help="processes beside each other, one thread each")
    given = parser.parse_args()
    run = partial(measure, data=given.data, work=given.work)
    for sequence in given.sequences:
        groups.tasks_of(sequence, given.data, given.work)  # written once, before several processes read them
        GRID.run([(sequence, ALONE, rate, 0) for rate in SEQUENCES[sequence]], run, workers=given.workers)
        rate = at_best_rate(GRID.recorded(), sequence)[ALONE][0]["rate"]
        # The tasks' own adapters are tuned here, and are there for all other ways.
        GRID.run([(sequence, ALONE, rate, seed) for seed in given.seeds], run, workers=given.workers)
        wanted = [(sequence, how, rate, seed) for seed in given.seeds for how in given.hows]
        GRID.run(wanted, run, workers=given.workers)
    draw(GRID.recorded())
    GRID.fill([], run, workers=given.workers)


if __name__ == "__main__":
    main()
