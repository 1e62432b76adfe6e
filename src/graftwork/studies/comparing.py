"""`compare`: run a study, or go on with it, and write its tables."""

import sys
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from graftwork.backbones.quiet import quiet_transformers
from graftwork.errors import FailedRunsError, InterruptedRunError, RecipeError
from graftwork.folders import make_folder, write_whole
from graftwork.settings.checked import require_count
from graftwork.settings.yamlfile import dump_yaml
from graftwork.studies.arms import Job
from graftwork.studies.plan import Plan
from graftwork.studies.records import DONE, Record
from graftwork.studies.repeated import said_once
from graftwork.studies.results import Result
from graftwork.studies.running import try_again
from graftwork.studies.study import FILE, Study
from graftwork.studies.workers import run_workers
from graftwork.studies.working import tidy, work
from graftwork.studies.writing import write_outputs


@dataclass(frozen=True)
class Comparison:
    """What came of a study.

    Attributes:
        folder: where its runs and tables are.
        results: the runs that are compared: of each method and setting on each task, all seeds with what was chosen.
        failed: runs that failed, with their errors.
        open: number of runs that have not been begun, as the budget's hours are spent; of searches that go on, those
            that are known.
        hours: hours that all runs have taken.
    """

    folder: Path
    results: tuple[Result, ...]
    failed: tuple[Record, ...]
    open: int
    hours: float


def compare(
    study: str | Path | Mapping[str, Any] | Study,
    *,
    output: str | Path | None = None,
    overrides: Mapping[str, Any] | None = None,
    workers: int = 1,
    retry_failed: bool = False,
    progress: bool = False,
) -> Comparison:
    """Run a study, or go on with it. What is done is not done again, and what was cut is resumed.

    Several processes may work on one study at the same time, also on several machines with one file system.

    Args:
        study: its file, its values, or a `Study`.
        output: folder for its runs and tables. None: for a file, the folder beside it of the same name; otherwise a
            temporary one, which goes at the end: the results stay, their folders do not.
        overrides: values that override those of the file, by dotted key (`train.num_train_epochs`).
        workers: number of processes, each with an equal share of the cores. 1: this process.
        retry_failed: run again what failed before; its errors are kept.
        progress: report each run on standard error.

    Raises:
        GraftworkError: a task, a method, a setting or the budget is wrong. Nothing was run.
        FailedRunsError: some of the runs failed. The others were done, and the tables are written.
        OutputError: the folder cannot be written, or workers were killed again and again.
    """
    require_count("workers", workers)
    if isinstance(study, Study):
        declared, beside = study, None
    elif isinstance(study, Mapping):
        declared, beside = Study.parse(study).beside(Path.cwd()), None
    else:
        declared, beside = Study.from_yaml(study, overrides), Path(study).with_suffix("")
    if overrides and not isinstance(study, str | Path):
        raise RecipeError("overrides are of a study's file", expected="a path", change="overrides")
    place = beside if output is None else Path(output)
    if place is not None:
        return _compare(declared, place.resolve(), workers=workers, retry_failed=retry_failed, progress=progress)
    with tempfile.TemporaryDirectory(prefix="graftwork.") as folder:
        return _compare(declared, Path(folder), workers=workers, retry_failed=retry_failed, progress=progress)


def _compare(study: Study, folder: Path, *, workers: int, retry_failed: bool, progress: bool) -> Comparison:
    with said_once():
        return _compared(study, folder, workers=workers, retry_failed=retry_failed, progress=progress)


