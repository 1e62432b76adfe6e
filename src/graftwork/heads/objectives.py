"""What is minimised in training: a loss over what a head says in one pass, or in several."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from graftwork.heads.head import Head, States
from graftwork.heads.losses import Items, counted


@dataclass(frozen=True)
class LossInputs:
    """What a head says of labelled rows.

    Attributes:
        head, parameters: the head, and its adapter's parameters by name.
        states: what it read.
        logits: what it says.
        labels: of the rows.
        items: what the loss is a mean over; see `Head.loss`.
        again: runs another pass over the same rows, with what is random in it drawn anew, and gives its logits.
        teacher: of the same rows, what teachers say; see `graftwork.heads.distilling`. Empty: there are none.
    """

    head: Head
    parameters: Mapping[str, Tensor]
    states: States
    logits: Tensor
    labels: Tensor
    items: Items | None
    again: Callable[[], Tensor]
    teacher: Mapping[str, Tensor] = field(default_factory=dict)


Penalty = Callable[[Mapping[str, Tensor]], Tensor]
"""What is added to a loss for parameters by canonical name, a scalar."""

Objective = Callable[[LossInputs], Tensor]
"""The loss of one adapter over its rows of a pass, a scalar."""


def supervised_loss(inputs: LossInputs) -> Tensor:
    """The head's own loss."""
    return inputs.head.loss(inputs.logits, inputs.labels, inputs.states, inputs.parameters, inputs.items)


@dataclass(frozen=True)
class ConsistencyLoss:
    """The head's loss, and how far apart several passes are (Wang et al. 2022, "AdaMix", section 3.2).

    Attributes:
        passes: how many.
        first: the loss of the first pass.
    """

    passes: int
    first: Objective = supervised_loss

    def __call__(self, inputs: LossInputs) -> Tensor:
        loss = self.first(inputs)
        for _ in range(self.passes - 1):
            loss = loss + inputs.head.divergence(inputs.logits, inputs.again(), inputs.labels, inputs.items)
        return loss


@dataclass(frozen=True)
class PenalisedLoss:
    """A loss with a penalty on the adapter's parameters, which is added once a step: a batch that is a part of a step
    adds its share, by the number of its labels.

    Attributes:
        objective: the loss.
        penalty: gives the penalty of parameters by canonical name, a scalar.
    """

    objective: Objective
    penalty: Penalty

    def __call__(self, inputs: LossInputs) -> Tensor:
        loss, penalty = self.objective(inputs), self.penalty(inputs.parameters)
        own = inputs.head.counts(inputs.labels, inputs.states.targets)
        step = counted(inputs.items, own, inputs.labels)
        [(name, count), *_] = own.items()
        return loss + penalty * (count / torch.as_tensor(step[name]).clamp(min=1)).to(penalty)
