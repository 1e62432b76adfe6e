"""Schedules of the learning rate that transformers does not have, by the name that `lr_scheduler_type` calls them."""

from collections.abc import Callable, Mapping
from functools import partial

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

Schedule = Callable[[int, int, int], float]
"""The share of the rate at a step, given the steps of warm-up and those of the run."""

RATIO = 32
"""How much smaller the lowest rate is than the highest (Howard & Ruder 2018, section 3.2)."""


def slanted_triangular(step: int, rise: int, steps: int) -> float:
    """A short linear rise and a long linear fall (Howard & Ruder 2018, "Universal Language Model Fine-tuning for Text
    Classification", eq. 3):
        p = t / cut                            if t < cut
        p = 1 - (t - cut) / (cut · (1/cut_frac - 1))   otherwise
        η_t = η_max · (1 + p · (ratio - 1)) / ratio.

    The denominator of the fall is T - cut where T · cut_frac is whole, and is taken as that everywhere: as printed, p
    would fall below 0 where it is not.

    Args:
        step: t, from 0.
        rise: cut.
        steps: T.

    Returns:
        η_t / η_max, from 1 / ratio up to 1 and down again.
    """
    p = step / rise if step < rise else 1 - (step - rise) / max(1, steps - rise)
    return (1 + max(0.0, p) * (RATIO - 1)) / RATIO


SCHEDULES: Mapping[str, Schedule] = {"slanted_triangular": slanted_triangular}


def scheduler(schedule: Schedule, optimizer: Optimizer, rise: int, steps: int) -> LambdaLR:
    """The schedule, over every group of parameters in proportion to its own rate."""
    return LambdaLR(optimizer, partial(_at, schedule=schedule, rise=rise, steps=steps))


def _at(step: int, *, schedule: Schedule, rise: int, steps: int) -> float:
    return schedule(step, rise, steps)
