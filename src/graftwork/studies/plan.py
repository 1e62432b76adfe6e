"""A study in its folder: what of it has ended, what is to be run next, and what its budget allows."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from graftwork.backbones import Backbone
from graftwork.errors import RecipeError
from graftwork.studies.arms import Arm, Job, arms_of
from graftwork.studies.choosing import Standing, stand
from graftwork.studies.records import FAILED, Record, Store
from graftwork.studies.study import Study


@dataclass(frozen=True)
class Counts:
    """How many runs a study takes.

    Attributes:
        search: of the search.
        further: of the other seeds with what the search has chosen; without a search, all.
    """

    search: int
    further: int

    @property
    def all(self) -> int:
        return self.search + self.further


class Plan:
    """A study that is checked and can be run.

    Args:
        study: the study.
        folder: where its runs are.

    Raises:
        GraftworkError: something of it is unknown or does not fit, or it needs more runs than its budget allows.
    """

    def __init__(self, study: Study, folder: Path) -> None:
        self.study, self.store = study, Store(folder)
        self.backbone = Backbone.load(study.backbone, dtype=study.dtype)
        self.arms = arms_of(study, self.backbone)
        self.counts = _counted(self.arms)
        self._refuse_what_costs_too_much()

    def standings(self) -> list[Standing]:
        """How far it is with each arm, by what has ended until now."""
        return [stand(arm, self.store.find, study=self.study.name) for arm in self.arms]

    def open_jobs(self, standings: Sequence[Standing]) -> list[Job]:
        """What can be run now: searches first, then one seed after the other of all arms, so that arms can be compared
        wherever the study stops."""
        searches = [job for own in standings for job in own.search]
        final = sorted(
            ((place, job) for own in standings for place, job in enumerate(own.final)), key=lambda pair: pair[0]
        )
        jobs = {job.hash: job for job in (*searches, *(job for _, job in final))}
        return [job for job in jobs.values() if self.store.find(job.hash) is None]

    def records(self, standings: Sequence[Standing]) -> list[Record]:
        """The runs of the study that have ended, well or not, in the words of the study."""
        jobs = {job.hash: job for own in standings for job in own.jobs}
        found = [(job, self.store.find(job.hash)) for job in jobs.values()]
        return [named(record, job.arm) for job, record in found if record is not None]

    def failed(self, standings: Sequence[Standing]) -> list[Record]:
        """Those that failed."""
        return [record for record in self.records(standings) if record.state == FAILED]

    def hours(self, standings: Sequence[Standing]) -> float:
        """Hours that the study's runs have taken."""
        return sum(record.seconds for record in self.records(standings)) / 3600

    def spent(self, standings: Sequence[Standing]) -> bool:
        """Whether the hours of the budget are spent."""
        hours = self.study.budget.hours
        return hours is not None and self.hours(standings) >= hours

    def _refuse_what_costs_too_much(self) -> None:
        budget = self.study.budget
        if budget.runs is not None and self.counts.all > budget.runs:
            raise RecipeError(
                f"the study takes {self.counts.all} runs ({self.counts.search} of its search), and its budget is "
                f"{budget.runs}",
                change="budget.runs, search, or seeds",
            )
        if budget.search_runs is None:
            return
        for (task, method), count in _searches(self.arms).items():
            if count > budget.search_runs:
                raise RecipeError(
                    f"the search of {method} on {task} takes {count} runs, and the budget of each method is "
                    f"{budget.search_runs}",
                    change="budget.search_runs, search, or the settings of the method",
                )


def named(record: Record, arm: Arm) -> Record:
    """A run in the words of the study that it now belongs to."""
    return record.named(arm.task.name, arm.method, arm.setting)


def _counted(arms: Sequence[Arm]) -> Counts:
    search = sum(_searches(arms).values())
    further = sum(len(arm.task.seeds) - (arm.search.seeds if arm.search is not None else 0) for arm in arms)
    return Counts(search, further)


def _searches(arms: Sequence[Arm]) -> dict[tuple[str, str], int]:
    """Runs of the search by task and method."""
    found: dict[tuple[str, str], int] = {}
    for arm in arms:
        count = 0 if arm.search is None else arm.search.size * arm.search.seeds
        key = (arm.task.name, arm.method)
        found[key] = found.get(key, 0) + count
    return found
