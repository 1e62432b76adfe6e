"""Settings that are checked when they are made, and say in graftwork's words what is wrong with them."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, get_args

from pydantic import BaseModel, ConfigDict, ValidationError, ValidationInfo, field_validator

from graftwork.errors import GraftworkError


class Checked(BaseModel, ABC):
    """Frozen settings by name, none of them unknown.

    Raises:
        GraftworkError: an unknown setting, or a value of the wrong type; all of them are named.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    def __init__(self, **settings: Any) -> None:
        try:
            super().__init__(**settings)
        except ValidationError as error:
            raise self.refusal(error.errors()) from None

    @field_validator("*", mode="before")
    @classmethod
    def _plain_numbers(cls, value: Any, info: ValidationInfo) -> Any:
        """Python reads 1_0 as 10, and so would pydantic."""
        if isinstance(value, str) and "_" in value and _of_numbers(cls.model_fields[info.field_name or ""].annotation):
            raise ValueError("expected a number, without _ in it")
        return value

    # Settings within others are pydantic's to make: what is wrong with both is then told at once.
    __init__.__pydantic_base_init__ = True  # type: ignore[attr-defined]

    @classmethod
    @abstractmethod
    def refusal(cls, details: Sequence[Any]) -> GraftworkError:
        """The error that names these problems, which pydantic found."""


def _of_numbers(annotation: Any) -> bool:
    """Whether a field's values are numbers, and never texts."""
    kinds = {annotation, *(inner for part in get_args(annotation) for inner in (part, *get_args(part)))}
    return not kinds.isdisjoint({int, float}) and str not in kinds


def split_commas(value: object) -> object:
    """A list, or one text with commas between its parts, as a list."""
    if not isinstance(value, str):
        return value
    return [part.strip() for part in value.split(",")] if value.strip() else []
