"""What a merge method is: its settings, what it takes, and what it makes of it.

A method says what it is before anything is read; what computes is imported when a merge begins.
"""

import logging
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from graftwork.arithmetic.values.filters import Number
from graftwork.errors import GraftworkError, MethodError, RecipeError
from graftwork.settings.checked import Checked
from graftwork.settings.problems import describe, flags

if TYPE_CHECKING:
    from collections.abc import Callable

    from graftwork.arithmetic.values.weights import Weights

logger = logging.getLogger(__name__)

Base = Literal["needed", "optional", "none"]
"""Whether a method needs the model that the others come from."""


@dataclass(frozen=True)
class Operands:
    """What a method merges: tensors of the same names.

    Attributes:
        models: the models.
        base: what they come from; None where it is not given.
        weights: a number for each model; None: the same for all.
        score: how good weights are on validation data, the more the better; None where no task is given.
        tell: told in a sentence what was chosen.
    """

    models: "Sequence[Weights]"
    base: "Weights | None" = None
    weights: Sequence[Number] | None = None
    score: "Callable[[Weights], float] | None" = None
    tell: "Callable[[str], None]" = logger.info

    def vectors(self) -> "list[Weights]":
        """The task vectors: what each model differs by from the base."""
        assert self.base is not None
        return [model - self.base for model in self.models]


class MergeMethod(Checked, ABC):
    """A method with its settings.

    Attributes:
        name: its name.
        paper: where it comes from.
        when: when to use it.
        base: whether it needs the model that the others come from.
        least, most: how many models it takes.
        weighs: whether models may have weights.
        scored: whether it chooses by scores on a task.
    """

    name: ClassVar[str]
    paper: ClassVar[str]
    when: ClassVar[str]
    base: ClassVar[Base] = "needed"
    least: ClassVar[int] = 1
    most: ClassVar[int | None] = None
    weighs: ClassVar[bool] = True
    scored: ClassVar[bool] = False

    @abstractmethod
    def merge(self, operands: Operands) -> "Weights":
        """What is made of the operands."""

    def check(self, models: int, *, base: bool, weights: bool, tasks: int) -> None:
        """Refuse operands that the method does not take.

        Raises:
            RecipeError: names what is missing or too much.
        """
        count = models + (base and self.base == "optional")
        if count < self.least or (self.most is not None and count > self.most):
            wanted = f"{self.least}" if self.least == self.most else f"{self.least} or more"
            raise RecipeError(f"{self.name} was given {count} models", expected=wanted, change="the models")
        if self.base == "needed" and not base:
            raise RecipeError(
                f"{self.name} merges what training changed, and what the models come from is not given",
                expected="the pre-trained model",
                change="--base",
            )
        if self.base == "none" and base:
            raise RecipeError(f"{self.name} does not use a base", expected="the models alone", change="--base")
        if weights and not self.weighs:
            raise RecipeError(f"{self.name} takes no weights of models", expected="none", change="--weights")
        if self.scored and not tasks:
            raise RecipeError(f"{self.name} chooses models by their scores, and no task is given", change="--task")

    def settled(self) -> "MergeMethod":
        """The method with every default filled in."""
        return self

    @property
    def vectors(self) -> bool:
        """Whether differences from the base are merged."""
        return self.base == "needed"

    @classmethod
    def refusal(cls, details: Sequence[Any]) -> GraftworkError:
        return MethodError(
            f"invalid settings of merge method {cls.name}: {describe(details, cls)}", change=flags(details, "method")
        )


class OfModels(MergeMethod):
    """A method over models themselves."""

    base: ClassVar[Base] = "none"


class OfVectors(MergeMethod):
    """A method over task vectors, τ = θ − base: the base and a multiple of what is made of them.

    Attributes:
        scale: λ, by which that is multiplied. None: 1 of a mean, 0.3 of a sum.
    """

    scale: Number | None = None

    @property
    def sums(self) -> bool:
        """Whether it is a sum, which grows with the number of models."""
        return False

    @abstractmethod
    def combine(self, vectors: "list[Weights]", weights: Sequence[Number] | None) -> "Weights":
        """One vector of several."""

    def merge(self, operands: Operands) -> "Weights":
        from graftwork.arithmetic.values.filters import resolved

        assert operands.base is not None
        vector = self.combine(operands.vectors(), operands.weights)
        return operands.base + vector.scaled(resolved(self._factor, vector.shapes, "scale"))

    def settled(self) -> MergeMethod:
        return self.model_copy(update={"scale": self._factor})

    @property
    def _factor(self) -> Number:
        return self.scale if self.scale is not None else 0.3 if self.sums else 1.0
