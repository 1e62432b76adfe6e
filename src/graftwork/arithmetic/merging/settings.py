"""Settings of merge methods that read weights alone. What a setting means is said where the method's function is."""

from abc import ABC
from collections.abc import Sequence
from typing import Any, Literal

from pydantic import Field, model_validator

from graftwork.arithmetic.values.filters import Number, less
from graftwork.errors import GraftworkError, MethodError
from graftwork.settings.checked import Checked
from graftwork.settings.problems import describe, flags


class MergeSettings(Checked, ABC):
    """Settings of a merge, which are its function's arguments."""

    def arguments(self) -> dict[str, Any]:
        """What the function is given."""
        return {name: getattr(self, name) for name in type(self).model_fields}

    def coefficients(self, weights: Sequence[float] | None, count: int) -> list[float] | None:
        """The numbers by which vectors are multiplied before they are added up, where nothing else is done but to
        multiply the sum by one number.

        Args:
            weights: a number for each; None: all alike.
            count: how many vectors.

        Returns:
            A number for each; None where the merge is no such sum, or its numbers differ from tensor to tensor.
        """
        return None

    def shares(self, weights: Sequence[Number] | None, count: int) -> Sequence[Number] | None:
        """How much each operand counts in what is averaged beside the merge: heads that the base lacks, and buffers.
        Those of 0 and below do not count: what is to be forgotten has no say there.

        Args:
            weights: a number for each model; None: all alike.
            count: how many models.
        """
        return weights

    @property
    def shared_by(self) -> str:
        """The flag by which operands have their shares."""
        return "--weights"

    @property
    def result_of(self) -> int | None:
        """The place of the model for whose task the result is, and whose head it has; None: it is for all tasks."""
        return None

    def settled(self) -> "MergeSettings":
        """The settings with every default filled in."""
        return self

    @classmethod
    def refusal(cls, details: Sequence[Any]) -> GraftworkError:
        return MethodError(f"invalid settings: {describe(details, cls)}", change=flags(details, "method"))


class NoSettings(MergeSettings):
    """None."""


class Average(MergeSettings):
    """The mean of models (a uniform soup), weighted by `--weights`."""

    def coefficients(self, weights: Sequence[float] | None, count: int) -> list[float] | None:
        given = [1.0] * count if weights is None else weights
        total = sum(given)
        return [own / total for own in given] if total else None


class Analogy(MergeSettings):
    """C + B − A of models A, B, C: A is to B as C is to the result."""

    def coefficients(self, weights: Sequence[float] | None, count: int) -> list[float] | None:
        return [-1.0, 1.0, 1.0]

    def shares(self, weights: Sequence[Number] | None, count: int) -> Sequence[Number] | None:
        return [-1.0, 1.0, 1.0]


class Interpolate(MergeSettings):
    """A straight line from one model to another: (1 − t) θ₀ + t θ₁. From the pre-trained model, this is WiSE-FT.

    Attributes:
        t: how far the way is gone, from 0 to 1.
    """

    t: Number = 0.5

    def coefficients(self, weights: Sequence[float] | None, count: int) -> list[float] | None:
        if not isinstance(self.t, int | float):
            return None
        return [1.0 - self.t, self.t][-count:]

    def shares(self, weights: Sequence[Number] | None, count: int) -> Sequence[Number] | None:
        return [less(self.t), self.t][-count:]

    @property
    def shared_by(self) -> str:
        return "--method.t"


class Slerp(MergeSettings):
    """An arc from one model to another, tensor by tensor.

    Attributes:
        t: how far the way is gone, from 0 to 1.
    """

    t: Number = 0.5

    def shares(self, weights: Sequence[Number] | None, count: int) -> Sequence[Number] | None:
        return [less(self.t), self.t][-count:]

    @property
    def shared_by(self) -> str:
        return "--method.t"


class OfVectors(MergeSettings):
    """A method over task vectors, τ = θ − base: the base and a multiple of what is made of them.

    Attributes:
        scale: λ, by which that is multiplied. None: 1 of a mean, 0.3 of a sum.
    """

    scale: Number | None = None

    @property
    def sums(self) -> bool:
        """Whether it is a sum, which grows with the number of models."""
        return False

    @property
    def factor(self) -> Number:
        """λ, with its default."""
        return self.scale if self.scale is not None else 0.3 if self.sums else 1.0

    def arguments(self) -> dict[str, Any]:
        return {name: value for name, value in super().arguments().items() if name != "scale"}

    def settled(self) -> MergeSettings:
        return self.model_copy(update={"scale": self.factor})


class Arithmetic(OfVectors):
    """The sum of task vectors. A negative weight has the model forget a task."""

    @property
    def sums(self) -> bool:
        return True

    def coefficients(self, weights: Sequence[float] | None, count: int) -> list[float] | None:
        if not isinstance(self.factor, int | float):
            return None
        return [1.0] * count if weights is None else [*weights]


