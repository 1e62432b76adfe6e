"""Merges of seven tasks' results: against each task's own, the pre-trained body and multi-task training.

    python -m studies.merging --data DATA --work FOLDER [--methods lora] [--hows average ties] [--seeds 0 1 2]

DATA holds the folders `crowdflower` and `glue`. FOLDER keeps what was tuned. A run takes up where an earlier one
stopped. Rates and settings are the best of a few on the validation rows, in the mean over tasks with seed 0.
"""

import argparse
import json
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from statistics import mean
from typing import Any

from studies import domains, figures, groups
from studies.domains import EPOCHS, LENGTH
from studies.grid import Grid, Record, markdown

GROUP = "merging"
METHODS: dict[str, tuple[str, ...]] = {
    "full-fine-tuning": ("3e-5", "1e-4"),
    "lora": ("3e-4", "1e-3"),
    "houlsby": ("3e-4", "1e-3"),
}
"""By method of tuning, the rates that are tried."""

TUNED = ("individual", "multi-task")
"""What is tuned, rather than merged."""

SCALES = tuple({"scale": scale} for scale in (0.2, 0.3, 0.5, 1.0))
HOWS: dict[str, tuple[Mapping[str, Any], ...]] = {
    "pre-trained": ({},),
    "average": ({},),
    "arithmetic": SCALES,
    "ties": SCALES[1:],
    "dare": SCALES[:3],
    "breadcrumbs": SCALES[:3],
    "della": SCALES[1:],
    "sce": SCALES[1:],
    "model-stock": ({},),
    "iso-c": SCALES[2:],
    "tsv-m": SCALES[2:],
    "knots": SCALES[2:],
    "fisher": ({"examples": 256},),
    "regmean": ({},),
    "adamerging": ({"coefficients": "task", "steps": 100}, {"coefficients": "layer", "steps": 100}),
}
"""By way to merge, the settings that are tried."""

ONLY_MEANS = ("pre-trained", "average", "arithmetic", "fisher")
"""What there is for bottlenecks."""

NO_ENTROPY = ("stsb",)
"""Tasks whose answers have no entropy. AdaMerging merges the others, and they are scored on what comes of it."""


def measure(method: str, how: str, settings: str, seed: int, *, data: Path, work: Path) -> Mapping[str, Any]:
    """The scores of all tasks in one way.

    Args:
        method: of tuning.
        how: a way to merge, or one of `TUNED`.
        settings: of that way, as JSON; of what is tuned, the rate.

    Returns:
        validation, test: main metric by task; seconds: of the merge or the tuning, of the processor.
    """
    import time

    import torch

    import graftwork as gw
    from graftwork.arithmetic.adapters.scores import with_head_of

    torch.set_num_threads(1)
    backbone = gw.Backbone.load("minilm")
    tasks = groups.tasks_of(GROUP, data, work)
    if how == "multi-task":
        begun = time.process_time()
        found = gw.tune_tasks(backbone, list(tasks.values()), method=method, **domains.settings(settings, seed))
        took = time.process_time() - begun
        scores = {name: domains.scores_of(adapter, tasks[name].main_metric) for name, adapter in found.items()}
    else:
        rate = settings if how == "individual" else best_settings(method, "individual")
        begun = time.process_time()
        own = {name: own_result(backbone, task, method, rate, seed, work) for name, task in tasks.items()}
        if how == "individual":
            took = time.process_time() - begun
            scores = {name: domains.scores_of(adapter, tasks[name].main_metric) for name, adapter in own.items()}
        else:
            begun = time.process_time()
            body = merged_by(how, json.loads(settings), own, backbone)
            took = time.process_time() - begun
            scores = {
                name: scored(replace(with_head_of(body, own[name]), recipe=own[name].recipe), backbone, task)
                for name, task in tasks.items()
            }
    return {
        "validation": {name: one["validation"] for name, one in scores.items()},
        "test": {name: one["test"] for name, one in scores.items()},
        "seconds": round(took),
    }


def own_result(backbone: Any, task: Any, method: str, rate: str, seed: int, work: Path) -> Any:
    """What a method makes of a task alone, tuned unless it is there."""
    import graftwork as gw
    from graftwork.training.outputs import Output

    output = work / GROUP / method / rate / f"{seed}" / task.name
    if output.exists():
        return gw.Adapter.load(output)
    begun = Output(output).has_traces()
    return gw.tune(backbone, task=task, method=method, output=output, resume=begun, **domains.settings(rate, seed))


def merged_by(how: str, settings: Mapping[str, Any], own: Mapping[str, Any], backbone: Any) -> Any:
    """The merged body, with the head of one of the tasks."""
    from graftwork.arithmetic import merge_adapters
    from graftwork.arithmetic.merging.adaptermethods import AdapterOperands, run_on_adapters
    from graftwork.arithmetic.merging.method import make_merge_method

    if how == "pre-trained":
        return next(iter(merge_adapters(own, backbone, coefficients=[0.0] * len(own), heads="keep").adapters.values()))
    operands = {name: one for name, one in own.items() if how != "adamerging" or name not in NO_ENTROPY}
    found = run_on_adapters(make_merge_method(how, settings), AdapterOperands(adapters=operands, backbone=backbone))
    return next(iter(found.merged.adapters.values()))


