"""The straight-through estimator: permutations that are learned from a loss (Ainsworth et al. 2023, "Git Re-Basin",
arXiv:2209.04836).

    min_θ L(½ (A + P(B))),  P the permutations that bring B nearest to θ.

θ begins as A. P is constant in θ: the gradient of the loss at P(B) is taken for that at θ.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import torch
from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt
from torch import Tensor

from graftwork.arithmetic.alignment.matching import mean, owners_of, tells, weight_matching
from graftwork.arithmetic.alignment.permutations import Permutations, Specification
from graftwork.arithmetic.alignment.settings import MatchingSettings
from graftwork.errors import DivergedError, MethodError, WeightsError
from graftwork.settings.checked import Checked
from graftwork.settings.problems import describe

Batch = TypeVar("Batch")


class StraightThroughSettings(Checked):
    """How permutations are learned.

    Attributes:
        num_epochs: number of passes over the batches.
        learning_rate, momentum: of SGD.
        matching: how θ is matched in each step.
    """

    num_epochs: PositiveInt = 5
    learning_rate: PositiveFloat = 0.01
    momentum: NonNegativeFloat = Field(default=0.9, lt=1.0)
    matching: MatchingSettings = MatchingSettings()

    @classmethod
    def refusal(cls, details: Sequence[Any]) -> MethodError:
        return MethodError(f"invalid settings of the straight-through estimator: {describe(details, cls)}")


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
    owners = owners_of(a)
    now = weight_matching(specification, a, b, settings=settings.matching)
    best, lowest = now, _mean_loss(_middle(a, now.apply(b), owners), loss, batches)
    learned = {
        name: own.detach().clone().requires_grad_()
        for name, own in a.items()
        if tells(name, own) and owners[name] == name
    }
    optimizer = torch.optim.SGD(learned.values(), lr=settings.learning_rate, momentum=settings.momentum)
    for _ in range(settings.num_epochs):
        for batch in batches:
            theta = {name: learned[owners[name]].detach() if owners[name] in learned else a[name] for name in a}
            now = weight_matching(specification, theta, b, settings=settings.matching, begin=now)
            middle = _middle(a, now.apply(b), owners)
            moved = {name: middle[name] + 0.5 * (own - own.detach()) for name, own in learned.items()}
            through = {name: moved.get(owners[name], own) for name, own in middle.items()}
            optimizer.zero_grad()
            value = _finite(loss(through, batch))
            value.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
        reached = _mean_loss(_middle(a, now.apply(b), owners), loss, batches)
        if reached < lowest:
            best, lowest = now, reached
    return best


def _middle(a: Mapping[str, Tensor], b: Mapping[str, Tensor], owners: Mapping[str, str]) -> dict[str, Tensor]:
    """The mean of two networks, in which what is tied is one tensor."""
    middle = mean([a, b])
    return {name: middle[owners[name]] for name in middle}


def _mean_loss(
    weights: Mapping[str, Tensor], loss: Callable[[Mapping[str, Tensor], Batch], Tensor], batches: Sequence[Batch]
) -> float:
    """Over the batches. A loss may compute statistics of batch norms in place, and is given copies of integers and
    statistics."""
    total = 0.0
    with torch.no_grad():
        for batch in batches:
            own = {name: tensor if tells(name, tensor) else tensor.clone() for name, tensor in weights.items()}
            total += float(_finite(loss(own, batch)))
    return total / len(batches)


def _finite(value: Tensor) -> Tensor:
    if not bool(value.isfinite()):
        raise DivergedError.of(f"the loss of the mean of two networks is {float(value)}")
    return value
