"""Settings that are checked when they are made, and say in graftwork's words what is wrong with them."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

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

    # Settings within others are pydantic's to make: what is wrong with both is then told at once.
    __init__.__pydantic_base_init__ = True  # type: ignore[attr-defined]

    @classmethod
    @abstractmethod
    def refusal(cls, details: Sequence[Any]) -> GraftworkError:
        """The error that names these problems, which pydantic found."""


def split_commas(value: object) -> object:
    """A list, or one text with commas between its parts, as a list."""
    if not isinstance(value, str):
        return value
    return [part.strip() for part in value.split(",")] if value.strip() else []
