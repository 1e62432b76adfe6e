"""A merge method with its settings: what is wrong with what it is to merge, and what it makes of it.

What computes is imported when a merge begins.
"""

import logging
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from importlib import import_module
from typing import TYPE_CHECKING, Any

from graftwork.arithmetic.merging.settings import MergeSettings, OfVectors
from graftwork.arithmetic.merging.table import MERGE_METHODS, MergeMethod
from graftwork.arithmetic.values.filters import Number, relevant
from graftwork.errors import MethodError, RecipeError, nearest
from graftwork.settings.checked import Checked

if TYPE_CHECKING:
    from collections.abc import Callable

    from graftwork.arithmetic.values.weights import Weights

logger = logging.getLogger(__name__)


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


@dataclass(frozen=True)
class ChosenMethod:
    """A method with its settings.

    Attributes:
        method: the line of the table.
        settings: its settings.
    """

    method: MergeMethod
    settings: Checked

    @property
    def name(self) -> str:
        """The method's name."""
        return self.method.name

    @property
    def result_of(self) -> int | None:
        """The place of the model for whose task alone the result is; see `MergeSettings.result_of`."""
        return self.settings.result_of if isinstance(self.settings, MergeSettings) else None

    @property
    def shared_by(self) -> str:
        """The flag by which operands have their shares."""
        return self.settings.shared_by if isinstance(self.settings, MergeSettings) else "--weights"

    def at(self, names: Collection[str], beside: Collection[str]) -> "ChosenMethod":
        """The method at some tensors: without the filters of `t` that are for other ones alone."""
        t = getattr(self.settings, "t", None)
        if t is None:
            return self
        return replace(self, settings=self.settings.model_copy(update={"t": relevant(t, names, beside)}))

    def shares(self, weights: Sequence[Number] | None, count: int) -> Sequence[Number] | None:
        """How much each operand counts in what is averaged beside the merge; see `MergeSettings.shares`."""
        return self.settings.shares(weights, count) if isinstance(self.settings, MergeSettings) else weights

    def check(self, count: int, *, base: bool, weights: bool, tasks: int, what: str = "models") -> None:
        """Refuse operands that the method does not take.

        Args:
            count: how many are merged.
            base: whether that is given which they come from.
            weights: whether they have weights.
            tasks: how many tasks are given.
            what: what is merged.

        Raises:
            RecipeError: names what is missing or too much.
        """
        own = self.method
        given = count + (base and own.base == "optional")
        if given < own.least or (own.most is not None and given > own.most):
            wanted = f"{own.least}" if own.least == own.most else f"{own.least} or more"
            raise RecipeError(f"{own.name} was given {given} {what}", expected=wanted, change=f"the {what}")
        if own.base == "needed" and not base:
            raise RecipeError(
                f"{own.name} merges what training changed, and what the models come from is not given",
                expected="the pre-trained model",
                change="--base",
            )
        if own.base == "none" and base:
            raise RecipeError(f"{own.name} does not use a base", expected="the models alone", change="--base")
        if weights and not own.weighs:
            raise RecipeError(f"{own.name} takes no weights of {what}", expected="none", change="--weights")
        if (self.result_of or 0) >= count:
            raise RecipeError(
                f"there is no task {self.result_of}", expected=f"from 0 to {count - 1}", change="--method.task"
            )
        if own.scored and not tasks:
            raise RecipeError(f"{own.name} chooses models by their scores, and no task is given", change="--task")

    def with_settings(self, changes: dict[str, Any]) -> "ChosenMethod":
        """The same with some settings changed.

        Raises:
            MethodError: one is unknown or of the wrong type.
        """
        return make_merge_method(self.name, {**self.settings.model_dump(exclude_unset=True), **changes})

    def settled(self) -> "ChosenMethod":
        """The method with every default filled in."""
        own = self.settings
        return replace(self, settings=own.settled()) if isinstance(own, MergeSettings) else self

    def described(self) -> dict[str, Any]:
        """Its name and settings, with every default filled in, as a file has them."""
        return {"name": self.name, **self.settled().settings.model_dump(mode="json", exclude_none=True)}

    def function(self) -> Any:
        """What merges."""
        return _found(self.method.function)

    def combine(self, vectors: "Sequence[Weights]", weights: Sequence[Number] | None = None) -> "Weights":
        """What the function makes of models or vectors, without a scale."""
        return self._call([*vectors], Operands(vectors, weights=weights))

    def merge(self, operands: Operands) -> "Weights":
        """What is made of models."""
        from graftwork.arithmetic.values.filters import resolved

        if self.method.over == "models":
            return self._call([*([] if operands.base is None else [operands.base]), *operands.models], operands)
        assert self.method.over == "vectors", operands.base is not None
        assert operands.base is not None
        vector = self._call([model - operands.base for model in operands.models], operands)
        assert isinstance(self.settings, OfVectors)
        return operands.base + vector.scaled(resolved(self.settings.factor, vector.shapes, "scale"))

    def _call(self, values: "list[Weights]", operands: Operands) -> "Weights":
        own = self.settings
        arguments = own.arguments() if isinstance(own, MergeSettings) else {"settings": own}
        made: Weights = self.function()(
            values, **arguments, **{one: getattr(operands, one) for one in self.method.takes}
        )
        return made


def make_merge_method(name: str, settings: dict[str, Any] | None = None) -> ChosenMethod:
    """A method by its name, with settings.

    Raises:
        MethodError: there is no such method, or a setting is unknown or of the wrong type.
    """
    if name not in MERGE_METHODS:
        raise MethodError(f"unknown merge method {name!r}", expected=nearest(name, MERGE_METHODS), change="METHOD")
    method = MERGE_METHODS[name]
    try:
        own: Checked = _found(method.settings)(**(settings or {}))
    except MethodError as error:
        problem = error.problem.partition(": ")[2]
        raise MethodError(
            f"invalid settings of merge method {name}: {problem}", expected=error.expected, change=error.change
        ) from None
    return ChosenMethod(method, own)


def settings_of(name: str) -> type[Checked]:
    """The class of a method's settings."""
    found: type[Checked] = _found(MERGE_METHODS[name].settings)
    return found


def _found(place: str) -> Any:
    """A function or class by its place below `graftwork.arithmetic`."""
    module, _, name = place.rpartition(".")
    return getattr(import_module(f"graftwork.arithmetic.{module}"), name)
