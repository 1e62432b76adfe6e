"""Dotted settings on the command line: `--method.bottleneck 64`, `--train.seed=3`, `--task.validation_fraction 0.2`.

Which settings there are depends on the method and task that are named, so they are not parameters of a command: each
becomes one `--set KEY=VALUE` (which can also be written out), and the recipe checks it.
"""

import json
import re
from collections.abc import Sequence
from typing import Annotated, Any, Literal

from cyclopts import Parameter

from graftwork.errors import RecipeError

Settings = Annotated[
    list[str],
    Parameter(
        name="--set",
        negative=(),
        help="A setting by dotted key, KEY=VALUE; may be given again. --method.KEY VALUE, --train.KEY VALUE and "
        "--task.KEY VALUE are short for it.",
    ),
]

Kind = Literal[
    "classification", "regression", "token-classification", "multiple-choice", "generation", "image-classification"
]
"""The kinds of task, as `graftwork.tasks` has them."""

Switch = Parameter(negative=())
"""A flag that is on when it is given."""

DOTTED = re.compile(r"--((?:method|train|task)\.[A-Za-z0-9_.-]+)(?:=(.*))?", re.DOTALL)


def gather_settings(arguments: Sequence[str]) -> list[str]:
    """The arguments with each dotted flag and its value as `--set KEY=VALUE`. A flag without a value is true."""
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
        if value is None:
            value = rest.pop(0) if rest and not rest[0].startswith("--") else "true"
        result += ["--set", f"{key.replace('-', '_')}={value}"]
    return result


def parse_settings(settings: Sequence[str]) -> dict[str, Any]:
    """Values by dotted key. A value is read as JSON where it is JSON (numbers, true, lists), and is text otherwise.

    Raises:
        RecipeError: no `=`, or a key that is given twice.
    """
    result: dict[str, Any] = {}
    for setting in settings:
        key, equals, value = setting.partition("=")
        if not equals or not key:
            raise RecipeError(f"setting {setting!r} has no value", expected="KEY=VALUE", change="--set")
        if key in result:
            raise RecipeError(f"setting {key!r} is given twice", expected="one value", change=f"--{key}")
        try:
            result[key] = json.loads(value)
        except json.JSONDecodeError:
            result[key] = value
    return result
