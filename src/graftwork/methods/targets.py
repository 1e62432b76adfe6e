"""Site patterns among a method's settings: a list, or one string with commas between them."""

from collections.abc import Iterable
from fnmatch import fnmatchcase
from typing import Annotated

from pydantic import BeforeValidator

from graftwork.backbones import Site
from graftwork.checked import split_commas

Targets = Annotated[tuple[str, ...], BeforeValidator(split_commas)]
"""Patterns as `Sites.match` takes them."""


def matches(patterns: Iterable[str], site: Site) -> bool:
    """Whether any of the patterns names the site."""
    return any(fnmatchcase(site.name, name) for pattern in patterns for name in (pattern, f"*.{pattern}"))
