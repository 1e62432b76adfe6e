"""What a search tries and chooses: a function of the runs that have ended, which reads validation scores alone."""

import json
import random
from dataclasses import dataclass, field, replace
from math import log10
from types import SimpleNamespace

import pytest

from graftwork.studies.choosing import asked, stand
from graftwork.studies.records import DONE, FAILED, Record
from graftwork.studies.search import Search

GRID = Search(grid={"learning_rate": [0.1, 0.2, 0.3]})


@dataclass
class Arm:
    """Stands for an arm: its runs are known by what they are."""

    search: Search | None
    seeds: tuple[int, ...] = (0, 1, 2)
    greater_is_better: bool = True
    rounds: dict = field(default_factory=dict)
    method: str = "lora"
    setting: str = ""

    @property
    def task(self):
        return SimpleNamespace(name="words", greater_is_better=self.greater_is_better, seeds=self.seeds)

    @property
    def candidates(self):
        return [{}] if self.search is None else self.search.candidates(0.01)

    def job(self, tried, seed):
        return SimpleNamespace(hash=json.dumps([tried, seed]), tried=tried, seed=seed)


def record(job, validation, test=0.0, state=DONE):
    return Record(
        **{"hash": job.hash, "state": state, "task": "words", "method": "lora", "setting": "", "tried": job.tried},
        **{"seed": job.seed, "learning_rate": 0.1, "main_metric": "accuracy"},
        scores={"validation": {"accuracy": validation}, "test": {"accuracy": test}},
    )


def run(arm, scores, known=None):
    """Have all runs of the search end, with the validation scores that a function of rate and seed gives."""
    known = {} if known is None else known
    while todo := [job for job in stand(arm, known.get, study="s").search if job.hash not in known]:
        for job in todo:
            known[job.hash] = record(job, scores(job.tried["train.learning_rate"], job.seed))
    return known


def test_a_grid_is_tried_with_the_first_seed_and_the_best_goes_on_with_all():
    arm, known = Arm(GRID), {}
    first = stand(arm, known.get, study="s")
    assert [(job.tried["train.learning_rate"], job.seed) for job in first.search] == [(0.1, 0), (0.2, 0), (0.3, 0)]
    assert (first.chosen, first.final) == (None, ())
    run(arm, lambda rate, seed: 1 - abs(rate - 0.2), known)
    ended = stand(arm, known.get, study="s")
    assert ended.chosen == {"train.learning_rate": 0.2}
    assert [job.seed for job in ended.final] == [0, 1, 2]
    assert len(ended.jobs) == 5


def test_nothing_is_chosen_before_all_of_the_search_has_ended():
    arm, known = Arm(GRID), {}
    for job in stand(arm, known.get, study="s").search[:2]:
        known[job.hash] = record(job, 0.9)
    assert stand(arm, known.get, study="s").chosen is None


@pytest.mark.parametrize("seed", range(5))
def test_test_scores_choose_nothing(seed):
    arm = Arm(replace_seeds(GRID, 2))
    known = run(arm, lambda rate, own: 1 - abs(rate - 0.3) + own / 10)
    chosen = stand(arm, known.get, study="s").chosen
    source = random.Random(seed)
    other = {
        name: replace(own, scores={**own.scores, "test": {"accuracy": source.random()}}) for name, own in known.items()
    }
    without = {name: replace(own, scores={"validation": own.scores["validation"]}) for name, own in known.items()}
    assert chosen == stand(arm, other.get, study="s").chosen == stand(arm, without.get, study="s").chosen
    assert chosen == {"train.learning_rate": 0.3}


def replace_seeds(search, seeds):
    return search.model_copy(update={"seeds": seeds})


def test_the_mean_over_the_searchs_seeds_chooses():
    by_rate = {0.1: (0.9, 0.1), 0.2: (0.6, 0.6), 0.3: (0.5, 0.5)}
    arm = Arm(replace_seeds(GRID, 2))
    known = run(arm, lambda rate, seed: by_rate[rate][seed])
    assert stand(arm, known.get, study="s").chosen == {"train.learning_rate": 0.2}
    alone = run(Arm(GRID), lambda rate, seed: by_rate[rate][seed])
    assert stand(Arm(GRID), alone.get, study="s").chosen == {"train.learning_rate": 0.1}


def test_of_a_loss_the_lowest_is_best_and_of_equal_ones_the_first():
    known = run(Arm(GRID), lambda rate, seed: rate)
    assert stand(Arm(GRID, greater_is_better=False), known.get, study="s").chosen == {"train.learning_rate": 0.1}
    same = run(Arm(GRID), lambda rate, seed: 0.5)
    assert stand(Arm(GRID), same.get, study="s").chosen == {"train.learning_rate": 0.1}


