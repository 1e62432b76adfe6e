"""Work over many tensors in pieces, by several threads, at bounded memory."""

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import NamedTuple, TypeVar

import torch

from graftwork.training.display import Display

MEMORY = 96 * 2**20
"""Bytes that the pieces of all threads take together."""

LARGEST, SMALLEST = 2**17, 2**14
"""Numbers in a piece: so few that what is calculated stays in a processor's cache."""

MOST_THREADS = 8

MEGABYTE = 10**6

Task = TypeVar("Task")
Result = TypeVar("Result")


class Piece(NamedTuple):
    """A part of a tensor, which is read as if it were flat.

    Attributes:
        name: of the tensor.
        start: the first of its numbers.
        stop: one behind the last.
    """

    name: str
    start: int
    stop: int


def num_threads() -> int:
    """Threads that work at once: as many as there are processors, and two of them at least, of which one may wait for
    the disk."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(max(2, cores), MOST_THREADS)


def pieces_of(sizes: Mapping[str, int], units: Mapping[str, int], *, arrays: int) -> list[Piece]:
    """All tensors in pieces.

    Args:
        sizes: numbers in each.
        units: numbers of each that stay together: 1, a row, or all.
        arrays: arrays of a piece's size that are held at once.
    """
    most = MEMORY // (num_threads() * 4 * max(arrays, 1))
    most = max(SMALLEST, min(LARGEST, 1 << (most.bit_length() - 1)))
    found = []
    for name, size in sizes.items():
        unit = max(units[name], 1)
        step = max(most // unit, 1) * unit
        found += [Piece(name, start, min(start + step, size)) for start in range(0, size, step)]
    return found


def in_threads(work: Callable[[Task], Result], tasks: Iterable[Task]) -> Iterator[Result]:
    """What comes of each task, in their order; a few are ahead. The first error ends it."""
    count = num_threads()
    waiting: deque[Future[Result]] = deque()
    with _one_thread_each(), ThreadPoolExecutor(count, thread_name_prefix="graftwork") as pool:
        try:
            for task in tasks:
                waiting.append(pool.submit(work, task))
                if len(waiting) > 2 * count:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()


@contextmanager
def _one_thread_each() -> Iterator[None]:
    """Inside, each of our threads computes by itself: those that torch would add would only wait for each other."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def counted_bytes(display: Display, label: str, total: int) -> Iterator[Callable[[int], None]]:
    """A bar in megabytes while what is inside runs; gives a function that so many more bytes are done.

    Args:
        display: where.
        label: what is done.
        total: bytes.
    """
    done = 0
    with display.bar(label, -(-total // MEGABYTE), "MB", stays=False) as bar:

        def advance(count: int) -> None:
            nonlocal done
            done += count
            bar.move(done // MEGABYTE)

        yield advance
