"""YAML files of settings, read strictly: recipes, joint recipes and task files.

Values are read as YAML 1.2's core schema has them (https://yaml.org/spec/1.2.2, section 10.3.2): `010` is 10, and
`yes`, `1:30` and `2024-01-01` are texts. PyYAML reads 1.1, in which they are 8, true, 90 and a date. A flag's value is
read in the same way.
"""

import json
import re
from collections.abc import Hashable, Mapping
from pathlib import Path
from typing import Any

import yaml

from graftwork.errors import RecipeError

RECIPE = "recipe.yaml"
"""The file of the resolved recipe by which the contents of a folder were made."""

SCALARS: dict[str, tuple[re.Pattern[str], list[str]]] = {
    "null": (re.compile(r"~|null|Null|NULL|"), ["~", "n", "N", ""]),
    "bool": (re.compile(r"true|True|TRUE|false|False|FALSE"), list("tTfF")),
    "int": (re.compile(r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+"), list("-+0123456789")),
    "float": (
        re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)"),
        list("-+.0123456789"),
    ),
}
"""Type -> what is of it where it stands without quotes, and its first characters. All else is text."""


def read_yaml(path: Path) -> dict[str, Any]:
    """A file's keys and values.

    Raises:
        RecipeError: it is missing, is not UTF-8 or YAML, is no mapping, or has a key twice; says where.
    """
    try:
        values = yaml.load(path.read_text(encoding="utf-8"), Loader=_StrictLoader)
    except OSError as error:
        raise RecipeError(f"{path} cannot be read: {error.strerror}", expected="a YAML file") from None
    except UnicodeDecodeError as error:
        raise RecipeError(f"{path} is not UTF-8 at byte {error.start}", expected="UTF-8", change=str(path)) from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        place = f" at line {mark.line + 1}" if mark is not None else ""
        raise RecipeError(
            f"{path} is not valid YAML{place}: {getattr(error, 'problem', None) or error}",
            expected="lines of key: value",
            change=str(path),
        ) from None
    if not isinstance(values, dict):
        raise RecipeError(f"{path} has no keys and values", expected="lines of key: value", change=str(path))
    return values


def dump_yaml(values: Mapping[str, Any]) -> str:
    """A file's text. What a reader of YAML 1.1 or 1.2 would take for another type is put in quotes."""
    return yaml.dump(dict(values), Dumper=_Dumper, sort_keys=False)


def read_value(text: str) -> Any:
    """A flag's value, read as a file has it; JSON's lists, mappings and texts in quotes are those, too. Nothing is an
    empty text."""
    found = _type_of(text) if text else None
    if found is not None:
        return _CONSTRUCT[found](text)
    try:
        return json.loads(text) if text[:1] in ("[", "{", '"') else text
    except json.JSONDecodeError:
        return text


def _type_of(text: str) -> str | None:
    """The type of a value without quotes; None of a text."""
    return next((name for name, (pattern, _) in SCALARS.items() if pattern.fullmatch(text)), None)


def _int(text: str) -> int:
    base = {"0o": 8, "0x": 16}.get(text[:2], 10)
    return int(text.removeprefix("0o") if base == 8 else text, base)


def _float(text: str) -> float:
    return float(text.replace(".inf", "inf").replace(".nan", "nan")) if text[-1:].isalpha() else float(text)


_CONSTRUCT: dict[str, Any] = {
    "null": lambda text: None,
    "bool": lambda text: text.lower() == "true",
    "int": _int,
    "float": lambda text: _float(text.lower()),
}


class _StrictLoader(yaml.SafeLoader):
    """PyYAML's safe loader with the core schema, and a key given twice is an error instead of the last one winning."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen = set()
        for key_node, _ in node.value:
            if key_node.tag == "tag:yaml.org,2002:merge":
                continue
            key = self.construct_object(key_node, deep=True)
            if isinstance(key, Hashable) and key in seen:
                raise yaml.constructor.ConstructorError(None, None, f"{key!r} is given twice", key_node.start_mark)
            seen.add(key if isinstance(key, Hashable) else None)
        return super().construct_mapping(node, deep=deep)

    def construct_core(self, node: yaml.ScalarNode) -> Any:
        """A value of one of the types, also one that a tag (`!!int`) asks for."""
        kind, text = node.tag.rpartition(":")[2], str(self.construct_scalar(node))
        if not SCALARS[kind][0].fullmatch(text):
            raise yaml.constructor.ConstructorError(None, None, f"{text!r} is not of type {kind}", node.start_mark)
        return _CONSTRUCT[kind](text)


class _Dumper(yaml.SafeDumper):
    """PyYAML's, which knows 1.1, and the core schema's types besides."""


_StrictLoader.yaml_implicit_resolvers = {"<": [("tag:yaml.org,2002:merge", re.compile("<<"))]}
_Dumper.yaml_implicit_resolvers = {first: [*known] for first, known in yaml.SafeDumper.yaml_implicit_resolvers.items()}

for _name, (_pattern, _first) in SCALARS.items():
    _whole = re.compile(f"(?:{_pattern.pattern})$")
    for _class in (_StrictLoader, _Dumper):
        _class.add_implicit_resolver(f"tag:yaml.org,2002:{_name}", _whole, _first)
    _StrictLoader.add_constructor(f"tag:yaml.org,2002:{_name}", _StrictLoader.construct_core)
