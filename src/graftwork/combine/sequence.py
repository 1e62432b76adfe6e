"""What a pool is worth over a sequence of tasks: scores, forgetting, bytes and time after each, as table and figure.

Scoring reads the data of all tasks so far; the pool does not.
"""

import csv
import io
import time
from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from graftwork.adapters import Adapter
from graftwork.backbones import Backbone
from graftwork.combine.given import AnyAdapter
from graftwork.combine.pool import Pool
from graftwork.combine.reports import naming, refuse_other_contents, write_csv
from graftwork.data.table import SplitName
from graftwork.errors import RecipeError
from graftwork.folders import replacing_folder
from graftwork.kinds import KINDS
from graftwork.model import AdaptedModel
from graftwork.tasks import Task, find_task, load_split
from graftwork.training.evaluation import task_of

TIMED = 64
"""Inputs whose prediction is timed."""

MARKS, DASHES = "osD^vPX*", ("-", "--", "-.", ":")
"""What tells pools apart in the figure, besides colours."""

TABLE, SCORES, FIGURE = "sequence.csv", "scores.csv", "sequence"

FILES = (TABLE, SCORES, f"{FIGURE}.png", f"{FIGURE}.svg")
"""Of a report."""


@dataclass(frozen=True)
class Measured:
    """A pool after a task was added.

    Attributes:
        task: the one that was added.
        member: where it went.
        scores: the main metric of each task so far.
        mean: of these.
        forgetting: the mean over earlier tasks of how much lower their score is than it was at its highest; 0 without
            earlier ones.
        nbytes: of all adapters, heads included.
        seconds: in which the last task's adapter predicts 100 inputs.
    """

    task: str
    member: int
    scores: dict[str, float]
    mean: float
    forgetting: float
    nbytes: int
    seconds: float


def add_in_turn(
    pool: Pool,
    tasks: Sequence[str | Task],
    *,
    adapters: Mapping[str, AnyAdapter] | None = None,
    split: SplitName = "validation",
    report: str | Path | None = None,
    overwrite: bool = False,
    progress: bool = False,
    **training: Any,
) -> list[Measured]:
    """Add tasks to a pool one after another, and score all tasks so far after each.

    Tasks that the pool has by the same recipe are not added again: the same call goes on with what an interrupted one
    has done.

    Args:
        pool: the pool. Tasks that it has already are scored too.
        tasks: as for `Pool.add`.
        adapters: those that are tuned already, or their folders, by the task's name.
        split: the split that is scored.
        report: folder for `write_report`, which is written after each task. That of an interrupted call is gone on
            with.
        overwrite: replace an existing report of something else.
        progress: report progress on standard error.
        training: fields of `TrainingSettings`, for all tasks that are tuned and all students.

    Returns:
        What was measured after each task. Of a task that the pool had already it is what the report says; without one,
        it is measured if the task is the pool's last.

    Raises:
        RecipeError: a metric of a task is lower for better adapters, so that a mean would say nothing; the pool has a
            task by another recipe; or settings of training would do nothing, as all adapters are given and find room.
        OutputError: the report exists.
        GraftworkError: as `Pool.add`.
    """
    chosen = [task if isinstance(task, Task) else find_task(task) for task in tasks]
    for task in (*chosen, *map(pool.task, pool.tasks)):
        if not KINDS[task.kind].metrics[task.main_metric].greater_is_better:
            raise RecipeError(
                f"the main metric {task.main_metric!r} of task {task.name!r} is lower for better adapters",
                expected="a metric that is higher",
                change=f"the task's metrics (task {task.name})",
            )
    given = adapters or {}
    there = {task.name for task in chosen} - {task.name for task in pool.missing(chosen, adapters=given, **training)}
    known = {} if report is None else _measured_before(Path(report), pool, there, overwrite=overwrite)
    found: list[Measured] = []
    best = _best(pool, known, there, split)
    latest: Measured | None = None
    for task in chosen:
        if task.name in known:
            found.append(known[task.name])
            continue
        if task.name not in there:
            add_next(pool, task, given, progress=progress, **training)
        elif task.name != pool.tasks[-1]:
            continue  # what the pool was then cannot be measured any more
        measured = measure(pool, best, split=split, member=pool.history[-1].member, before=latest)
        latest = measured
        found.append(measured)
        best |= {name: max(score, best.get(name, score)) for name, score in measured.scores.items()}
        if report is not None:
            write_report({pool.folder.name: found}, report, overwrite=True)
    return found


