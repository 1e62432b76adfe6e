"""YAML files of settings, read strictly: recipes and task files."""

from collections.abc import Hashable
from pathlib import Path
from typing import Any

import yaml

from graftwork.errors import RecipeError


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


class _StrictLoader(yaml.SafeLoader):
    """PyYAML's safe loader, but a key given twice is an error instead of the last one winning."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen = set()
        for key_node, _ in node.value:
            if key_node.tag == "tag:yaml.org,2002:merge":
                continue
            key = self.construct_object(key_node, deep=True)
            if isinstance(key, Hashable) and key in seen:
                raise yaml.constructor.ConstructorError(None, None, f"{key!r} is there twice", key_node.start_mark)
            seen.add(key if isinstance(key, Hashable) else None)
        return super().construct_mapping(node, deep=deep)
