"""Site patterns among a method's settings: a list, or one string with commas between them."""

from collections.abc import Iterable
from fnmatch import fnmatchcase
from typing import Annotated

from pydantic import BeforeValidator

from graftwork.backbones import Site


def _as_patterns(value: object) -> object:
    return [pattern for pattern in value.split(",") if pattern] if isinstance(value, str) else value


Targets = Annotated[tuple[str, ...], BeforeValidator(_as_patterns)]
"""Patterns as `Sites.match` takes them."""


def matches(patterns: Iterable[str], site: Site) -> bool:
    """Whether any of the patterns names the site."""
    return any(fnmatchcase(site.name, name) for pattern in patterns for name in (pattern, f"*.{pattern}"))