def add_next(pool: Pool, task: Task, given: Mapping[str, AnyAdapter], *, progress: bool, **training: Any) -> None:
    """Add one of several tasks. One that is given and finds room is not trained, so that settings are of the others.

    Args:
        given: adapters that are tuned already, by the task's name.
        training: fields of `TrainingSettings`, for all tasks.
    """
    own = {} if pool.has_room and task.name in given else training
    pool.add(task, adapter=given.get(task.name), progress=progress, **own)


def _measured_before(folder: Path, pool: Pool, there: set[str], *, overwrite: bool) -> dict[str, Measured]:
    """What an interrupted call has measured, by task: the report that it left is one of this pool and these tasks.

    Raises:
        OutputError: a report exists that is none, and is not to be replaced.
    """
    steps = {step.task: (i, step) for i, step in enumerate(pool.history, start=1)}
    read = _read_report(folder)
    [(name, each)] = read.items() if len(read) == 1 else [("", [])]
    if name == pool.folder.name and all(
        own.task in there
        and (own.member, own.nbytes) == (steps[own.task][1].member, steps[own.task][1].nbytes)
        and tuple(own.scores) == pool.tasks[: steps[own.task][0]]
        for own in each
    ):
        return {own.task: own for own in each}
    refuse_report(folder, overwrite=overwrite)
    return {}


def _best(pool: Pool, known: Mapping[str, Measured], there: set[str], split: SplitName) -> dict[str, float]:
    """The highest score of each task of a pool that is known: the one that it has now; those that were measured before;
    and, of validation rows, the one that it had when it was added."""
    # Of a pool that is not measured yet as it is now, the scores of now are not those of before.
    unmeasured = bool(pool.tasks) and pool.tasks[-1] in there - known.keys()
    each = [own.scores for own in known.values()] + ([] if unmeasured else [scores_of(pool, split=split)])
    if split == "validation":
        earlier = pool.history[:-1] if unmeasured else pool.history
        each += [{step.task: step.after[pool.task(step.task).main_metric]} for step in earlier]
    return {name: max(own[name] for own in each if name in own) for name in {name for own in each for name in own}}


def scores_of(pool: Pool, *, split: SplitName = "validation", but: Container[str] = ()) -> dict[str, float]:
    """The main metric of each task of a pool, but of some."""
    names = [name for name in pool.tasks if name not in but]
    return {name: pool.evaluate(name, split=split)[pool.task(name).main_metric] for name in names}


def measure(
    pool: Pool,
    best: dict[str, float],
    *,
    split: SplitName = "validation",
    member: int = 0,
    before: Measured | None = None,
) -> Measured:
    """A pool as it is now.

    Args:
        best: the highest score of each task before.
        split: the split that is scored.
        member: of the last task.
        before: the pool without the last task. What other members than that one said is not asked again.
    """
    changed = pool.members[member]
    kept = {} if before is None else {name: own for name, own in before.scores.items() if name not in changed}
    scores = kept | scores_of(pool, split=split, but=kept)
    scores = {name: scores[name] for name in pool.tasks}
    last = pool.tasks[-1]
    lost = [best[name] - score for name, score in scores.items() if name in best]
    return Measured(
        task=last,
        member=member,
        scores=scores,
        mean=sum(scores.values()) / len(scores),
        forgetting=sum(lost) / len(lost) if lost else 0.0,
        nbytes=pool.nbytes,
        seconds=seconds_of(pool.backbone, pool.adapter(last), split, task=pool.task(last)),
    )


def seconds_of(
    backbone: Backbone, adapter: Adapter, split: SplitName = "validation", *, task: Task | None = None
) -> float:
    """In which an adapter predicts 100 inputs of its task, of the shortest of three times.

    Args:
        backbone: the adapter's, held by no model.
        split: the split with the inputs.
        task: with the data; None: that on which the adapter was tuned.
    """
    rows = load_split(task or task_of(adapter), split, grouped=True)
    inputs = list(KINDS[adapter.kind].inputs_of(rows))[:TIMED]
    model = AdaptedModel(backbone, {"timed": adapter})
    try:
        model.predict(inputs, "timed")
        times = []
        for _ in range(3):
            start = time.perf_counter()
            model.predict(inputs, "timed")
            times.append(time.perf_counter() - start)
    finally:
        model.detach()
    return 100 * min(times) / len(inputs)


