"""One run of a study: tuned in its working folder, resumed if it was cut, and put into its folder when it has ended."""

import json
import logging
import shutil
import threading
import time
import traceback
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from graftwork.adapters import Adapter
from graftwork.adapters.folder import CONFIG
from graftwork.errors import DataError, GraftworkError
from graftwork.folders import write_whole
from graftwork.settings.yamlfile import RECIPE, dump_yaml, read_yaml
from graftwork.studies.arms import Job, trained_by
from graftwork.studies.claims import Claim, claimed
from graftwork.studies.environment import PeakMemory, environment
from graftwork.studies.identity import IDLE, NAMES
from graftwork.studies.predictions import predict_test
from graftwork.studies.records import DONE, ENVIRONMENT, FAILED, Record, Store
from graftwork.studies.results import METRICS, PREDICTIONS
from graftwork.training.outputs import LOG, differences
from graftwork.training.tuning import tune_recipe

WORK, SPENT, SHARED, ERRORS = "adapter", "seconds", "shared", "errors.json"
"""In a run's working folder: the output of tuning, the seconds that it has taken so far, how many runs were tuned at
once with it, and the errors of failed runs that are tried again."""

EVERY = 2.0
"""Seconds between two notes of the time."""

logger = logging.getLogger(__name__)


@dataclass
class Clock:
    """The time that a run has taken, with that of its parts before it was cut.

    Attributes:
        file: where it is noted.
        before: seconds of earlier parts.
    """

    file: Path
    before: float

    @classmethod
    def of(cls, working: Path) -> "Clock":
        file = working / SPENT
        try:
            before = float(file.read_text(encoding="ascii"))
        except (OSError, ValueError):
            before = 0.0
        return cls(file, before)

    @contextmanager
    def running(self) -> Iterator["Clock"]:
        """Inside, the time is noted every few seconds, so that little of it is lost when the process is killed."""
        self._start = time.monotonic()
        ended = threading.Event()

        def note() -> None:
            while not ended.wait(EVERY):
                with suppress(OSError):
                    write_whole(self.file, f"{self.seconds:.3f}")

        thread = threading.Thread(target=note, name="clock", daemon=True)
        thread.start()
        try:
            yield self
        finally:
            ended.set()
            thread.join()
            with suppress(OSError):
                write_whole(self.file, f"{self.seconds:.3f}")

    def restart(self) -> None:
        """Count from now on alone: what earlier parts came to is thrown away."""
        self.before, self._start = 0.0, time.monotonic()

    @property
    def seconds(self) -> float:
        return self.before + time.monotonic() - self._start


def run(job: Job, store: Store, claim: Claim) -> Record:
    """Do a run that this process holds, and put its folder there. What was begun before is gone on with.

    Args:
        job: the run.
        store: where its folder goes.
        claim: its working folder, which goes when the run has ended well.

    Returns:
        What came of it, which may be an error: that never ends a study.

    Raises:
        OutputError: the run's folder cannot be written.
    """
    began, backbone = _now(), job.arm.backbone
    device = next(backbone.model.parameters()).device
    memory = PeakMemory(device)
    earlier, shared = read_errors(claim.folder), _shared(claim.folder)
    adapter: Adapter | None = None
    error: Exception | None = None
    with Clock.of(claim.folder).running() as clock:
        try:
            adapter = _tuned(job, claim.folder / WORK, clock)
            predictions = predict_test(
                adapter,
                job.arm.task.data,
                backbone,
                batch_size=job.recipe.train.per_device_eval_batch_size,
                examples=job.recipe.train.generation_examples,
            )
            try:
                job.arm.task.refuse_changed()
            except DataError:
                shutil.rmtree(claim.folder / WORK)  # whoever tries again must not find it
                raise
        except Exception as problem:
            logger.debug("a run failed", exc_info=problem)
            error = problem
        seconds = round(clock.seconds, 3)
    facts: dict[str, Any] = {
        "hash": job.hash,
        "task": job.arm.task.name,
        "method": job.arm.method,
        "setting": job.arm.setting,
        "tried": dict(job.tried),
        "seed": job.seed,
        "learning_rate": job.recipe.train.learning_rate,
        "main_metric": job.arm.task.task.main_metric,
        "seconds": seconds,
        "peak_memory": memory.measure() if shared == 1 else None,
        "shared": shared,
        "began": began,
        "ended": _now(),
        "earlier_errors": earlier,
    }
    files = {ENVIRONMENT: json.dumps(environment(backbone), indent=1) + "\n"}
    recipe = job.recipe.model_dump(mode="json")
    if adapter is None or error is not None:
        assert error is not None
        record = Record(state=FAILED, error=_described(error), **facts)
        # What was trained stays until it is tried again.
        return store.put(record, files, recipe, None)
    trained = trained_by(job.recipe, job.arm.task.task, backbone)
    record = Record(
        state=DONE,
        scores={split: dict(scores) for split, scores in adapter.metrics.items()},
        rows=dict(adapter.rows),
        trained_parameters=trained["all"],
        head_parameters=trained["head"],
        backbone_parameters=backbone.num_parameters,
        nbytes=adapter.num_bytes,
        **facts,
    )
    files |= {METRICS: metrics_of(adapter, claim.folder / WORK / LOG), PREDICTIONS: predictions}
    record = store.put(record, files, recipe, claim.folder / WORK)
    claim.ended = record.state == DONE
    return record


