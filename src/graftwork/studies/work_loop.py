"""The work on a study: one run after the other, by as many processes as there are."""

import time
from collections.abc import Callable

from graftwork.studies.arms import Job
from graftwork.studies.claims import claimed
from graftwork.studies.joint_runs import groups, remove_shared, tune_together
from graftwork.studies.plan import Plan
from graftwork.studies.records import DONE, Record
from graftwork.studies.single_run import run

POLL = 0.5
"""Seconds to wait where all that can be run is run by other processes."""

Announce = Callable[[Job, Record], None]


def work(plan: Plan, announce: Announce) -> None:
    """Run what a study still needs, until nothing can be run any more.

    Args:
        plan: the study.
        announce: is told of each run that this process has ended.

    Raises:
        OutputError: the study's folder cannot be written.
    """
    while True:
        standings = plan.standings()
        jobs = plan.open_jobs(standings)
        if not jobs or plan.spent(standings):
            return
        for own in groups(jobs) if plan.study.share_passes else ([job] for job in jobs):
            if len(own) > 1:
                tune_together(own, plan.store)
            ran = [_try(job, plan, announce) for job in own]
            if any(ran):
                break  # what is to be run next may depend on it
        else:
            time.sleep(POLL)


def _try(job: Job, plan: Plan, announce: Announce) -> bool:
    """Do a run, unless another process does it or has done it; whether this one did."""
    with claimed(plan.store.working(job.hash), f"run {job.hash}") as claim:
        if claim is None:
            return False
        # Another process may have ended it since it was looked for.
        if (known := plan.store.find(job.hash)) is not None:
            claim.ended = known.state == DONE
            return False
        record = run(job, plan.store, claim)
    announce(job, record)
    return True


def tidy(plan: Plan) -> None:
    """Remove what killed processes left of runs that have ended well."""
    standings = plan.standings()
    if not plan.open_jobs(standings):
        remove_shared(plan.store)
    for standing in standings:
        for job in standing.jobs:
            working, record = plan.store.working(job.hash), plan.store.find(job.hash)
            if record is None or record.error is not None or not working.is_dir():
                continue
            with claimed(working, f"run {job.hash}") as claim:
                if claim is not None:
                    claim.ended = True
