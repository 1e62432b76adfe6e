"""Settings of weight matching, apart from what computes: a merge is checked before that is imported."""

from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, PositiveInt

from graftwork.errors import MethodError
from graftwork.settings.checked import Checked, split_commas
from graftwork.settings.problems import describe, flags


class MatchingSettings(Checked):
    """How weights are matched.

    Attributes:
        rounds: maximum number of times that every group is matched.
        start: `spread`: the groups are first matched one by one from the inputs on, each by the weights whose other
            axes are in order already; `identity`, the paper's: all begin as they are.
        fixed: names of groups that are not moved, such as `residual`.
        seed: of the order in which groups are matched.
    """

    rounds: PositiveInt = 100
    start: Literal["spread", "identity"] = "spread"
    fixed: Annotated[tuple[str, ...], BeforeValidator(split_commas)] = ()
    seed: int = Field(default=0, ge=0)

    @classmethod
    def refusal(cls, details: Sequence[Any]) -> MethodError:
        return MethodError(f"invalid settings of matching: {describe(details, cls)}", change=flags(details, "method"))