def scored(adapter: Any, backbone: Any, task: Any) -> Mapping[str, float]:
    """Validation and test score of an adapter that was not tuned."""
    from graftwork.training.evaluation import evaluate

    return {
        split: round(evaluate(adapter, backbone=backbone, split=split, data=task.data)[task.main_metric], 4)
        for split in ("validation", "test")
    }


def ways(method: str) -> dict[str, tuple[str, ...]]:
    """By way, the settings that are tried for what a method has tuned."""
    merges = {how: own for how, own in HOWS.items() if method != "houlsby" or how in ONLY_MEANS}
    tried = {how: tuple(json.dumps(settings) for settings in own) for how, own in merges.items()}
    return {**dict.fromkeys(TUNED, METHODS[method]), **tried}


def best_settings(method: str, how: str) -> str:
    """The settings with the best mean validation score of a way, with seed 0."""
    tried = {
        record["settings"]: mean(record["validation"].values())
        for record in GRID.recorded()
        if (record["method"], record["how"], record["seed"]) == (method, how, 0)
    }
    return max(tried, key=tried.__getitem__)


def at_best(records: list[Record], method: str) -> dict[str, list[Record]]:
    """By way, the records at its best settings."""
    known = dict.fromkeys(record["how"] for record in records if record["method"] == method and record["seed"] == 0)
    best = {how: best_settings(method, how) for how in ways(method) if how in known}
    return {
        how: [r for r in records if (r["method"], r["how"], r["settings"]) == (method, how, settings)]
        for how, settings in best.items()
    }


def report(records: list[Record]) -> str:
    """The page that is kept beside the records."""
    tables = []
    for method in METHODS:
        own = at_best(records, method)
        if not own:
            continue
        names = groups.GROUPS[GROUP]
        lines = [
            [
                how,
                *(domains.interval([record["test"][name] for record in found]) for name in names),
                domains.interval([mean(record["test"].values()) for record in found]),
                shown(found[0]["settings"]),
                f"{len(found)}",
            ]
            for how, found in own.items()
        ]
        table = markdown(["way", *names, "mean", "settings", "seeds"], lines)
        tables.append(f"## {method}\n\n{table}\n\n![Mean test score, by way](merging-{method}.svg)\n")
    rows = groups.ROWS[GROUP]
    return f"""# Merges of seven tasks' results

MiniLM; {EPOCHS} epochs of at most {rows["train"]:,} rows a task, texts of at most {LENGTH} tokens. Test scores in
percent (CoLA: Matthews correlation, STS-B: Spearman, others: accuracy), mean over seeds and half the width of a 95 %
interval (Student's t). `individual`: each task's own result; `pre-trained`: the body as it was, under each task's own
head; `multi-task`: one for all tasks, a head each. What is merged is the body; each task has its own head. Rates and
settings are the best of those that were tried, on the validation rows with seed 0. AdaMerging learns its coefficients
on half of the validation texts of the tasks with classes. Bottlenecks can be merged by means alone.
Made by `python -m studies.merging`.

{chr(10).join(tables)}"""


def shown(settings: str) -> str:
    """Settings for a reader: a rate as it is, others without JSON's signs."""
    read = json.loads(settings) if settings.startswith("{") else {"rate": settings}
    return ", ".join(f"{key} {value}" for key, value in read.items())


def draw() -> None:
    """The figures of the page."""
    records = GRID.recorded()
    for method in METHODS:
        own = at_best(records, method)
        if own:
            values = {how: [mean(record["test"].values()) for record in found] for how, found in own.items()}
            figures.bars(HERE.with_name(f"merging-{method}.svg"), values, "mean test score, %")


HERE = Path(__file__)
GRID = Grid(HERE.with_suffix(".jsonl"), ("method", "how", "settings", "seed"), HERE.with_name("MERGING.md"), report)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m studies.merging", description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="the folder that holds crowdflower and glue")
    parser.add_argument("--work", type=Path, required=True, help="a folder for the tasks' rows and results")
    parser.add_argument("--methods", nargs="+", choices=list(METHODS), default=list(METHODS))
    parser.add_argument("--hows", nargs="+", choices=[*TUNED, *HOWS], default=[*TUNED, *HOWS])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--workers", type=int, default=1, help="processes beside each other, one thread each")
    given = parser.parse_args()
    run = partial(measure, data=given.data, work=given.work)
    groups.tasks_of(GROUP, given.data, given.work)  # written once, before several processes read them
    for method in given.methods:
        for how, tried in ways(method).items():
            if how in given.hows:
                GRID.run([(method, how, settings, 0) for settings in tried], run, workers=given.workers)
                best = best_settings(method, how)
                GRID.run([(method, how, best, seed) for seed in given.seeds], run, workers=given.workers)
    draw()
    GRID.fill([], run, workers=given.workers)


if __name__ == "__main__":
    main()
