"""Numbers that a head says: standardised inside it, on the labels' own scale outside."""

import logging
from collections.abc import Sequence

import torch
from jaxtyping import Float
from pydantic import BaseModel, ConfigDict, FiniteFloat, PositiveFloat
from torch import Tensor

from graftwork.heads.losses import LABELS

logger = logging.getLogger(__name__)

CONSTANT = 1e-13
"""Labels whose deviation is no larger, relative to the largest of them, are one number and float64's rounding."""

FAR = 1e5
"""From so many deviations on float32 rounds a number by 1 % of the deviation."""


class Scale(BaseModel):
    """Where the labels lie: less `mean` and over `deviation` they have the mean 0 and the standard deviation 1.

    A step of the usual learning rates moves what a head says by a fraction of 1, whether labels are of order 1 or
    100,000; so a head learns standardised numbers, and says them on the labels' scale.

    Attributes:
        mean, deviation: of the labels that were trained on.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    mean: FiniteFloat
    deviation: PositiveFloat

    @classmethod
    def of(cls, labels: Sequence[float]) -> "Scale":
        """That of these labels. Of labels that are all the same the deviation is taken to be 1."""
        import numpy as np

        numbers = np.asarray(labels, dtype=np.float64)
        mean, deviation = float(numbers.mean()), float(numbers.std())
        if deviation <= CONSTANT * float(np.abs(numbers).max()):
            deviation = 1.0
        elif abs(mean) > FAR * deviation:
            logger.warning(
                "the labels are around %g and vary by only %g, which float32 barely resolves: subtract a "
                "constant from them",
                mean,
                deviation,
            )
        return cls(mean=mean, deviation=deviation)


def on_scale(said: Float[Tensor, "..."], scale: Scale | None) -> Float[Tensor, "..."]:
    """Standardised numbers on the labels' scale; None: they are on it, or are no numbers but logits."""
    return said if scale is None else said * scale.deviation + scale.mean


def squared_errors(said: Float[Tensor, " B"], there: Float[Tensor, " B"], scale: Scale | None) -> Float[Tensor, ""]:
    """Σ (said - there)², of the standardised numbers."""
    apart = said - there if scale is None else (said - there) / scale.deviation
    return apart.square().sum()


def of_numbers(said: Float[Tensor, "B 1"], labels: Tensor, scale: Scale | None) -> dict[str, Tensor]:
    """The sums of a loss over numbers."""
    return {LABELS: squared_errors(said.squeeze(-1), labels.to(said), scale)}


def count_of_numbers(labels: Tensor) -> dict[str, Tensor]:
    """Every row has a number, -100 among them."""
    return {LABELS: labels.new_tensor(len(labels), dtype=torch.long)}
