"""Flags that several commands have, and settings beside them."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Annotated, Any

from cyclopts import Parameter

from graftwork.cli.settings import Switch, parse_settings
from graftwork.errors import RecipeError


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class Columns:
    """The columns of a task's data."""

    text: str | None = None
    """Column of the text; for token-classification, of the lists of words; for generation, of the source."""
    text_pair: str | None = None
    """Column of the second text, for tasks over pairs."""
    label: str | None = None
    """Column of the label; of tags for token-classification, of targets for generation. Default: label."""

    def settings(self) -> dict[str, Any]:
        """By the task's dotted key; None of those that are not given."""
        return {f"task.{name}": value for name, value in asdict(self).items()}

    def given(self) -> dict[str, str]:
        """Those that are given, by field of the task."""
        return {name: value for name, value in asdict(self).items() if value is not None}


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class EveryColumn(Columns):
    """The columns of a task of any kind."""

    image: str | None = None
    """Column of the image. Default: image."""
    choices: str | None = None
    """For multiple choice: columns of the choices, separated by commas; or the one column of lists of choices."""


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class Written:
    """How a command behaves that writes an output at once."""

    overwrite: Annotated[bool, Switch] = False
    """Replace an existing output."""
    quiet: Annotated[bool, Switch] = False
    """Print neither what is done nor how far it is."""
    json: Annotated[bool, Switch] = False
    """Print the result as JSON."""


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class Run(Written):
    """How a run behaves that makes an output, and can be interrupted."""

    resume: Annotated[bool, Switch] = False
    """Resume an interrupted run to the same output."""
    overwrite: Annotated[bool, Switch] = False
    """Replace an existing output, and discard an interrupted run."""


NO_COLUMNS, NO_COLUMN_AT_ALL, PLAIN, PLAIN_RUN = Columns(), EveryColumn(), Written(), Run()
"""Where no flag is given."""


def with_settings(flags: Mapping[str, Any], settings: Sequence[str], *, taken: Iterable[str] = ()) -> dict[str, Any]:
    """Flags that were given, by dotted key, and dotted settings.

    Args:
        flags: by dotted key; None where a flag was not given.
        settings: as `parse_settings` reads them.
        taken: keys of other flags that were given.

    Raises:
        RecipeError: one is given both as a flag and as a setting.
    """
    given = {key: value for key, value in flags.items() if value is not None}
    dotted = parse_settings(settings)
    twice = sorted({*given, *taken} & dotted.keys())
    if twice:
        raise RecipeError(f"{', '.join(twice)} is given both as a flag and as a setting", expected="one of the two")
    return given | dotted
