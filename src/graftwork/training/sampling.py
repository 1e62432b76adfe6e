"""In which order rows are trained on: those of like length share a batch, so that little of it is padding."""

from collections.abc import Iterator, Sequence

import torch
from torch.utils.data import Sampler

POOL = 50
"""How many batches' rows are sorted together at most: few enough that who shares a batch is still drawn anew each
epoch."""

POOLS = 4
"""Of few rows, how many pools are made."""


class LengthGrouped(Sampler[list[int]]):
    """Batches of rows of like length, drawn anew each epoch, in random order.

    The rows are shuffled and dealt into pools; each pool is sorted by length and cut into batches. What an epoch's
    batches are depends on the seed and the epoch only, so that a resumed run goes on with the same.

    Args:
        lengths: of each row.
        batch_size: rows of a batch; the last one of an epoch may have fewer.
        seed: the run's.
    """

    def __init__(self, lengths: Sequence[int], batch_size: int, *, seed: int) -> None:
        self.lengths = lengths
        self.batch_size = batch_size
        self.seed = seed
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Which epoch is to come, counted from 0."""
        self.epoch = epoch

    def __len__(self) -> int:
        return -(-len(self.lengths) // self.batch_size)

    def __iter__(self) -> Iterator[list[int]]:
        generator = torch.Generator().manual_seed(self.seed + self.epoch)
        rows = torch.randperm(len(self.lengths), generator=generator).tolist()
        batches: list[list[int]] = []
        pool_size = max(1, min(POOL, len(rows) // (POOLS * self.batch_size))) * self.batch_size
        for pool in _cut(rows, pool_size):
            batches += _cut(sorted(pool, key=self.lengths.__getitem__), self.batch_size)
        for i in torch.randperm(len(batches), generator=generator).tolist():
            yield batches[i]


def _cut(rows: Sequence[int], size: int) -> list[list[int]]:
    return [list(rows[start : start + size]) for start in range(0, len(rows), size)]
