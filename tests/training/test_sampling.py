"""Batches of rows of like length."""

import random
from itertools import pairwise

import pytest
from torch.utils.data import DataLoader

from graftwork.training.sampling import POOL, LengthGrouped, Shuffled, TokenBudget
from graftwork.training.seeds import seed_of

LENGTHS = random.Random(0).choices(range(3, 61), k=1_003)


def epoch(number, seed=0, lengths=LENGTHS, size=8):
    batches = LengthGrouped(lengths, size, seed=seed)
    batches.set_epoch(number)
    return list(batches)


def test_every_row_is_in_one_batch_of_an_epoch():
    batches = epoch(0)
    assert sorted(row for batch in batches for row in batch) == list(range(len(LENGTHS)))
    assert len(batches) == len(LengthGrouped(LENGTHS, 8, seed=0)) == 126
    assert sorted(map(len, batches)) == [3, *[8] * 125]


def test_rows_of_a_batch_are_of_like_length():
    spreads = [max(LENGTHS[i] for i in batch) - min(LENGTHS[i] for i in batch) for batch in epoch(0)]
    assert sum(spreads) / len(spreads) < 3


def test_batches_come_in_no_order_of_length():
    longest = [max(LENGTHS[i] for i in batch) for batch in epoch(0)]
    rises = sum(a < b for a, b in pairwise(longest))
    assert 40 < rises < 85


def test_each_epoch_and_seed_has_batches_of_its_own_and_the_same_each_time():
    assert epoch(0) == epoch(0)
    drawn = [{frozenset(batch) for batch in batches} for batches in (epoch(0), epoch(1), epoch(0, seed=7))]
    for one, other in ((0, 1), (0, 2), (1, 2)):
        assert len(drawn[one] & drawn[other]) < 5


@pytest.mark.parametrize("count", [1, 7, 8, 8 * POOL, 8 * POOL + 1])
def test_few_rows(count):
    batches = epoch(0, lengths=[5] * count)
    assert sorted(row for batch in batches for row in batch) == list(range(count))
    assert len(batches) == len(LengthGrouped([5] * count, 8, seed=0))


def test_a_loader_takes_them():
    loader = DataLoader(range(20), batch_sampler=LengthGrouped(list(range(20)), 8, seed=0), collate_fn=sorted)
    assert sorted(row for batch in loader for row in batch) == list(range(20))


def budgeted(number, tokens=256, seed=0, lengths=LENGTHS):
    batches = TokenBudget(lengths, tokens, seed=seed)
    batches.set_epoch(number)
    return list(batches)


@pytest.mark.parametrize("tokens", [60, 61, 256, 2_048, 100_000])
@pytest.mark.parametrize("number", [0, 1, 2])
def test_batches_of_tokens_keep_to_the_budget_and_are_as_many_each_epoch(tokens, number):
    batches = budgeted(number, tokens)
    assert sorted(row for batch in batches for row in batch) == list(range(len(LENGTHS)))
    assert len(batches) == len(TokenBudget(LENGTHS, tokens, seed=0))
    assert all(batches)
    assert max(len(batch) * max(LENGTHS[i] for i in batch) for batch in batches) <= tokens


def test_batches_of_tokens_have_little_padding():
    batches = budgeted(0)
    assert sum(len(batch) * max(LENGTHS[i] for i in batch) for batch in batches) < 1.1 * sum(LENGTHS)
    assert len(batches) < 1.2 * sum(LENGTHS) / 256 + 1


def test_batches_of_tokens_are_drawn_anew_each_epoch_and_the_same_each_time():
    assert budgeted(0) == budgeted(0)
    drawn = [{frozenset(batch) for batch in batches} for batches in (budgeted(0), budgeted(1), budgeted(0, seed=7))]
    for one, other in ((0, 1), (0, 2), (1, 2)):
        assert len(drawn[one] & drawn[other]) < 5


@pytest.mark.parametrize("count", [1, 2, 7, 100])
def test_batches_of_tokens_of_few_rows(count):
    batches = budgeted(0, 64, lengths=[5] * count)
    assert sorted(row for batch in batches for row in batch) == list(range(count))


# Seeds


KINDS_OF_BATCHES = {
    "length": lambda seed: LengthGrouped(LENGTHS, 8, seed=seed),
    "tokens": lambda seed: TokenBudget(LENGTHS, 256, seed=seed),
    "any": lambda seed: Shuffled(len(LENGTHS), 8, seed=seed),
}


@pytest.mark.parametrize("kind", KINDS_OF_BATCHES)
def test_no_epoch_of_one_seed_is_an_epoch_of_another(kind):
    drawn = {}
    for seed in range(4):
        batches = KINDS_OF_BATCHES[kind](seed)
        for number in range(4):
            batches.set_epoch(number)
            order = tuple(map(tuple, batches))
            assert sorted(row for batch in order for row in batch) == list(range(len(LENGTHS)))
            assert order not in drawn, f"epoch {number} of seed {seed} is epoch and seed {drawn.get(order)}"
            drawn[order] = (number, seed)


def test_seeds_are_the_same_on_every_machine_and_python():
    assert seed_of("batches", 0, 0) == 5295733135109225820
    assert seed_of("batches", 0, 1) != seed_of("batches", 1, 0)
    assert seed_of("batches", 1, 11) != seed_of("batches", 11, 1)
    assert seed_of("batches", 0) != seed_of("pass", 0)
