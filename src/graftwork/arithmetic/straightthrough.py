"""The straight-through estimator: permutations that are learned from a loss (Ainsworth et al. 2023, "Git Re-Basin",
arXiv:2209.04836, section 3.3 and algorithm 3).

    min_θ L(½ (A + P(B))),  P the permutations that bring B nearest to θ.

θ begins as A. P is constant in θ: the gradient of the loss at P(B) is taken for that at θ.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar

import torch
from pydantic import BaseModel, ConfigDict, Field, NonNegativeFloat, PositiveFloat, PositiveInt
from torch import Tensor

from graftwork.arithmetic.matching import MatchingSettings, mean, tells, weight_matching
from graftwork.arithmetic.permutations import Permutations, Specification
from graftwork.errors import DivergedError, WeightsError

Batch = TypeVar("Batch")


class StraightThroughSettings(BaseModel):
    """How permutations are learned.

    Attributes:
        num_epochs: number of passes over the batches.
        learning_rate, momentum: of SGD.
        matching: how θ is matched in each step.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    num_epochs: PositiveInt = 5
    learning_rate: PositiveFloat = 0.01
    momentum: NonNegativeFloat = Field(default=0.9, lt=1.0)
    matching: MatchingSettings = MatchingSettings()


def straight_through(
    specification: Specification,
    a: Mapping[str, Tensor],
    b: Mapping[str, Tensor],
    loss: Callable[[Mapping[str, Tensor], Batch], Tensor],
    batches: Sequence[Batch],
    *,
    settings: StraightThroughSettings | None = None,
) -> Permutations:
    """The permutations of `b` under which the mean of both networks has the lowest loss: of those after each epoch, and
    of weight matching, which they begin with.

    Args:
        specification: what moves together.
        a: the network that stays as it is.
        b: the network whose units are permuted.
        loss: of the tensors of a network and a batch, differentiable (`torch.func.functional_call`).
        batches: of the training data, in the order of each epoch.
        settings: see there.

    Raises:
        WeightsError: the tensors are not those of the specification; or there are no batches.
        DivergedError: the loss is not finite.
    """
    settings = settings or StraightThroughSettings()
    if not batches:
        raise WeightsError("there are no batches to learn permutations on", expected="one or more", change="batches")
    now = weight_matching(specification, a, b, settings=settings.matching)
    best, lowest = now, _mean_loss(a, now.apply(b), loss, batches)
    learned = {name: own.detach().clone().requires_grad_() for name, own in a.items() if tells(name, own)}
    optimizer = torch.optim.SGD(learned.values(), lr=settings.learning_rate, momentum=settings.momentum)
    for _ in range(settings.num_epochs):
        for batch in batches:
            theta = {name: learned[name].detach() if name in learned else own for name, own in a.items()}
            now = weight_matching(specification, theta, b, settings=settings.matching, begin=now)
            middle = mean([a, now.apply(b)])
            through = {
                name: own + 0.5 * (learned[name] - learned[name].detach()) if name in learned else own
                for name, own in middle.items()
            }
            optimizer.zero_grad()
            value = _finite(loss(through, batch))
            value.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
        reached = _mean_loss(a, now.apply(b), loss, batches)
        if reached < lowest:
            best, lowest = now, reached
    return best


def _mean_loss(
    a: Mapping[str, Tensor],
    b: Mapping[str, Tensor],
    loss: Callable[[Mapping[str, Tensor], Batch], Tensor],
    batches: Sequence[Batch],
) -> float:
    """Of the mean of two networks."""
    with torch.no_grad():
        # Each time another copy: a loss may compute statistics of batch norms in place.
        return sum(float(_finite(loss(mean([a, b]), batch))) for batch in batches) / len(batches)


def _finite(value: Tensor) -> Tensor:
    if not bool(value.isfinite()):
        raise DivergedError.of(f"the loss of the mean of two networks is {float(value)}")
    return value
