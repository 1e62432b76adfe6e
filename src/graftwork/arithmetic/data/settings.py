"""Settings of merges that read data."""

from abc import ABC
from collections.abc import Sequence
from typing import Any, Literal

from pydantic import Field, PositiveFloat, PositiveInt

from graftwork.errors import GraftworkError, MethodError
from graftwork.settings.checked import Checked
from graftwork.settings.problems import describe, flags

FisherKind = Literal["exact", "sampled", "empirical"]
"""Over which answers the Fisher information is a mean: all of them, one that is drawn, or the label alone."""


class DataSettings(Checked, ABC):
    """Settings of a merge that reads data."""

    @classmethod
    def refusal(cls, details: Sequence[Any]) -> GraftworkError:
        return MethodError(
            f"invalid settings of a merge: {describe(details, cls)}",
            expected=f"the settings {', '.join(cls.model_fields)}",
            change=flags(details, "method"),
        )


class FisherSettings(DataSettings):
    """How Fisher information is computed (Matena & Raffel 2022).

    Attributes:
        kind: over which answers: `exact`, all; `sampled`, one that the model draws; `empirical`, the label.
            None: exact, or sampled of tags and texts.
        examples: how many of the training rows, drawn without replacement.
        batch_size: rows in one pass.
        seed: of what is drawn.
    """

    kind: FisherKind | None = None
    examples: PositiveInt = 4096
    batch_size: PositiveInt = 16
    seed: int = Field(default=0, ge=0, lt=2**31)


class RegMeanSettings(DataSettings):
    """How RegMean reads what enters linear maps (Jin et al. 2023).

    Attributes:
        alpha: the factor of the off-diagonal entries of XᵀX, from 0 to 1; the paper has 0.1 for T5.
        examples: rows of each task's training split, without their labels.
        batch_size: rows in one pass.
        seed: of the draw of rows.
    """

    alpha: float = Field(default=0.9, ge=0.0, le=1.0)
    examples: PositiveInt = 1000
    batch_size: PositiveInt = 32
    seed: int = Field(default=0, ge=0, lt=2**31)


class AdaMergingSettings(DataSettings):
    """How coefficients are learned (Yang et al. 2024).

    Attributes:
        coefficients: one for each adapter (`task`), or for each adapter and tensor (`layer`).
        initial: where they start.
        learning_rate: of Adam.
        steps: how many.
        batch_size: rows of a batch.
        batches: of each task in a step.
        share: of the split's rows that are learned on; on the others the inductive scores are measured.
        seed: of the rows that are drawn.
    """

    coefficients: Literal["task", "layer"] = "layer"
    initial: float = Field(default=0.3, allow_inf_nan=False)
    learning_rate: PositiveFloat = 1e-3
    steps: PositiveInt = 500
    batch_size: PositiveInt = 16
    batches: PositiveInt = 2
    share: float = Field(default=0.5, gt=0.0, lt=1.0)
    seed: int = Field(default=0, ge=0, lt=2**31)


class FisherMergeSettings(FisherSettings):
    """Fisher merging: each parameter counts by how much its model's answers depend on it.

    Attributes:
        normalise: divide each weight by the norm of its model's information.
    """

    normalise: bool = True


class DonorSettings(FisherSettings):
    """Donor merging: the first adapter becomes better by a share of the second, chosen on the first's validation rows.

    Attributes:
        by: `fisher` information, or the `mean`.
        points: how many shares are tried.
    """

    by: Literal["fisher", "mean"] = "fisher"
    points: int = Field(default=50, ge=2)


class AdaMergingMergeSettings(AdaMergingSettings):
    """AdaMerging: how much each adapter counts is learned by the entropy of answers on texts without labels.

    Attributes:
        keep: for AdaMerging++, the share of numbers that TIES keeps of each vector. None: all are learned with.
        split: whose texts are learned on, and scored.
    """

    keep: PositiveFloat | None = Field(default=None, le=1.0)
    split: Literal["train", "validation", "test"] = "validation"