class Ties(OfVectors):
    """TIES: keep the largest numbers of each vector, elect a sign, merge those that have it.

    Attributes:
        keep: share of the numbers that are kept.
        scope: `global`: the largest of the whole vector (the paper); `tensor`: of each tensor (mergekit).
        combined: the `mean` of those with the elected sign, or their `sum`.
    """

    keep: Number = 0.2
    scope: Literal["global", "tensor"] = "global"
    combined: Literal["mean", "sum"] = "mean"

    @property
    def sums(self) -> bool:
        return self.combined == "sum"

    def arguments(self) -> dict[str, Any]:
        return {"keep": self.keep, "scope": self.scope, "merge": self.combined}


class Dare(OfVectors):
    """DARE: drop numbers at random, let the others grow, and sum; or elect a sign as TIES does.

    Attributes:
        drop: probability with which a number is dropped.
        seed: of what is drawn.
        elect: elect a sign, and take the mean of those that have it.
    """

    drop: Number = 0.9
    seed: int = Field(default=0, ge=0, lt=2**32)
    elect: bool = False

    @property
    def sums(self) -> bool:
        return not self.elect


class Breadcrumbs(OfVectors):
    """Model Breadcrumbs: drop the largest and the smallest numbers of each tensor, and sum.

    Attributes:
        keep: share of the numbers that are kept.
        outliers: share of the largest ones, which are dropped.
        elect: elect a sign, and take the mean of those that have it.
    """

    keep: Number = 0.85
    outliers: Number = 0.01
    elect: bool = False

    @property
    def sums(self) -> bool:
        return not self.elect


class Della(OfVectors):
    """DELLA: drop numbers at random, small ones more often, elect a sign, take the mean.

    Attributes:
        drop: mean probability with which a number is dropped.
        spread: by how much that of the smallest of a row exceeds that of the largest.
        seed: of what is drawn.
    """

    drop: Number = 0.7
    spread: Number = 0.2
    seed: int = Field(default=0, ge=0, lt=2**32)


class Sce(OfVectors):
    """SCE: select the numbers that vary most over the models, weigh models by their squares, erase minority signs.

    Attributes:
        keep: share of the numbers that are selected.
    """

    keep: Number = 0.1


class Emr(OfVectors):
    """EMR: the vector that a task has of the unified one, by its mask and its scale.

    Attributes:
        task: number of the model whose vector it is, from 0 on. The result is that model, as far as the unified vector
            has it: its head and its buffers are the result's.
    """

    task: int = Field(default=0, ge=0)

    def shares(self, weights: Sequence[Number] | None, count: int) -> Sequence[Number] | None:
        return [float(place == self.task) for place in range(count)]

    @property
    def result_of(self) -> int | None:
        return self.task


class Knots(MergeSettings):
    """KnOTS: a formula in the basis that what the adapters change has in common.

    The paper's KnOTS-DARE-TIES is `formula: dare` with `elect`.

    Attributes:
        formula: `ties` or `dare`; each takes its own settings of these alone, and has its own defaults.
        keep: share of the numbers that TIES keeps. None: as TIES has it.
        scope: of what they are the largest, in TIES. None: as TIES has it.
        combined: what TIES takes of those with the elected sign. None: as TIES has it.
        drop: probability with which DARE drops a number. None: as DARE has it.
        elect: whether DARE elects a sign, and takes the mean of those that have it. None: it does not.
        seed: of what DARE draws. None: as DARE has it.
        scale: λ, by which the result is multiplied. None: as the formula has it, 1 of a mean and 0.3 of a sum.
    """

    formula: Literal["ties", "dare"] = "ties"
    keep: Number | None = None
    scope: Literal["global", "tensor"] | None = None
    combined: Literal["mean", "sum"] | None = None
    drop: Number | None = None
    elect: bool | None = None
    seed: int | None = Field(default=None, ge=0, lt=2**32)
    scale: Number | None = None

    @model_validator(mode="after")
    def _of_the_formula(self) -> "Knots":
        idle = sorted(self._given() - {*self._formula.model_fields})
        if idle:
            raise ValueError(f"{', '.join(idle)} would do nothing: formula {self.formula} has no such setting")
        return self

    def inner(self) -> dict[str, Any]:
        """The settings of the formula."""
        own = self._formula(**{name: getattr(self, name) for name in self._given()}).settled()
        return {name: getattr(own, name) for name in type(own).model_fields}

    def settled(self) -> MergeSettings:
        return self.model_copy(update=self.inner())

    @property
    def _formula(self) -> type[OfVectors]:
        return Ties if self.formula == "ties" else Dare

    def _given(self) -> set[str]:
        """Names of the settings of the formula that have a value."""
        return {name for name in type(self).model_fields if name != "formula" and getattr(self, name) is not None}
