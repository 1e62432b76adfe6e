"""The rows of several tasks in shared batches: how many of each an epoch has, and which rows share a batch."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch.utils.data import Dataset

from graftwork.training.sampling import Batches, LengthGrouped, Shuffled


def task_shares(sizes: Sequence[int], temperature: float) -> list[float]:
    """The share that each task has of the rows, proportional to N^(1/T): temperature-scaled mixing (Raffel et al. 2020,
    arXiv:1910.10683, section 3.5.2; Karimi Mahabadi et al. 2021, arXiv:2106.04489, with T = 10).

    Args:
        sizes: N, the number of training rows of each task.
        temperature: T.
    """
    largest = max(sizes)
    powers = [(size / largest) ** (1 / temperature) for size in sizes]
    return [power / sum(powers) for power in powers]


def task_rows(sizes: Sequence[int], temperature: float) -> list[int]:
    """How many rows of each task an epoch has: their shares of as many rows as all tasks have together, rounded so that
    the sum is kept, and each at least 1. At T = 1 they are the tasks' sizes.
    """
    total = sum(sizes)
    exact = [share * total for share in task_shares(sizes, temperature)]
    found = [max(1, int(rows + 1e-9)) for rows in exact]
    by_rest = sorted(range(len(sizes)), key=lambda i: found[i] - exact[i])
    for i in by_rest[: max(0, total - sum(found))]:
        found[i] += 1
    while sum(found) > total:
        found[max(range(len(found)), key=found.__getitem__)] -= 1
    return found


class Mixture(Batches):
    """Batches with rows of several tasks.

    An epoch has a number of rows of each task. Those of a task are all of it as often as they fit in, and then some
    that are drawn anew for each epoch. Their order, and which rows share a batch, is as of one task.

    Args:
        lengths: by task, of each of its rows.
        rows: how many of each task an epoch has.
        batch_size: rows of a batch.
        by_length: rows of a batch have similar lengths.
        seed: the run's.
    """

    def __init__(
        self, lengths: Sequence[Sequence[int]], rows: Sequence[int], batch_size: int, *, by_length: bool, seed: int
    ) -> None:
        super().__init__(seed=seed)
        self.sizes = [len(own) for own in lengths]
        self.lengths = [length for own in lengths for length in own]
        self.rows = rows
        self.batch_size = batch_size
        self.by_length = by_length

    def __len__(self) -> int:
        return -(-sum(self.rows) // self.batch_size)

    def draw(self, generator: torch.Generator) -> Iterator[list[int]]:
        places: list[int] = []
        start = 0
        for size, rows in zip(self.sizes, self.rows, strict=True):
            often, more = divmod(rows, size)
            drawn = torch.randperm(size, generator=generator).tolist()[:more]
            places += [start + row for row in [*range(size)] * often + drawn]
            start += size
        order: Batches = (
            LengthGrouped([self.lengths[place] for place in places], self.batch_size, seed=self.seed)
            if self.by_length
            else Shuffled(len(places), self.batch_size, seed=self.seed)
        )
        for batch in order.draw(generator):
            yield [places[i] for i in batch]


class MixedRows(Dataset[tuple[str, Any]]):
    """The rows of all tasks, one task after the other, each with its task's name.

    Args:
        rows: by task.
    """

    def __init__(self, rows: Mapping[str, Sequence[Any]]) -> None:
        self.rows = rows
        self.places = [(name, i) for name, own in rows.items() for i in range(len(own))]

    def __len__(self) -> int:
        return len(self.places)

    def __getitem__(self, place: int) -> tuple[str, Any]:
        name, row = self.places[place]
        return name, self.rows[name][row]


BATCHES = "batches"
"""The key under which a batch of several tasks has that of each task."""


class MixedCollator:
    """Makes a batch of rows of several tasks: under `BATCHES`, each task's own batch by its name.

    Args:
        collators: each task's own.
    """

    def __init__(self, collators: Mapping[str, Callable[[Sequence[Any]], Any]]) -> None:
        self.collators = collators

    def __call__(self, rows: Sequence[tuple[str, Any]]) -> dict[str, Any]:
        own = {name: [row for task, row in rows if task == name] for name in self.collators}
        return {BATCHES: {name: self.collators[name](some) for name, some in own.items() if some}}
