"""Look up a method by name or from the settings of a file."""

from collections.abc import Mapping
from typing import Any

from graftwork.errors import MethodError, nearest
from graftwork.methods.method import Method
from graftwork.methods.named import NAMED, Named

METHODS: dict[str, type[Method]] = {}
"""Methods by name. `graftwork.methods` lists them."""


def make_method(name: str, settings: Mapping[str, Any] | None = None) -> Method:
    """The method of that name (`houlsby`, `LoRA`, `full_fine_tuning`: case and separators do not matter) with its
    settings. Those of a named one (`NAMED`) can be set anew.

    Raises:
        MethodError: unknown name or settings.
    """
    known = {_plain(own): Named(own, method.paper) for own, method in METHODS.items()}
    known |= {_plain(other): named for other, named in NAMED.items()}
    if _plain(name) not in known:
        raise MethodError(f"unknown method {name!r}", expected=nearest(name, {*METHODS, *NAMED}), change="--method")
    named = known[_plain(name)]
    return METHODS[named.method](**{**named.settings, **(settings or {})})


def as_method(value: object) -> Method:
    """A method from a method, a name, or a mapping of `name` and settings.

    Raises:
        MethodError: it is none of these, or the name or settings are unknown.
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
