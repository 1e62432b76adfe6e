"""Numbers that differ from tensor to tensor: over layers, and by filters of names, as mergekit's users know them.

0.3                                       # everywhere
[0.0, 0.5, 1.0]                           # from the first layer to the last, linearly between
- {filter: "layers.[0-5].*", value: 0.3}  # the first that matches decides
- {filter: mlp, value: [0.1, 0.9]}
- {value: 1.0}                            # all others
"""

import re
from collections.abc import Collection, Mapping, Sequence
from fnmatch import translate
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from graftwork.arithmetic.values.roles import layers_of
from graftwork.errors import RecipeError

FIRST = re.compile(r"embed|\bwte\b|\bwpe\b|\bshared\b")
"""Names of what comes before the layers; all else outside of them comes behind."""

Finite = Annotated[float, Field(allow_inf_nan=False)]
Gradient = Annotated[tuple[Finite, ...], Field(min_length=1)]


class Filtered(BaseModel):
    """A value for some tensors.

    Attributes:
        filter: parts of their names, as `mlp` or `layers.[0-5].*`; None: all of them.
        value: a number, or numbers from the first layer to the last.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    filter: str | None = None
    value: Finite | Gradient

    def matches(self, name: str) -> bool:
        """Whether it is for the tensor of that name: the pattern matches whole parts of it, as `*` and `[0-5]` do of
        file names."""
        if self.filter is None or self.filter == "*":
            return True
        inner = translate(self.filter).removesuffix(r"\z").removesuffix(r"\Z")
        return re.search(rf"(?:^|\.)(?:{inner})(?:$|\.)", name) is not None


def _plain(value: Any) -> Any:
    """Values that a list is read from, as tuples, so that they can be compared."""
    return tuple(value) if isinstance(value, list) else value


Number = Annotated[Finite | Gradient | tuple[Filtered, ...], BeforeValidator(_plain)]
"""A number; numbers over the layers; or values by filters of names."""


def resolved(
    number: Number, names: Collection[str], what: str, *, beside: Collection[str] | None = ()
) -> float | dict[str, float]:
    """A number for each tensor; one alone where it is the same for all.

    Args:
        number: the number as it was given.
        names: of all tensors.
        what: the setting's name, for errors.
        beside: names of other tensors, which filters may be for; None: it is not known which there are.

    Raises:
        RecipeError: a filter matches no tensor, or no filter matches a tensor.
    """
    if isinstance(number, int | float):
        return float(number)
    rules = number if number and isinstance(number[0], Filtered) else (Filtered(value=number),)  # type: ignore[arg-type]
    layers = layers_of([*names, *(beside or ())])
    found: dict[str, float] = {}
    used = {i for i, rule in enumerate(rules) if isinstance(rule, Filtered) and any(map(rule.matches, beside or ()))}
    for name in names:
        matching = [i for i, rule in enumerate(rules) if isinstance(rule, Filtered) and rule.matches(name)]
        if not matching:
            raise RecipeError(
                f"no filter of {what} matches the tensor {name!r}",
                expected="a last entry without a filter, for all others",
                change=what,
            )
        used |= {*matching}
        found[name] = _at(rules[matching[0]], name, layers)
    idle = [rule for i, rule in enumerate(rules) if i not in used and isinstance(rule, Filtered) and rule.filter]
    if idle and beside is not None:
        raise RecipeError(
            f"filter {idle[0].filter!r} of {what} matches no tensor",
            expected=f"parts of names such as {min(names)!r}",
            change=what,
        )
    return found


def at_each(
    number: Number, names: Collection[str], what: str, *, beside: Collection[str] | None = ()
) -> dict[str, float]:
    """The same for each tensor, also where it is one number; see `resolved`."""
    found = resolved(number, names, what, beside=beside)
    return found if isinstance(found, dict) else dict.fromkeys(names, found)


def relevant(number: Number, names: Collection[str], beside: Collection[str]) -> Number:
    """A number without the filters that are for other tensors alone.

    Args:
        number: the number as it was given.
        names: of the tensors that it is asked for.
        beside: names of other ones.
    """
    if not isinstance(number, tuple) or not isinstance(number[0], Filtered):
        return number
    kept = [
        rule
        for rule in number
        if isinstance(rule, Filtered)
        and (any(map(rule.matches, names)) or not any(map(rule.matches, beside)) or rule.filter is None)
    ]
    return tuple(kept) or number


def less(number: Number) -> Number:
    """1 less a number, wherever it is another one."""
    if isinstance(number, int | float):
        return 1.0 - number
    return tuple(
        own.model_copy(update={"value": less(own.value)}) if isinstance(own, Filtered) else 1.0 - own for own in number
    )  # type: ignore[return-value]


def the_one(number: Number, what: str, why: str) -> float:
    """A number that must be the same for all tensors.

    Raises:
        RecipeError: it differs.
    """
    if isinstance(number, int | float):
        return float(number)
    raise RecipeError(f"{what} differs from tensor to tensor, and {why}", expected="one number", change=what)


def as_number(value: Any) -> Number:
    """A number as Python code gives it: lists and mappings become what a recipe's would.

    Raises:
        RecipeError: it is none.
    """
    if isinstance(value, int | float) and not isinstance(value, bool):
        return float(value)
    if isinstance(value, Sequence) and not isinstance(value, str):
        entries = [Filtered(**one) if isinstance(one, Mapping) else one for one in value]
        numbers = all(isinstance(one, int | float) and not isinstance(one, bool) for one in entries)
        if entries and (numbers or all(isinstance(one, Filtered) for one in entries)):
            return tuple(entries)
    raise RecipeError(f"{value!r} is no number", expected="a number, numbers over the layers, or values by filters")


def _at(rule: Filtered, name: str, layers: Mapping[str, tuple[int, int]]) -> float:
    """The value at a tensor."""
    if isinstance(rule.value, int | float):
        return float(rule.value)
    values = rule.value
    if name in layers:
        layer, depth = layers[name]
        share = layer / (depth - 1) if depth > 1 else 0.0
    else:
        share = 0.0 if FIRST.search(name) else 1.0
    place = share * (len(values) - 1)
    left = min(int(place), max(len(values) - 2, 0))
    right = min(left + 1, len(values) - 1)
    return values[left] + (place - left) * (values[right] - values[left])
