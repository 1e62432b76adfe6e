"""Look up a method by name or from the settings of a file."""

from collections.abc import Mapping
from typing import Any

from graftwork.errors import MethodError, nearest
from graftwork.methods.method import Method
from graftwork.methods.named import NAMED, Named

METHODS: dict[str, type[Method]] = {}
"""The classes of methods by name."""


def make_method(name: str, settings: Mapping[str, Any] | None = None) -> Method:
    """Make a method by name.

    Args:
        name: name of a method (`METHODS`) or of a named method (`NAMED`). Case and separators do not matter: `houlsby`,
            `LoRA`, `full_fine_tuning`.
        settings: settings that override the defaults.

    Raises:
        MethodError: the name or a setting is unknown, or a value is invalid.
    """
    _, named = find_method(name)
    return METHODS[named.method](**{**named.settings, **(settings or {})})


def find_method(name: str) -> tuple[str, Named]:
    """Look up a method by any spelling of its name.

    Returns:
        The name as it is listed, and the method and settings that it stands for.

    Raises:
        MethodError: the name is unknown.
    """
    known = known_methods()
    listed = {_plain(own): own for own in known}.get(_plain(name))
    if listed is None:
        raise MethodError(f"unknown method {name!r}", expected=nearest(name, known), change="--method")
    return listed, known[listed]


def known_methods() -> dict[str, Named]:
    """All methods by name, each followed by the named methods that are based on it."""
    known: dict[str, Named] = {}
    for own, method in METHODS.items():
        known[own] = Named(own, method.paper, method.when)
        known |= {name: named for name, named in NAMED.items() if named.method == own}
    return known


def as_method(value: object) -> Method:
    """A method given as a method, a name, or a mapping of `name` and settings.

    Raises:
        MethodError: the value is none of these, or the name or a setting is unknown.
    """
    if isinstance(value, Method):
        return value
    if isinstance(value, str):
        return make_method(value)
    if isinstance(value, Mapping) and "name" in value:
        return make_method(str(value["name"]), {key: given for key, given in value.items() if key != "name"})
    raise MethodError(
        f"a method's name is missing in {value!r}" if isinstance(value, Mapping) else f"{value!r} is not a method",
        expected="a method, its name, or a mapping of name and settings",
        change="--method",
    )


def _plain(name: str) -> str:
    return name.lower().replace("-", "").replace("_", "")
