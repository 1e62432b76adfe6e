"""Problems in words: what pydantic found wrong with values, a sentence a key, for every file, flag and argument."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, get_args

from pydantic import BaseModel

from graftwork.errors import nearest

WORDS: Mapping[str, str] = {
    **dict.fromkeys(("int_type", "int_parsing", "int_from_float"), "expected a whole number"),
    **dict.fromkeys(("float_type", "float_parsing"), "expected a number"),
    **dict.fromkeys(("bool_type", "bool_parsing"), "expected true or false"),
    **dict.fromkeys(("list_type", "tuple_type"), "expected a list"),
    **dict.fromkeys(("dict_type", "mapping_type", "model_type"), "expected keys and values"),
    "string_type": "expected a text",
    "string_too_short": "expected a text that is not empty",
    "too_short": "expected a list of at least {min_length}",
    "finite_number": "expected a finite number",
    "literal_error": "expected {expected}",
    "greater_than": "expected a number above {gt}",
    "greater_than_equal": "expected a number of {ge} or more",
    "less_than": "expected a number below {lt}",
    "less_than_equal": "expected a number of {le} or less",
}
"""pydantic's types of problem -> what they are called here, where its own words are for programmers."""

TYPES = {"str", "int", "float", "bool"}

BRANCHES = ("constrained-", "dict[", "literal[", "function-", "tuple[", "list[", "[key]")
"""The names of branches of a union, which pydantic has in the place of a key: types, and what begins the others."""


def describe(details: Sequence[Any], model: type[BaseModel]) -> str:
    """All problems that were found with a model's fields.

    Args:
        details: the `errors()` of pydantic's ValidationError.
        model: the fields are its.
    """
    # A default that depends on a field that is wrong is no problem of its own.
    real = [detail for detail in details if detail["type"] != "default_factory_not_called"]
    return "; ".join(dict.fromkeys(_describe(detail, model) for detail in real))


def key_of(detail: Mapping[str, Any]) -> str:
    """The dotted key of what a problem was found with; empty where it is the whole."""
    return ".".join(part for part in map(str, detail["loc"]) if part not in TYPES and not part.startswith(BRANCHES))


def flags(details: Sequence[Any], section: str) -> str:
    """The dotted flags of the settings with problems, for an error's `change`."""
    return ", ".join(sorted({f"--{section}.{detail['loc'][0]}" for detail in details if detail["loc"]}))


def types_in(annotation: object) -> Iterator[object]:
    """A type, and those that it is made of."""
    yield annotation
    for part in get_args(annotation):
        yield from types_in(part)


def _describe(detail: Mapping[str, Any], model: type[BaseModel]) -> str:
    key, kind, given = key_of(detail), detail["type"], detail["input"]
    if kind == "extra_forbidden":
        known = _fields(model, detail["loc"][:-1])
        return f"unknown key {key!r}" + (f" (expected {nearest(key.rpartition('.')[2], known)})" if known else "")
    if kind == "missing":
        return f"key {key!r} is missing"
    message = str(detail["msg"]).removeprefix("Value error, ").replace("Input should be", "expected")
    if kind in WORDS:
        bounds = {name: f"{v:g}" if isinstance(v, float) else v for name, v in detail.get("ctx", {}).items()}
        message = WORDS[kind].format(**bounds)
    if not key or kind == "no_value":
        return message if kind != "model_type" else f"{message}, not {given!r}"
    quotes = " (put it in quotes)" if kind == "string_type" and given is not None else ""
    return f"{key if isinstance(given, Mapping) else f'{key}={given!r}'}: {message}{quotes}"


def _fields(model: type[BaseModel], path: Sequence[object]) -> list[str]:
    """The keys that there are at a path within a model; none where it has no keys of its own there."""
    for part in path:
        field = model.model_fields.get(str(part))
        models = [own for own in types_in(field.annotation) if _is_model(own)] if field else []
        if len(models) != 1:
            return []
        [model] = models  # type: ignore[assignment]
    return list(model.model_fields)


def _is_model(own: object) -> bool:
    return isinstance(own, type) and issubclass(own, BaseModel)
