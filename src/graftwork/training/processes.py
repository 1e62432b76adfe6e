"""Processes that tune one adapter together, as `torchrun` and `accelerate launch` start them.

Each has all of the adapter and of the backbone, or of the latter its part of each layer, and takes its share of the
rows of each batch. Gradients are summed over the processes, so that a step is that of one process with the whole batch,
to rounding. The first process alone scores, saves and finishes; the others are told. Where the backbone is in parts,
all of them score and finish, as one does, and the first one's word counts.
"""

import logging
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar, cast

import torch
import torch.distributed as dist
from torch import Tensor

from graftwork.errors import RecipeError

T = TypeVar("T")
S = TypeVar("S", bound=Any)

PATIENCE = timedelta(days=1)
"""How long a process waits for the others: the first one may generate texts for hours to score them."""


def number_started() -> int:
    """How many processes `torchrun` or `accelerate launch` started, of which this is one; 1 where neither did."""
    if dist.is_available() and dist.is_initialized():
        return dist.get_world_size()
    return int(os.environ.get("WORLD_SIZE", "1"))


@dataclass(frozen=True)
class Processes:
    """The processes of a run.

    Attributes:
        count: how many there are.
        index: which one this is, from 0.
    """

    count: int = 1
    index: int = 0

    @classmethod
    def here(cls) -> "Processes":
        """Those that this one was started with; it alone, where it was started by itself.

        Raises:
            RecipeError: the variables of the environment that name them are not complete.
        """
        if not dist.is_available():
            return cls()
        if not dist.is_initialized():
            if number_started() < 2:
                return cls()
            missing = [name for name in ("RANK", "MASTER_ADDR", "MASTER_PORT") if name not in os.environ]
            if missing:
                raise RecipeError(
                    f"WORLD_SIZE is {os.environ['WORLD_SIZE']}, and {', '.join(missing)} is not set",
                    expected="a run started by torchrun or accelerate launch, or no WORLD_SIZE",
                    change="the variables of the environment",
                )
            backend = "cuda:nccl,cpu:gloo" if torch.cuda.is_available() else "gloo"
            dist.init_process_group(backend, timeout=PATIENCE)
        return cls(dist.get_world_size(), dist.get_rank())

    @property
    def several(self) -> bool:
        """Whether there are others."""
        return self.count > 1

    @property
    def first(self) -> bool:
        """Whether this is the one that scores and saves."""
        return self.index == 0

    def of_first(self, value: T | None) -> T:
        """What the first process has; the others may give anything."""
        if not self.several:
            return cast(T, value)
        told = [value]
        dist.broadcast_object_list(told, src=0)
        return cast(T, told[0])

    def by_first(self, function: Callable[[], T]) -> T:
        """What a function returns or raises, which the first process alone calls."""
        if not self.several:
            return function()
        found: tuple[T | None, Exception | None] = (None, None)
        if self.first:
            try:
                found = (function(), None)
            except Exception as error:
                found = (None, error)
        value, raised = self.of_first(found)
        if raised is not None:
            raise raised
        return cast(T, value)

    def by_all(self, function: Callable[[], T]) -> T:
        """What a function returns or raises in the first process, which all call: its passes need all of them. The
        others say nothing of it."""
        if not self.several:
            return function()
        found: tuple[T | None, Exception | None]
        with nullcontext() if self.first else _silent():
            try:
                found = (function(), None)
            except Exception as error:
                found = (None, error)
        own = found[1]
        value, raised = self.of_first(found if self.first else None)
        if raised is not None or own is not None:
            raise raised or own  # type: ignore[misc] # one of them is there
        return cast(T, value)

    def share(self, rows: S) -> S:
        """This process's rows of a batch; none, where there are fewer rows than processes."""
        return cast(S, rows[self.index :: self.count])

    def share_randomness(self) -> None:
        """Have torch's random numbers go on as the first process's do."""
        torch.set_rng_state(self.of_first(torch.get_rng_state()))
        if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
            torch.cuda.set_rng_state(self.of_first(torch.cuda.get_rng_state()))

    def sum(self, tensor: Tensor) -> Tensor:
        """The sum over all processes."""
        total = tensor.detach().clone()
        dist.all_reduce(total)
        return total

    def sum_gradients(self, tensors: Sequence[Tensor]) -> None:
        """Have each tensor's gradient be the sum over all processes. One that no process has a gradient of has none."""
        there = torch.tensor([float(tensor.grad is not None) for tensor in tensors], device=tensors[0].device)
        dist.all_reduce(there)
        wanted = [tensor for tensor, count in zip(tensors, there.tolist(), strict=True) if count]
        # One message for each type of number: a message costs more than the few numbers of an adapter.
        for dtype in dict.fromkeys(tensor.dtype for tensor in wanted):
            own = [tensor for tensor in wanted if tensor.dtype == dtype]
            flat = torch.cat([(t.grad if t.grad is not None else torch.zeros_like(t)).flatten() for t in own])
            dist.all_reduce(flat)
            for tensor, part in zip(own, torch.split(flat, [t.numel() for t in own]), strict=True):
                tensor.grad = part.view_as(tensor)


@contextmanager
def _silent() -> Iterator[None]:
    """Inside, nothing is logged but errors."""
    before = logging.root.manager.disable
    logging.disable(max(before, logging.WARNING))
    try:
        yield
    finally:
        logging.disable(before)


ALONE = Processes()
"""One process by itself."""
