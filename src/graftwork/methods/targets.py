"""Site patterns among a method's settings: a list, or one string with commas between them."""

from typing import Annotated

from pydantic import BeforeValidator

from graftwork.settings.checked import split_commas

Targets = Annotated[tuple[str, ...], BeforeValidator(split_commas)]
"""Patterns as `Sites.match` takes them."""
