"""`compare`: run a study, or go on with it, and write its tables and its report."""

import sys
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from graftwork.backbones.quiet import quiet_transformers
from graftwork.errors import FailedRunsError, InterruptedRunError, OutputError, RecipeError
from graftwork.folders import make_folder, write_whole
from graftwork.settings.checked import require_count
from graftwork.settings.yamlfile import dump_yaml, read_yaml
from graftwork.studies.arms import Job
from graftwork.studies.claims import in_turn
from graftwork.studies.cluster import refuse_without_ray, run_on_ray
from graftwork.studies.outputs import write_outputs
from graftwork.studies.plan import Plan
from graftwork.studies.records import DONE, RUNS, Record
from graftwork.studies.repeated import said_once
from graftwork.studies.report import PAGE, REPORT
from graftwork.studies.report import report as write_report
from graftwork.studies.results import Result
from graftwork.studies.single_run import try_again
from graftwork.studies.study import FILE, Study
from graftwork.studies.work_loop import tidy, work
from graftwork.studies.workers import run_workers
from graftwork.training.processes import number_started

TO_KEEP = "give output to keep them"
"""In a study's folder: its figures, and the page that has them all."""

TURN = ".writing"
"""In a study's folder: the folder that is held while its files are written."""


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
    workers: int | None = None,
    ray: str | None = None,
    retry_failed: bool = False,
    tables_only: bool = False,
    progress: bool = False,
) -> Comparison:
    """Run a study, or go on with it. What is done is not done again, and what was cut is resumed.

    Several processes may work on one study at the same time, also on several machines with one file system.

    Args:
        study: its file, its values, or a `Study`.
        output: folder for its runs and tables. None: for a file, the folder beside it of the same name; otherwise a
            temporary one, which goes at the end: the results stay, their folders do not.
        overrides: values that override those of the file, by dotted key (`train.num_train_epochs`).
        workers: number of processes, each with an equal share of the cores. None: this process alone; on a cluster, one
            for each GPU, or as many as there are CPUs for with as many threads as this process has.
        ray: address of a Ray cluster whose machines do the work, as `ray.init` takes it. They share the output folder,
            the data and the backbone, each at the same path.
        retry_failed: run again what failed before; its errors are kept.
        tables_only: write the tables, and neither figures nor the report.
        progress: report each run on standard error.

    Raises:
        GraftworkError: a task, a method, a setting or the budget is wrong. Nothing was run.
        FailedRunsError: some of the runs failed. The others were done, and the tables are written.
        OutputError: the folder cannot be written, or has another study; workers were killed again and again, or ended
            before the study had.
    """
    _refuse_torchrun()
    if workers is not None:
        require_count("workers", workers)
    if ray is not None:
        refuse_without_ray()
    if isinstance(study, Study):
        declared, beside = study.beside(Path.cwd()), None
    elif isinstance(study, Mapping):
        declared, beside = Study.parse(study).beside(Path.cwd()), None
    else:
        declared, beside = Study.from_yaml(study, overrides), Path(study).with_suffix("")
    if overrides and not isinstance(study, str | Path):
        raise RecipeError("overrides are of a study's file", expected="a path", change="overrides")
    place = beside if output is None else Path(output)
    say = _say if progress else _nothing
    with said_once():
        if place is not None:
            plan = _run(declared, place.resolve(), workers, ray, say, retry_failed=retry_failed)
            return _ended(plan, say, report=not tables_only)
        with tempfile.TemporaryDirectory(prefix="graftwork.") as folder:
            plan = _run(declared, Path(folder), workers, ray, say, retry_failed=retry_failed, kept=False)
            return _ended(plan, say, report=False, kept=False)


def _refuse_torchrun() -> None:
    """Refuse several processes that would train each run together: those of a study take runs of their own."""
    count = number_started()
    if count > 1:
        raise RecipeError(
            f"the study was started as {count} processes, by torchrun or accelerate launch",
            expected="one process, whose workers share the runs out among them",
            change="--workers, in place of torchrun",
        )


def _run(
    study: Study,
    folder: Path,
    workers: int | None,
    ray: str | None,
    say: Callable[..., None],
    *,
    retry_failed: bool,
    kept: bool = True,
) -> Plan:
    """Run what can be run of a study."""
    _refuse_other_contents(folder)
    _refuse_other_study(study, folder)
    say(f"reading the data of {_count(len(study.tasks), 'task')}, and backbone {study.backbone}")
    with quiet_transformers():
        plan = Plan(study, folder)
    make_folder(folder / RUNS)
    with in_turn(folder / TURN, f"writing of {folder}"):
        _refuse_other_study(study, folder)
        write_whole(folder / FILE, dump_yaml(study.as_values()))
    say(*_described(plan))
    told = _Progress(plan, say)
    standings = plan.standings()
    if retry_failed:
        again = [record for record in plan.failed(standings) if try_again(record, plan.store)]
        if again:
            say(f"tried again: {_count(len(again), 'run')} that failed")
    try:
        if ray is not None:
            if plan.open_jobs(plan.standings()):
                run_on_ray(ray, study, folder, workers, threads=torch.get_num_threads(), look=told.look, say=say)
        elif workers in (None, 1):
            with quiet_transformers():
                work(plan, told.announce)
        elif plan.open_jobs(plan.standings()):
            run_workers(study, folder, workers, look=told.look, say=say)
    except KeyboardInterrupt as stop:
        done = sum(record.state == DONE for record in plan.records(plan.standings()))
        rest = "what was cut is kept: the same command goes on with it" if kept else f"none is kept: {TO_KEEP}"
        raise InterruptedRunError(f"interrupted; {_count(done, 'run')} done, and {rest}", resumable=False) from stop
    tidy(plan)
    return plan