def test_what_failed_is_not_chosen_and_where_all_failed_nothing_is():
    arm = Arm(GRID)
    known = run(arm, lambda rate, seed: rate)
    best = stand(arm, known.get, study="s").search[-1]
    known[best.hash] = replace(known[best.hash], state=FAILED, scores={})
    assert stand(arm, known.get, study="s").chosen == {"train.learning_rate": 0.2}
    failed = {name: replace(own, state=FAILED, scores={}) for name, own in known.items()}
    ended = stand(arm, failed.get, study="s")
    assert (ended.chosen, ended.final) == (None, ())


def test_without_a_search_all_seeds_are_run():
    found = stand(Arm(None), {}.get, study="s")
    assert [(dict(job.tried), job.seed) for job in found.final] == [({}, 0), ({}, 1), ({}, 2)]


def test_multiples_are_of_the_methods_own_rate():
    search = Search(grid={"learning_rate": {"times": [0.3, 1, 3]}, "num_train_epochs": [2, 4]})
    assert search.size == 6
    assert search.candidates(0.001)[:2] == [
        {"train.learning_rate": 0.0003, "train.num_train_epochs": 2},
        {"train.learning_rate": 0.0003, "train.num_train_epochs": 4},
    ]


OPTUNA = Search(optuna={"learning_rate": {"low": 1e-5, "high": 1e-1, "log": True}}, trials=12, round=3)


def peak(rate, seed):
    return 1 - abs(log10(rate) + 3) / 4


def test_optuna_asks_in_rounds_and_finds_what_is_best():
    arm, known, sizes = Arm(OPTUNA), {}, []
    while len(known) < 12:
        todo = [job for job in stand(arm, known.get, study="s").search if job.hash not in known]
        sizes.append(len(todo))
        known |= {job.hash: record(job, peak(job.tried["train.learning_rate"], 0)) for job in todo}
    assert sizes == [3, 3, 3, 3]
    chosen = stand(arm, known.get, study="s").chosen["train.learning_rate"]
    assert 1e-4 < chosen < 1e-2
    assert chosen == max((own.tried["train.learning_rate"] for own in known.values()), key=lambda rate: peak(rate, 0))


def test_optuna_asks_the_same_whatever_is_killed_and_in_whatever_order_runs_end():
    whole = run(Arm(OPTUNA), peak)
    source, known = random.Random(0), {}
    while len(known) < 12:
        # Each time a new process, which knows of what has ended and of nothing else.
        todo = [job for job in stand(Arm(OPTUNA), known.get, study="s").search if job.hash not in known]
        job = source.choice(todo)
        known[job.hash] = record(job, peak(job.tried["train.learning_rate"], 0))
    assert known == whole
    tried = [job.hash for job in stand(Arm(OPTUNA), known.get, study="s").search]
    assert tried == [job.hash for job in stand(Arm(OPTUNA), whole.get, study="s").search]


def test_optuna_learns_of_scores_and_each_study_is_asked_otherwise():
    one, other = run(Arm(OPTUNA), peak), run(Arm(OPTUNA), lambda rate, seed: -peak(rate, seed))
    rates = [[own.tried["train.learning_rate"] for own in known.values()] for known in (one, other)]
    assert rates[0][:3] == rates[1][:3]
    assert rates[0] != rates[1]
    first = {name: [job.hash for job in stand(Arm(OPTUNA), {}.get, study=name).search] for name in ("s", "t")}
    assert first["s"] != first["t"]


def test_failed_trials_are_told_to_optuna_and_the_others_go_on():
    arm, known = Arm(OPTUNA), {}
    while len(known) < 12:
        todo = [job for job in stand(arm, known.get, study="s").search if job.hash not in known]
        for job in todo:
            rate = job.tried["train.learning_rate"]
            known[job.hash] = record(job, peak(rate, 0), state=FAILED if rate > 1e-3 else DONE)
    assert stand(arm, known.get, study="s").chosen["train.learning_rate"] <= 1e-3


def test_values_stay_within_their_limits():
    narrow = Search(
        optuna={"learning_rate": {"low": 0.12345678, "high": 0.12345679}, "num_train_epochs": [1, 2]}, trials=5, round=5
    )
    tried, _ = asked(Arm(narrow), narrow, {}.get, study="s")
    assert all(0.12345678 <= own["train.learning_rate"] <= 0.12345679 for own in tried)
    assert {own["train.num_train_epochs"] for own in tried} <= {1, 2}