def write_report(sequences: Mapping[str, Sequence[Measured]], folder: str | Path, *, overwrite: bool = False) -> None:
    """Write what was measured of one pool or several: `sequence.csv`; `scores.csv`, with the score of each task after
    each; and the figure `sequence.png` and `.svg`.

    Args:
        sequences: by the name of a pool, what was measured after each task.
        folder: for the files.
        overwrite: replace it if it exists.

    Raises:
        OutputError: it exists and is not to be replaced, or cannot be written.
    """
    refuse_report(folder, overwrite=overwrite)
    each = [(name, i, own) for name, measured in sequences.items() for i, own in enumerate(measured, start=1)]
    rows = [
        {
            "pool": name,
            "tasks": i,
            "task": own.task,
            "member": own.member,
            "mean": f"{own.mean:.6f}",
            "forgetting": f"{own.forgetting:.6f}",
            "bytes": own.nbytes,
            "seconds per 100": f"{own.seconds:.4f}",
        }
        for name, i, own in each
    ]
    scores = [
        {"pool": name, "tasks": i, "task": task, "score": f"{score:.6f}"}
        for name, i, own in each
        for task, score in own.scores.items()
    ]
    with naming("--report"), replacing_folder(Path(folder), overwrite=overwrite) as new:
        write_csv(new / TABLE, rows)
        write_csv(new / SCORES, scores)
        for ending, content in _figure(sequences).items():
            (new / f"{FIGURE}.{ending}").write_bytes(content)


def refuse_report(folder: str | Path, *, overwrite: bool = False) -> None:
    """Refuse a folder for a report before any work is done.

    Raises:
        OutputError: it exists and is not to be replaced, or has something else than a report.
    """
    refuse_other_contents(Path(folder), FILES, overwrite=overwrite, flag="--report")


def _read_report(folder: Path) -> dict[str, list[Measured]]:
    """What a report says, by the name of a pool; nothing where there is none."""
    try:
        tables = [list(csv.DictReader((folder / name).read_text(encoding="utf-8").splitlines())) for name in FILES[:2]]
        rows, scores = tables
        found: dict[str, list[Measured]] = {}
        for row in rows:
            place = row["pool"], row["tasks"]
            own = Measured(
                task=row["task"],
                member=int(row["member"]),
                scores={own["task"]: float(own["score"]) for own in scores if (own["pool"], own["tasks"]) == place},
                mean=float(row["mean"]),
                forgetting=float(row["forgetting"]),
                nbytes=int(row["bytes"]),
                seconds=float(row["seconds per 100"]),
            )
            found.setdefault(row["pool"], []).append(own)
    except (OSError, KeyError, TypeError, ValueError, csv.Error):
        return {}
    return found


def _figure(sequences: Mapping[str, Sequence[Measured]]) -> dict[str, bytes]:
    """The figure as PNG and SVG: four panels over the number of tasks, told apart by marks, not by colour alone."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    panels = (
        ("mean score", [[own.mean for own in measured] for measured in sequences.values()]),
        ("forgetting", [[own.forgetting for own in measured] for measured in sequences.values()]),
        ("size (MB)", [[own.nbytes / 1e6 for own in measured] for measured in sequences.values()]),
        ("time for 100 inputs (s)", [[own.seconds for own in measured] for measured in sequences.values()]),
    )
    figure = Figure(figsize=(8, 6))
    axes = figure.subplots(2, 2, sharex=True)
    for panel, (label, values) in zip(axes.flat, panels, strict=True):
        for i, (name, own) in enumerate(zip(sequences, values, strict=True)):
            panel.plot(range(1, len(own) + 1), own, marker=MARKS[i % 8], linestyle=DASHES[i % 4], label=name)
        panel.set_ylabel(label)
        panel.xaxis.set_major_locator(MaxNLocator(integer=True))
    for panel in axes[1]:
        panel.set_xlabel("tasks")
        panel.set_ylim(bottom=0)
    axes[0, 0].legend()
    figure.tight_layout()
    found = {}
    for ending in ("png", "svg"):
        content = io.BytesIO()
        figure.savefig(content, format=ending, dpi=150)
        found[ending] = content.getvalue()
    return found
