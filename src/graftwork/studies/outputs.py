"""The files that a study ends in: tables of scores, of its search, of costs and of comparisons, and which runs they are
of. What is measured anew by a run that was cut (time, memory) is in a file of its own: all others are the same, byte
for byte, however often the study was killed.
"""

import json
import logging
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from graftwork.errors import DataError, first_line
from graftwork.folders import write_whole
from graftwork.studies.choosing import Standing
from graftwork.studies.pairing import compare_pair
from graftwork.studies.plan import Plan, named
from graftwork.studies.records import DONE, RUNS, read_record
from graftwork.studies.results import Result
from graftwork.studies.shown import as_csv, readable
from graftwork.studies.statistics import summarise

CHOSEN = "chosen.json"
"""The runs that are compared, with their names in the study."""

logger = logging.getLogger(__name__)


def write_outputs(plan: Plan, standings: Sequence[Standing]) -> list[Result]:
    """Write a study's tables.

    Returns:
        The runs that are compared.
    """
    folder = plan.store.folder
    chosen = [
        named(record, own.arm)
        for own in standings
        for job in own.final
        if (record := plan.store.find(job.hash)) is not None and record.state == DONE
    ]
    entries = [{"run": one.hash, "task": one.task, "method": one.method, "setting": one.setting} for one in chosen]
    write_whole(folder / CHOSEN, json.dumps(entries, indent=1) + "\n")
    results = [record.result(plan.store.place(record.hash)) for record in chosen]
    tables = {
        "results": [_line(own) for own in results],
        "summary": summary(results),
        "search": _search(plan, standings),
        "comparisons": comparisons(results),
        "costs": [_cost(own) for own in results],
    }
    for name, rows in tables.items():
        write_whole(folder / f"{name}.csv", as_csv(rows))
    return results


def read_results(folder: str | Path) -> tuple[Result, ...]:
    """The runs that a study compares, out of its folder.

    Raises:
        DataError: it is not a study's folder, or a run is damaged.
    """
    folder = Path(folder)
    file = folder / CHOSEN
    try:
        entries = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(
            f"{file} cannot be read: {error}",
            expected="the folder of a study that `graftwork compare` has written",
            change="the folder, or run the study",
        ) from None
    found = []
    for entry in entries:
        place = folder / RUNS / entry["run"]
        found.append(read_record(place).named(entry["task"], entry["method"], entry["setting"]).result(place))
    return tuple(found)


def grouped(results: Iterable[Result]) -> dict[tuple[str, str, str], list[Result]]:
    """Runs by task, method and setting."""
    found: dict[tuple[str, str, str], list[Result]] = {}
    for own in results:
        found.setdefault((own.task, own.method, own.setting), []).append(own)
    return found


def summary(results: Iterable[Result]) -> list[dict[str, Any]]:
    """A line for each method and setting on each task: mean, standard error and interval over seeds, of both splits."""
    lines = []
    for (task, method, setting), runs in grouped(results).items():
        line: dict[str, Any] = {"task": task, "method": method, "setting": setting, "metric": runs[0].main_metric}
        line |= {"seeds": len(runs), "learning_rate": runs[0].learning_rate}
        for split in ("validation", "test"):
            values = [getattr(own, split)[own.main_metric] for own in runs if getattr(own, split)]
            own = summarise(values) if values else None
            line |= {
                split: own and own.mean,
                f"{split}_standard_error": own and own.standard_error,
                f"{split}_low": own and own.low,
                f"{split}_high": own and own.high,
            }
        lines.append({**line, "trained_parameters": runs[0].trained_parameters})
    return lines


def comparisons(results: Sequence[Result]) -> list[dict[str, Any]]:
    """A line for each method and setting on each task, compared with the first one there, by test scores. What compares
    rows is empty where they were scored on different ones.
    """
    lines = []
    by_task: dict[str, list[list[Result]]] = {}
    for (task, _, _), runs in grouped(results).items():
        by_task.setdefault(task, []).append(runs)
    for task, (reference, *others) in by_task.items():
        for runs in others:
            try:
                pair = compare_pair(runs, reference)
            except DataError as error:
                what = f"{runs[0].label} and {reference[0].label} on {task}"
                logger.warning("%s are compared by seeds alone: %s", what, first_line(error))
                pair = compare_pair(runs, reference, rows=False)
            if pair is None:
                continue
            rows = pair.by_rows
            lines.append(
                {
                    "task": task,
                    "method": runs[0].label,
                    "compared_with": reference[0].label,
                    "metric": runs[0].main_metric,
                    "seeds": len(pair.seeds),
                    "difference": pair.by_seeds.mean,
                    "seeds_low": pair.by_seeds.low,
                    "seeds_high": pair.by_seeds.high,
                    "seeds_p": pair.by_seeds.p,
                    "rows_low": rows and rows.low,
                    "rows_high": rows and rows.high,
                    "rows_p": rows and rows.p,
                    "mcnemar_p": pair.mcnemar,
                }
            )
    return lines


def _line(own: Result) -> dict[str, Any]:
    return {
        "task": own.task,
        "method": own.method,
        "setting": own.setting,
        "learning_rate": own.learning_rate,
        "seed": own.seed,
        "metric": own.main_metric,
        "validation": own.validation_score,
        "test": own.test.get(own.main_metric),
        "trained_parameters": own.trained_parameters,
        "head_parameters": own.head_parameters,
        "backbone_parameters": own.backbone_parameters,
        "bytes": own.nbytes,
        "run": own.folder.name,
    }


def _cost(own: Result) -> dict[str, Any]:
    facts = {"task": own.task, "method": own.method, "setting": own.setting, "seed": own.seed, "run": own.folder.name}
    return {**facts, "seconds": own.seconds, "peak_memory": own.peak_memory}


def _search(plan: Plan, standings: Sequence[Standing]) -> list[dict[str, Any]]:
    """A line for each run of a search, by validation alone."""
    lines = []
    for own in standings:
        for job in own.search:
            record = plan.store.find(job.hash)
            lines.append(
                {
                    "task": own.arm.task.name,
                    "method": own.arm.method,
                    "setting": own.arm.setting,
                    "tried": ", ".join(f"{key}={readable(value)}" for key, value in job.tried.items()),
                    "seed": job.seed,
                    "metric": own.arm.task.task.main_metric,
                    "validation": record.validation if record is not None and record.state == DONE else None,
                    "state": "open" if record is None else record.state,
                    "chosen": own.chosen is not None and dict(own.chosen) == dict(job.tried),
                    "run": job.hash,
                }
            )
    return lines
