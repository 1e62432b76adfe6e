"""What is searched for a method on a task, as a section of a study: values to try, by a grid or by Optuna."""

from collections.abc import Mapping, Sequence
from itertools import product
from typing import Annotated, Any, Self

from pydantic import BaseModel, ConfigDict, Discriminator, Field, PositiveInt, Tag, field_validator, model_validator

from graftwork.training.settings import TrainingSettings

RATE = "train.learning_rate"

Tried = Mapping[str, Any]
"""What one trial sets: dotted keys of a recipe, with their values."""


class Between(BaseModel):
    """A range of numbers that Optuna chooses from.

    Attributes:
        low: the smallest.
        high: the largest.
        log: choose evenly among their logarithms.
        whole: whole numbers only.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    low: float
    high: float
    log: bool = False
    whole: bool = False

    @model_validator(mode="after")
    def _in_order(self) -> Self:
        if not self.low < self.high or (self.log and self.low <= 0):
            raise ValueError("expected low < high" + (", and low above 0 with log" if self.log else ""))
        if self.whole and not (self.low.is_integer() and self.high.is_integer()):
            raise ValueError(f"whole numbers between {self.low:g} and {self.high:g}: expected low and high to be whole")
        return self


class Times(BaseModel):
    """Learning rates as multiples of the method's own.

    Attributes:
        times: the multiples.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    times: tuple[float, ...] = Field(min_length=1)

    @field_validator("times")
    @classmethod
    def _positive(cls, times: tuple[float, ...]) -> tuple[float, ...]:
        if any(not factor > 0 for factor in times):
            raise ValueError("expected numbers above 0")
        return times


def _is_mapping(value: Any) -> str:
    """Which of a list and keys and values is meant. The names are those of branches, which no problem shows."""
    return "[key]mapping" if isinstance(value, Mapping | BaseModel) else "[key]list"


_List = Annotated[tuple[Any, ...], Tag("[key]list")]
_Grid = Annotated[_List | Annotated[Times, Tag("[key]mapping")], Discriminator(_is_mapping)]
_Space = Annotated[_List | Annotated[Between, Tag("[key]mapping")], Discriminator(_is_mapping)]


class Search(BaseModel):
    """What is searched, by a grid or by Optuna. Validation scores choose; test scores have no part in it.

    Keys are training settings (`learning_rate`, `num_train_epochs`) or settings of the method (`method.bottleneck`).

    Attributes:
        grid: by key, the values; all combinations are tried. Of `learning_rate`, also `{times: [0.3, 1, 3]}`: multiples
            of the method's own rate.
        optuna: by key, a list of values or a range (`low`, `high`, `log`, `whole`), from which Optuna's TPE sampler
            chooses.
        trials: with Optuna, the number of trials.
        round: with Optuna, the number of trials that are asked for at once. Those of a round know of the results of
            earlier rounds alone, so that the same trials come of it on any number of processes, killed or not.
        seeds: each is tried with the first so many seeds; the mean of their validation scores chooses.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    grid: dict[str, _Grid] | None = None
    optuna: dict[str, _Space] | None = None
    trials: PositiveInt | None = None
    round: PositiveInt | None = None
    seeds: PositiveInt = 1

    @field_validator("grid", "optuna", mode="before")
    @classmethod
    def _known_keys(cls, space: Any) -> Any:
        if space is None or not isinstance(space, Mapping):
            return space
        if not space:
            raise ValueError("it is empty: there is nothing to try")
        for key, values in space.items():
            name = str(key)
            if "." not in name and _dotted(name) in space:
                raise ValueError(f"{name} and {_dotted(name)} are one setting: expected one of the two")
            if not name.startswith("method.") and name.removeprefix("train.") not in TrainingSettings.model_fields:
                raise ValueError(f"{key!r} is no training setting; a setting of the method is written method.KEY")
            if name.removeprefix("train.") == "seed":
                raise ValueError("seed: a study's seeds are its key seeds")
            if isinstance(values, list | tuple) and not values:
                raise ValueError(f"{key} is empty: there is nothing to try")
            if isinstance(values, list | tuple) and len({repr(value) for value in values}) < len(values):
                raise ValueError(f"{key} has a value twice")
            if not isinstance(values, list | tuple | Mapping | Times | Between):
                raise ValueError(f"{key} is {values!r}: expected a list of values")
        return space

    @model_validator(mode="after")
    def _one_way(self) -> Self:
        if (self.grid is None) == (self.optuna is None):
            raise ValueError("expected one of grid and optuna")
        for name in ("trials", "round"):
            if self.grid is not None and getattr(self, name) is not None:
                raise ValueError(f"{name} is for optuna, and the search is a grid")
        if self.optuna is not None and self.trials is None:
            raise ValueError("trials is missing: how many trials Optuna may ask for")
        for key, values in (self.grid or {}).items():
            if isinstance(values, Times) and _dotted(key) != RATE:
                raise ValueError(f"{key}: times are of learning_rate alone")
        return self

    @property
    def named(self) -> Mapping[str, Any]:
        """What is searched, as it was written."""
        return self.grid or self.optuna or {}

    @property
    def per_round(self) -> int:
        """Trials of one round of Optuna."""
        return self.round or 4

    @property
    def size(self) -> int:
        """How many combinations of values are tried."""
        if self.grid is None:
            return self.trials or 0
        count = 1
        for values in self.grid.values():
            count *= len(values.times if isinstance(values, Times) else values)
        return count

    def candidates(self, rate: float) -> list[dict[str, Any]]:
        """All combinations of a grid, as dotted keys of a recipe.

        Args:
            rate: the method's own learning rate.
        """
        lists: dict[str, Sequence[Any]] = {}
        for key, values in (self.grid or {}).items():
            if isinstance(values, Times):  # rounded, so that 3 times 0.001 is 0.003
                values = tuple(float(f"{factor * rate:.6g}") for factor in values.times)
            lists[_dotted(key)] = values
        return [dict(zip(lists, own, strict=True)) for own in product(*lists.values())]

    def space(self) -> dict[str, tuple[Any, ...] | Between]:
        """What Optuna chooses from, by dotted key of a recipe."""
        return {_dotted(key): values for key, values in (self.optuna or {}).items()}


def _dotted(key: str) -> str:
    return key if "." in key else f"train.{key}"