def _refuse_other_contents(folder: Path) -> None:
    """Refuse a folder that holds something else: a file of the user's might be overwritten.

    Raises:
        OutputError: it is no folder, or not empty and no study's.
    """
    if folder.is_dir() and any(folder.iterdir()) and not (folder / RUNS).is_dir():
        raise OutputError(
            f"folder {str(folder)!r} is not empty, and no study's",
            expected="a new folder, or one in which a study has run",
            change="--output",
        )
    if folder.exists() and not folder.is_dir():
        raise OutputError(f"{str(folder)!r} is a file", expected="a folder", change="--output")


def _refuse_other_study(study: Study, folder: Path) -> None:
    """Refuse a folder with the tables of another study, which would be overwritten.

    Raises:
        OutputError: there is a study of another name.
    """
    file = folder / FILE
    if file.is_file() and (name := str(read_yaml(file).get("name", file.stem))) != study.name:
        raise OutputError(
            f"folder {str(folder)!r} has study {name!r}, whose tables those of {study.name!r} would replace",
            expected="a folder for each study",
            change="--output, or the study's name",
        )


def _ended(plan: Plan, say: Callable[..., None], *, report: bool, kept: bool = True) -> Comparison:
    """The tables, and what came of it all.

    Args:
        kept: the study's folder stays when it has ended.
    """
    standings = plan.standings()
    failed = tuple(plan.failed(standings))
    with in_turn(plan.store.folder / TURN, f"writing of {plan.store.folder}"):
        before = _written(plan.store.folder)
        results = tuple(write_outputs(plan, standings))
        page = plan.store.folder / REPORT / PAGE
        if report and results and not (page.is_file() and before == _written(plan.store.folder)):
            say("drawing the figures")
            write_report(plan.store.folder)
    left = len(plan.open_jobs(standings))
    found = Comparison(plan.store.folder, results, failed, left, plan.hours(standings))
    say(_spent(plan, found))
    if failed:
        raise FailedRunsError(
            f"{len(failed)} of {plan.counts.all} runs failed; the others are done"
            + (", and the tables are written" if kept else f". No folders are kept: {TO_KEEP}")
            + "".join(f"\n  {_where(record, plan, kept=kept)}: {_first(record)}" for record in failed),
            change="what each error names" + ("; --retry-failed runs them again" if kept else ""),
            finished=found,
        )
    if left and not plan.spent(standings):
        raise OutputError(
            f"{_count(left, 'run')} of the study {'is' if left == 1 else 'are'} still to be done, and its workers have "
            "ended; the tables are of the others",
            expected="data, backbone and study that stay as they are while it runs",
            change="nothing: the same command goes on with it",
        )
    return found


def _where(record: Record, plan: Plan, *, kept: bool) -> str:
    """By what a run is known to who reads of it: its folder, or else what it is."""
    if kept:
        return str(plan.store.place(record.hash))
    setting = f" ({record.setting})" if record.setting else ""
    return f"{record.task}, {record.method}{setting}, learning rate {record.learning_rate:g}, seed {record.seed}"


def _written(folder: Path) -> list[bytes]:
    """What a report is made of: it is drawn again where that has changed."""
    return [path.read_bytes() for path in sorted(folder.glob("*.csv"))]


def _described(plan: Plan) -> list[str]:
    """What a study is going to do."""
    tasks, methods = len(plan.study.tasks), len(plan.arms) // len(plan.study.tasks)
    budget, counts = plan.study.budget, plan.counts
    allowed = [f"{budget.runs} runs"] if budget.runs else []
    allowed += [f"{budget.search_runs} in the search of a method on a task"] if budget.search_runs else []
    allowed += [f"{budget.hours:g} hours"] if budget.hours else []
    lines = [
        f"{_count(tasks, 'task')}, {_count(methods, 'method and setting', 'methods and settings')}: "
        f"{_count(counts.search, 'run')} of the search and {counts.further} more"
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
    budget, ended = plan.study.budget, len(plan.records(plan.standings()))
    runs = _count(ended, "run") + (f" of {budget.runs}" if budget.runs else "")
    hours = f"{found.hours:.2f} hours" + (f" of {budget.hours:g}" if budget.hours else "")
    why = ", as the budget is spent" if plan.spent(plan.standings()) else ""
    rest = f"; {_count(found.open, 'run')} not begun{why}" if found.open else ""
    return f"spent: {runs}, {hours}{rest}"


class _Progress:
    """Tells of each run when it has ended, whoever ran it."""

    def __init__(self, plan: Plan, say: Callable[..., None]) -> None:
        self.plan, self.say = plan, say
        self.told = {record.hash for record in plan.records(plan.standings())}
        if self.told:
            say(f"ended before: {_count(len(self.told), 'run')}")

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


def _count(number: int, one: str, several: str = "") -> str:
    return f"{number} {one if number == 1 else several or one + 's'}"


def _say(*lines: str) -> None:
    for line in lines:
        print(line, file=sys.stderr, flush=True)


def _nothing(*lines: str) -> None:
    pass
