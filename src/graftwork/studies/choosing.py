"""What a study runs next, and what its search has chosen: a function of the runs that have ended, and of nothing else.

So it is the same in every process that works on the study, and after any of them was killed. Validation scores alone
are read here.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from hashlib import sha256
from typing import Any

from graftwork.errors import RecipeError
from graftwork.studies.arms import Arm, Job
from graftwork.studies.records import DONE, Record
from graftwork.studies.search import Between, Search, Tried

Find = Callable[[str], Record | None]
"""The run of a hash, if it has ended."""


@dataclass(frozen=True)
class Standing:
    """How far a study is with one arm.

    Attributes:
        arm: the arm.
        search: the runs of its search, as far as they are known.
        chosen: what the search has chosen; None while it goes on, or when nothing of it ended well.
        final: the runs of all seeds with what was chosen.
    """

    arm: Arm
    search: tuple[Job, ...]
    chosen: Tried | None
    final: tuple[Job, ...]

    @property
    def jobs(self) -> list[Job]:
        """All runs that are known, each once."""
        return list({job.hash: job for job in (*self.search, *self.final)}.values())


def stand(arm: Arm, find: Find, *, study: str) -> Standing:
    """How far a study is with an arm.

    Args:
        arm: the arm.
        find: gives the runs that have ended.
        study: the study's name.
    """
    if arm.search is None:
        return Standing(arm, (), {}, _final(arm, {}))
    tried: list[Tried] = [*arm.candidates]
    complete = True
    if arm.search.optuna is not None:
        tried, complete = asked(arm, arm.search, find, study=study)
    jobs = tuple(job for one in tried for job in _of(arm, one))
    if not complete or any(find(job.hash) is None for job in jobs):
        return Standing(arm, jobs, None, ())
    chosen = best(arm, tried, find)
    return Standing(arm, jobs, chosen, () if chosen is None else _final(arm, chosen))


def best(arm: Arm, tried: Sequence[Tried], find: Find) -> Tried | None:
    """The values with the best mean validation score over the search's seeds; of equal ones the first. None where no
    values ended well with all of them."""
    scored = [(own, score(arm, own, find)) for own in tried]
    sign = 1.0 if arm.task.greater_is_better else -1.0
    known = [(sign * value, own) for own, value in scored if value is not None]
    return max(known, key=lambda pair: pair[0])[1] if known else None


def score(arm: Arm, tried: Tried, find: Find) -> float | None:
    """The mean validation score of the search's seeds with some values; None where one of them failed or has not
    ended."""
    records = [find(job.hash) for job in _of(arm, tried)]
    values = [record.validation for record in records if record is not None and record.state == DONE]
    return sum(values) / len(values) if len(values) == len(records) else None


def asked(arm: Arm, search: Search, find: Find, *, study: str) -> tuple[list[Tried], bool]:
    """What Optuna has asked for, and whether that is all of it.

    It is asked in rounds. Before each, a new Optuna study is told of all runs of the earlier rounds, and a sampler is
    seeded by the names of the study, task, method and setting and the number of the round.

    Args:
        arm: what is searched.
        search: with `optuna`.
        find: gives the runs that have ended.
        study: the study's name.
    """
    asked_for: list[Tried] = []
    told: list[tuple[Tried, float | None]] = []
    number = 0
    while len(asked_for) < search.size:
        seed = _seed(study, arm.task.name, arm.method, arm.setting, number)
        count = min(search.per_round, search.size - len(asked_for))
        key = json.dumps([seed, count, told], sort_keys=True)
        if key not in arm.rounds:
            arm.rounds[key] = _ask(search, told, seed=seed, count=count, maximise=arm.task.greater_is_better)
        new = arm.rounds[key]
        asked_for += new
        for own in new:
            value = score(arm, own, find)
            if value is None and any(find(job.hash) is None for job in _of(arm, own)):
                return asked_for, False
            told.append((own, value))
        number += 1
    return asked_for, True


def _ask(
    search: Search, told: Sequence[tuple[Tried, float | None]], *, seed: int, count: int, maximise: bool
) -> list[Tried]:
    """The trials of one round.

    Args:
        told: the trials of earlier rounds and their scores; None of those that failed.
        seed: of the sampler.
        count: how many.
        maximise: whether higher scores are better.
    """
    optuna = _optuna()
    before = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    try:
        space = {key: _distribution(values) for key, values in search.space().items()}
        sampler = optuna.samplers.TPESampler(seed=seed, n_startup_trials=max(2, min(10, search.size // 2)))
        made = optuna.create_study(sampler=sampler, direction="maximize" if maximise else "minimize")
        states = optuna.trial.TrialState
        for own, value in told:
            state = states.FAIL if value is None else states.COMPLETE
            made.add_trial(optuna.trial.create_trial(params=dict(own), distributions=space, value=value, state=state))
        found = [made.ask(space).params for _ in range(count)]
    finally:
        optuna.logging.set_verbosity(before)
    limits = search.space()
    return [{key: _rounded(value, limits[key]) for key, value in own.items()} for own in found]


def _optuna() -> Any:
    try:
        import optuna
    except ImportError as error:
        raise RecipeError(
            "the study searches with Optuna, which is not installed",
            expected='pip install "graftwork[search]"',
            change="install it, or search a grid",
        ) from error
    return optuna


def _of(arm: Arm, tried: Tried) -> list[Job]:
    """The runs of the search with some values."""
    assert arm.search is not None
    return [arm.job(tried, seed) for seed in arm.task.seeds[: arm.search.seeds]]


def _final(arm: Arm, chosen: Tried) -> tuple[Job, ...]:
    return tuple(arm.job(chosen, seed) for seed in arm.task.seeds)


def _seed(*parts: Any) -> int:
    return int.from_bytes(sha256(json.dumps(parts).encode()).digest()[:4], "big")


def _distribution(values: Any) -> Any:
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    if not isinstance(values, Between):
        return CategoricalDistribution(values)
    if values.whole:
        return IntDistribution(int(values.low), int(values.high), log=values.log)
    return FloatDistribution(values.low, values.high, log=values.log)


def _rounded(value: Any, limits: Any) -> Any:
    """A number with as many digits as matter, so that it is the same written and read."""
    if not isinstance(value, float) or not isinstance(limits, Between):
        return value
    return min(max(float(f"{value:.6g}"), limits.low), limits.high)
