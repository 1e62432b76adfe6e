"""Dotted settings on the command line: `--method.bottleneck 64`, `--train.seed=3`, `--task.validation_fraction 0.2`.

Which settings there are depends on the method and task that are named, so they are not parameters of a command: each
becomes one `--set KEY=VALUE` (which can also be written out), and the recipe checks it. A flag without a value becomes
`--set KEY`: the recipe takes it as true where the setting is true or false, and refuses it elsewhere.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Annotated, Any

from cyclopts import Parameter

from graftwork.errors import RecipeError, nearest

Settings = Annotated[
    list[str],
    Parameter(
        name="--set",
        negative=(),
        help="A setting by its dotted key, KEY=VALUE; may be repeated. --method.KEY VALUE, --train.KEY VALUE and "
        "--task.KEY VALUE are short for it.",
    ),
]

Switch = Parameter(negative=())
"""A flag that is on when it is given."""

DOTTED = re.compile(r"--((?:method|train|task)\.[A-Za-z0-9_.-]+)(?:=(.*))?", re.DOTALL)


def gather_settings(arguments: Sequence[str]) -> list[str]:
    """The arguments with each dotted flag as `--set KEY=VALUE`, or as `--set KEY` where no value follows."""
    result: list[str] = []
    rest = list(arguments)
    while rest:
        argument = rest.pop(0)
        if argument == "--":
            return [*result, argument, *rest]
        match = DOTTED.fullmatch(argument)
        if match is None:
            result.append(argument)
            continue
        key, value = match.groups()
        if value is None and rest and not rest[0].startswith("--"):
            value = rest.pop(0)
        key = key.replace("-", "_")
        result += ["--set", key if value is None else f"{key}={value}"]
    return result


def training_settings(dotted: Mapping[str, Any]) -> dict[str, Any]:
    """The training settings among dotted ones, by their own names, for a function that has other arguments too.

    Raises:
        RecipeError: there is no such setting.
    """
    from graftwork.training.settings import TrainingSettings

    found = {key.removeprefix("train."): value for key, value in dotted.items() if key.startswith("train.")}
    known = TrainingSettings.model_fields
    unknown = [name for name in found if name not in known]
    if unknown:
        raise RecipeError(
            f"invalid training settings: unknown key {', '.join(repr(f'train.{name}') for name in unknown)}",
            expected=nearest(unknown[0], known),
            change=", ".join(f"--train.{name}" for name in unknown),
        )
    return found


def parse_settings(settings: Sequence[str]) -> dict[str, Any]:
    """Values by dotted key, read as a file has them, or as JSON where that is a list, a mapping or a text in quotes.
    Without a value a key is `FlagWithoutValue`.

    Raises:
        RecipeError: no key, or one that is given twice.
    """
    from graftwork.settings.checked import FlagWithoutValue
    from graftwork.settings.yamlfile import read_value

    result: dict[str, Any] = {}
    for setting in settings:
        key, equals, value = setting.partition("=")
        if not key:
            raise RecipeError(f"setting {setting!r} has no key", expected="KEY=VALUE", change="--set")
        if key in result:
            raise RecipeError(f"setting {key!r} is given twice", expected="one value", change=f"--{key}")
        result[key] = read_value(value) if equals else FlagWithoutValue(f"--{key}")
    return result
