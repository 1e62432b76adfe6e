"""The order of training rows: rows of similar length share a batch, so that little of it is padding; or any rows do.

What an epoch's batches are depends on the seed and the epoch only, so that a resumed run goes on with the same; and no
epoch of one seed is an epoch of another.
"""

from abc import abstractmethod
from collections.abc import Iterable, Iterator, Sequence

import torch
from torch.utils.data import Sampler

from graftwork.training.seeds import seed_of

POOL = 50
"""How many batches' rows are sorted together at most: few enough that who shares a batch is still drawn anew each
epoch."""

POOLS = 4
"""Of few rows, how many pools are made."""

SPREAD = 0.2
"""How much longer than another a row may be taken to be when rows are ordered by length, so that who shares a batch is
drawn anew each epoch."""

MORE = 1.1
"""How many batches an epoch has, to those that rows ordered strictly by length would fill."""


class Batches(Sampler[list[int]]):
    """The batches of an epoch, drawn again for each epoch.

    Args:
        seed: the run's.
    """

    def __init__(self, *, seed: int) -> None:
        self.seed = seed
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Which epoch is to come, counted from 0."""
        self.epoch = epoch

    def __iter__(self) -> Iterator[list[int]]:
        yield from self.draw(torch.Generator().manual_seed(seed_of("batches", self.seed, self.epoch)))

    @abstractmethod
    def __len__(self) -> int:
        """How many batches an epoch has."""

    @abstractmethod
    def draw(self, generator: torch.Generator) -> Iterator[list[int]]:
        """Those of one epoch."""


class Shuffled(Batches):
    """Batches of any rows.

    Args:
        rows: how many there are.
        batch_size: rows of a batch; the last one of an epoch may have fewer.
    """

    def __init__(self, rows: int, batch_size: int, *, seed: int) -> None:
        super().__init__(seed=seed)
        self.rows = rows
        self.batch_size = batch_size

    def __len__(self) -> int:
        return -(-self.rows // self.batch_size)

    def draw(self, generator: torch.Generator) -> Iterator[list[int]]:
        yield from _cut(torch.randperm(self.rows, generator=generator).tolist(), self.batch_size)


class LengthGrouped(Batches):
    """Batches of rows of like length, in random order.

    The rows are shuffled and dealt into pools; each pool is sorted by length and cut into batches.

    Args:
        lengths: of each row.
        batch_size: rows of a batch; the last one of an epoch may have fewer.
        seed: the run's.
    """

    def __init__(self, lengths: Sequence[int], batch_size: int, *, seed: int) -> None:
        super().__init__(seed=seed)
        self.lengths = lengths
        self.batch_size = batch_size

    def __len__(self) -> int:
        return -(-len(self.lengths) // self.batch_size)

    def draw(self, generator: torch.Generator) -> Iterator[list[int]]:
        rows = torch.randperm(len(self.lengths), generator=generator).tolist()
        batches: list[list[int]] = []
        pool_size = max(1, min(POOL, len(rows) // (POOLS * self.batch_size))) * self.batch_size
        for pool in _cut(rows, pool_size):
            batches += _cut(sorted(pool, key=self.lengths.__getitem__), self.batch_size)
        for i in torch.randperm(len(batches), generator=generator).tolist():
            yield batches[i]


def _cut(rows: Sequence[int], size: int) -> list[list[int]]:
    return [list(rows[start : start + size]) for start in range(0, len(rows), size)]


class TokenBudget(Batches):
    """Batches of rows of like length, as many in each as have so many tokens, padding included.

    Short rows come many in a batch, so that each batch keeps the machine as busy as any other. Each epoch has the same
    number of batches.

    Args:
        lengths: of each row; none is longer than the budget.
        tokens: the budget of a batch: its rows times the longest of them.
        seed: the run's.
    """

    def __init__(self, lengths: Sequence[int], tokens: int, *, seed: int) -> None:
        super().__init__(seed=seed)
        self.lengths = lengths
        self.tokens = tokens
        # Room for orders that are not quite by length.
        self.count = min(len(lengths), int(MORE * len(self._filled(self._by_length(range(len(lengths)))))))

    def __len__(self) -> int:
        return self.count

    def draw(self, generator: torch.Generator) -> Iterator[list[int]]:
        rows = torch.randperm(len(self.lengths), generator=generator).tolist()
        stretch = (1 + SPREAD * torch.rand(len(rows), generator=generator)).tolist()
        batches = self._filled(sorted(rows, key=lambda row: self.lengths[row] * stretch[row]))
        if len(batches) > self.count:
            batches = self._filled(self._by_length(rows))
        while len(batches) < self.count:
            largest = max(range(len(batches)), key=lambda i: len(batches[i]))
            half = len(batches[largest]) // 2
            batches[largest : largest + 1] = [batches[largest][:half], batches[largest][half:]]
        for i in torch.randperm(len(batches), generator=generator).tolist():
            yield batches[i]

    def _by_length(self, rows: Iterable[int]) -> list[int]:
        return sorted(rows, key=self.lengths.__getitem__)

    def _filled(self, rows: Iterable[int]) -> list[list[int]]:
        """The rows in batches, each filled to the budget."""
        batches: list[list[int]] = []
        longest = 0
        for row in rows:
            longest = max(longest, self.lengths[row])
            if not batches or (len(batches[-1]) + 1) * longest > self.tokens:
                batches.append([])
                longest = self.lengths[row]
            batches[-1].append(row)
        return batches