def _compared(study: Study, folder: Path, *, workers: int, retry_failed: bool, progress: bool) -> Comparison:
    say = _say if progress else _nothing
    say(f"reading the data of {len(study.tasks)} tasks, and backbone {study.backbone}")
    with quiet_transformers():
        plan = Plan(study, folder)
    make_folder(folder)
    write_whole(folder / FILE, dump_yaml(study.as_values()))
    say(*_described(plan))
    told = _Progress(plan, say)
    standings = plan.standings()
    if retry_failed:
        again = [record for record in plan.failed(standings) if try_again(record, plan.store)]
        if again:
            say(f"{len(again)} runs that failed are tried again")
    try:
        if workers == 1:
            with quiet_transformers():
                work(plan, told.announce)
        elif plan.open_jobs(plan.standings()):
            run_workers(folder, workers, look=told.look, say=say)
    except KeyboardInterrupt as stop:
        done = sum(record.state == DONE for record in plan.records(plan.standings()))
        raise InterruptedRunError(
            f"interrupted; {done} runs are done, and what was cut is kept: the same command goes on with it",
            resumable=False,
        ) from stop
    tidy(plan)
    return _ended(plan, say)


def _ended(plan: Plan, say: Callable[..., None]) -> Comparison:
    """The tables, and what came of it all."""
    standings = plan.standings()
    failed = tuple(plan.failed(standings))
    results = tuple(write_outputs(plan, standings))
    left = len(plan.open_jobs(standings))
    found = Comparison(plan.store.folder, results, failed, left, plan.hours(standings))
    say(_spent(plan, found))
    if failed:
        raise FailedRunsError(
            f"{len(failed)} of {plan.counts.all} runs failed; the others are done, and the tables are written\n  "
            + "\n  ".join(f"{plan.store.place(record.hash)}: {_first(record)}" for record in failed),
            change="what each error names; --retry-failed runs them again",
            finished=found,
        )
    return found


def _described(plan: Plan) -> list[str]:
    """What a study is going to do."""
    tasks, methods = len(plan.study.tasks), len(plan.arms) // len(plan.study.tasks)
    budget, counts = plan.study.budget, plan.counts
    allowed = [f"{budget.runs} runs"] if budget.runs else []
    allowed += [f"{budget.search_runs} in the search of a method on a task"] if budget.search_runs else []
    allowed += [f"{budget.hours:g} hours"] if budget.hours else []
    lines = [
        f"{tasks} tasks, {methods} methods and settings: {counts.search} runs of the search and {counts.further} more"
        + (f"; the budget is {', '.join(allowed)}" if allowed else "")
    ]
    untested = [own.name for own in {id(arm.task): arm.task for arm in plan.arms}.values() if own.data.test is None]
    if untested:
        lines.append(
            f"no test split has labels: {', '.join(untested)}. Their scores are of the rows that chose, and are left "
            "out of the tables of test scores; test_fraction of a task holds rows out"
        )
    return lines


def _spent(plan: Plan, found: Comparison) -> str:
    limit = plan.study.budget.hours
    hours = f"{found.hours:.2f} hours" + (f" of {limit:g}" if limit else "")
    rest = f"; {found.open} runs have not been begun, as the budget is spent" if found.open else ""
    return f"{hours} of training{rest}; tables in {found.folder}"


class _Progress:
    """Tells of each run when it has ended, whoever ran it."""

    def __init__(self, plan: Plan, say: Callable[..., None]) -> None:
        self.plan, self.say = plan, say
        self.told = {record.hash for record in plan.records(plan.standings())}
        if self.told:
            say(f"{len(self.told)} runs have ended before")

    def announce(self, job: Job, record: Record) -> None:
        self.told.add(record.hash)
        self.say(f"[{len(self.told)}/{self.plan.counts.all}] {job.label}: {_outcome(record)}")

    def look(self) -> None:
        for standing in self.plan.standings():
            for job in standing.jobs:
                record = self.plan.store.find(job.hash)
                if record is not None and record.hash not in self.told:
                    self.announce(job, record)


def _outcome(record: Record) -> str:
    if record.state == DONE:
        return f"validation {record.main_metric} {record.validation:.4f} ({record.seconds:.0f} s)"
    return f"FAILED: {_first(record)}"


def _first(record: Record) -> str:
    return (record.error or {}).get("message", "").partition("\n")[0]


def _say(*lines: str) -> None:
    for line in lines:
        print(line, file=sys.stderr, flush=True)


def _nothing(*lines: str) -> None:
    pass