def metrics_of(adapter: Adapter, log: Path) -> str:
    """The lines of `metrics.jsonl`: the training loss and validation scores as they were logged, then the scores of the
    adapter that was kept, whose step is null."""
    lines: list[dict[str, Any]] = []
    for text in log.read_text(encoding="utf-8").splitlines():
        row = json.loads(text)
        place = {"step": row.get("step"), "epoch": row.get("epoch")}
        scores = {key.removeprefix("eval_"): value for key, value in row.items() if key.startswith("eval_")}
        if scores:
            lines.append({**place, "split": "validation", **scores})
        elif "loss" in row:
            lines.append({**place, "split": "train", "loss": row["loss"], "learning_rate": row.get("learning_rate")})
    for split, own in adapter.metrics.items():
        lines.append({"step": None, "epoch": None, "split": split, **own})
    return "".join(json.dumps(line) + "\n" for line in lines)


def read_errors(working: Path) -> Sequence[Mapping[str, str]]:
    """The errors of failed runs that are tried again in a working folder."""
    try:
        found: Sequence[Mapping[str, str]] = json.loads((working / ERRORS).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return ()
    return found


def try_again(record: Record, store: Store) -> bool:
    """Have a run that failed be one that has not ended, its errors kept; whether this process did it.

    Another process may do the same at the same time, or run it already.
    """
    working = store.working(record.hash)
    with claimed(working, f"run {record.hash}") as claim:
        if claim is None or not store.place(record.hash).is_dir():
            return False
        kept = [*record.earlier_errors, *([record.error] if record.error else [])]
        write_whole(working / ERRORS, json.dumps(kept))
        old = working / "failed"
        with suppress(FileNotFoundError):
            store.place(record.hash).rename(old)
        store.forget(record.hash)
        shutil.rmtree(old, ignore_errors=True)
        # It begins anew: what training came to before it failed may be the cause.
        shutil.rmtree(working / f".{WORK}.tuning", ignore_errors=True)
        for name in (SPENT, SHARED):
            (working / name).unlink(missing_ok=True)
        return True


def _shared(working: Path) -> int:
    """How many runs were tuned at once with one, itself included."""
    file = working / SHARED
    return int(file.read_text(encoding="ascii")) if file.is_file() else 1


def _tuned(job: Job, output: Path, clock: Clock) -> Adapter:
    """The adapter, from where an earlier process stopped."""
    working = output.parent / f".{output.name}.tuning"
    if (output / CONFIG).is_file() and not (working / RECIPE).is_file():
        return Adapter.load(output)
    begun, resume = working / RECIPE, False
    if begun.is_file():
        was, now = read_yaml(begun), job.recipe.model_dump(mode="json")
        resume = not differences(_determining(was), _determining(now))
        if resume and was != now:
            # A run by other names and paths is the same run, and is gone on with under those of today.
            write_whole(begun, dump_yaml(now))
    if not resume:
        clock.restart()
    return tune_recipe(
        job.recipe,
        output=output,
        backbone=job.arm.backbone,
        data=job.arm.task.data,  # those that the run's name is of: the file may be another by now
        resume=resume,
        overwrite=not resume,
    )


def _determining(recipe: Mapping[str, Any]) -> dict[str, Any]:
    """What of a recipe determines a run; the content of its data and its backbone is in the run's name."""
    task = {key: value for key, value in recipe.get("task", {}).items() if key not in NAMES}
    train = {key: value for key, value in recipe.get("train", {}).items() if key not in IDLE}
    kept = {key: value for key, value in recipe.items() if key != "backbone"}
    return {**kept, "task": task, "train": train}


def _described(error: Exception) -> dict[str, str]:
    return {
        "kind": type(error).__name__,
        "message": str(error) if isinstance(error, GraftworkError) else f"{type(error).__name__}: {error}",
        "traceback": "".join(traceback.format_exception(error)),
    }


def _now() -> str:
    return datetime.now().astimezone().isoformat(timespec="seconds")
