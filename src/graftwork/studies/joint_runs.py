"""Runs of a study that share passes: the seeds of one method and setting, or what its search tries, tuned at once."""

import json
import logging
import shutil
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from hashlib import sha256
from pathlib import Path

from graftwork.adapters.folder import CONFIG
from graftwork.folders import write_whole
from graftwork.studies.arms import Job
from graftwork.studies.claims import Claim, claimed
from graftwork.studies.records import RUNS, Store
from graftwork.studies.single_run import SHARED, SPENT, WORK, Clock
from graftwork.training.joint_recipe import JointRecipe
from graftwork.training.many import HELD, tune_joint_recipe

MOST = 8
"""So many runs are tuned at once: each has its own parameters, optimiser and activations in memory."""

NAMES, TURN = "together", ".turn"
"""In a folder where runs are tuned at once: which ones, also those that have ended; and the folder that is held by who
keeps their names and time."""

logger = logging.getLogger(__name__)


def groups(jobs: Sequence[Job]) -> Iterator[list[Job]]:
    """Runs that can share passes: those of one arm. A run that can share none is alone."""
    found: dict[int, list[Job]] = {}
    for job in jobs:
        if can_share(job):
            found.setdefault(id(job.arm), []).append(job)
        else:
            yield [job]
    for own in found.values():
        for start in range(0, len(own), MOST):
            yield own[start : start + MOST]


def can_share(job: Job) -> bool:
    """Whether passes with others save anything, and are allowed."""
    settings = job.recipe.train
    frozen = job.recipe.find_method().frozen_backbone
    return frozen and not settings.torch_compile and settings.prefix_cache != "on"


def tune_together(jobs: Sequence[Job], store: Store) -> None:
    """Tune what can be had of some runs at once. Their adapters are then where each run finds its own, as if it had
    been cut after training; one that failed is left for its run to be tuned alone, which tells its error.

    Args:
        jobs: two or more, of one arm, none of which has ended.
        store: where their working folders are.
    """
    place = store.folder / RUNS / f".{_name(jobs)}.shared"
    with ExitStack() as stack:
        held = [(job, stack.enter_context(claimed(store.working(job.hash), f"run {job.hash}"))) for job in jobs]
        mine = [(job, claim) for job, claim in held if claim is not None and store.find(job.hash) is None]
        fresh = [(job, claim) for job, claim in mine if not (place / job.hash / CONFIG).is_file()]
        fresh = [(job, claim) for job, claim in fresh if not (claim.folder / WORK).exists() and not _begun(claim)]
        recipes = {job.hash: job.recipe for job, _ in fresh}
        begun = any((place / f".{name}.tuning").is_dir() for name in recipes)
        if len(fresh) > 1 or begun:
            with claimed(place / TURN, f"tuning in {place}") as turn:
                if turn is not None:
                    turn.ended = True
                    if not begun and not any((place / job.hash / CONFIG).is_file() for job, _ in mine):
                        _forget(place)
                    _tune(fresh, place, resume=begun)
        seconds, names = Clock.of(place).before, _together(place) or [job.hash for job in jobs]
        for job, claim in mine:
            if (place / job.hash / CONFIG).is_file():
                write_whole(claim.folder / SHARED, str(len(names)))
                write_whole(claim.folder / SPENT, f"{seconds / len(names):.3f}")
                (place / job.hash).rename(claim.folder / WORK)
        if len(mine) == len(jobs) and not any(path.name not in (HELD, TURN, SPENT, NAMES) for path in _inside(place)):
            shutil.rmtree(place, ignore_errors=True)


def _tune(jobs: Sequence[tuple[Job, Claim]], place: Path, *, resume: bool) -> None:
    """Tune runs at once in a folder, where their time and their names are kept: what was killed is gone on with."""
    write_whole(place / NAMES, json.dumps(sorted({*_together(place), *(job.hash for job, _ in jobs)})))
    first = jobs[0][0]
    recipes = {job.hash: job.recipe for job, _ in jobs}
    with Clock.of(place).running():
        try:
            tune_joint_recipe(
                JointRecipe(first.recipe.backbone, first.recipe.dtype, recipes),
                output=place,
                backbone=first.arm.backbone,
                data=dict.fromkeys(recipes, first.arm.task.data),
                resume=resume,
                overwrite=not resume,
            )
        except Exception as problem:
            # Each that failed is tuned alone, and has its own error then; so is what another process works on here.
            logger.debug("runs could not be tuned at once", exc_info=problem)


def _together(place: Path) -> list[str]:
    """The runs that are or were tuned at once in a folder."""
    file = place / NAMES
    return list(json.loads(file.read_text(encoding="ascii"))) if file.is_file() else []


def _forget(place: Path) -> None:
    """What an earlier group of the same arm took is not the time of the next one."""
    for name in (SPENT, NAMES):
        (place / name).unlink(missing_ok=True)


def remove_shared(store: Store) -> None:
    """Remove the folders in which runs were tuned at once, those that no process works in."""
    for place in (store.folder / RUNS).glob(".*.shared"):
        with claimed(place / HELD, f"tuning in {place}") as claim:
            if claim is None:
                continue
            claim.ended = True
        shutil.rmtree(place, ignore_errors=True)


def _begun(claim: Claim) -> bool:
    """Whether the run was begun alone."""
    return (claim.folder / f".{WORK}.tuning").is_dir()


def _inside(folder: Path) -> list[Path]:
    return list(folder.iterdir()) if folder.is_dir() else []


def _name(jobs: Sequence[Job]) -> str:
    """Of the folder in which they are tuned: the same for all runs of an arm, whichever have ended."""
    arm = jobs[0].arm
    text = f"{arm.job({}, arm.task.seeds[0]).hash} {arm.search}"
    return sha256(text.encode()).hexdigest()[:16]
