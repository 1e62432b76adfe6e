"""Settings that are checked when they are made, and say in graftwork's words what is wrong with them."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Integral
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, ValidationError, ValidationInfo, field_validator
from pydantic_core import PydanticCustomError

from graftwork.errors import GraftworkError, RecipeError
from graftwork.settings.problems import types_in


@dataclass(frozen=True)
class FlagWithoutValue:
    """What is given by a flag without a value: true of a setting that is true or false, and nothing of any other."""

    flag: str

    def __repr__(self) -> str:
        return f"{self.flag} without a value"


class Checked(BaseModel, ABC):
    """Frozen settings by name, none of them unknown. A number is never given as true or false.

    Raises:
        GraftworkError: an unknown setting, or a value of the wrong type; all of them are named.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    def __init__(self, /, **settings: Any) -> None:
        try:
            super().__init__(**settings)
        except ValidationError as error:
            raise self.refusal(error.errors()) from None

    # Settings within others are pydantic's to make: what is wrong with both is then told at once.
    __init__.__pydantic_base_init__ = True  # type: ignore[attr-defined]

    @field_validator("*", mode="before")
    @classmethod
    def _plain_numbers(cls, value: object, info: ValidationInfo) -> object:
        """True and false are no numbers, and Python reads 1_0 as 10, and so would pydantic."""
        types = [*types_in(cls.model_fields[str(info.field_name)].annotation)]
        numbers = int in types or float in types
        if isinstance(value, FlagWithoutValue):
            if bool not in types:
                raise PydanticCustomError("no_value", "{flag} has no value", {"flag": value.flag})
            return True
        if numbers and bool not in types and _has_bool(value):
            raise PydanticCustomError("bool", "expected a number")
        if numbers and str not in types and isinstance(value, str) and "_" in value:
            raise ValueError("expected a number, without _ in it")
        return value

    @classmethod
    @abstractmethod
    def refusal(cls, details: Sequence[Any]) -> GraftworkError:
        """The error that names these problems, which pydantic found."""


def _has_bool(value: object) -> bool:
    return isinstance(value, bool) or (isinstance(value, list | tuple) and any(map(_has_bool, value)))


def require_count(name: str, value: object) -> None:
    """Refuse what is no whole number of 1 or more; true and false are none.

    Args:
        name: of the argument; its flag is called alike.

    Raises:
        RecipeError: it is none.
    """
    if not isinstance(value, Integral) or isinstance(value, bool) or value < 1:
        flag = "--" + name.replace("_", "-").replace(" ", "-")
        raise RecipeError(f"{name} is {value!r}", expected="a whole number, 1 or more", change=flag)


def split_commas(value: object) -> object:
    """A list, or one text with commas between its parts, as a list."""
    if not isinstance(value, str):
        return value
    return [part.strip() for part in value.split(",")] if value.strip() else []


Names = Annotated[tuple[str, ...], BeforeValidator(split_commas)]
"""A list of names, or one text with commas between them."""
