"""Methods: one file each. `METHODS` is the table by name; a new method is a file and a line here."""

from collections.abc import Mapping
from typing import Any

from graftwork.errors import MethodError, nearest
from graftwork.methods.full import FullFineTuning
from graftwork.methods.headonly import HeadOnly
from graftwork.methods.houlsby import Houlsby
from graftwork.methods.lora import LoRA
from graftwork.methods.method import Method

METHODS: dict[str, type[Method]] = {method.name: method for method in (Houlsby, LoRA, FullFineTuning, HeadOnly)}

__all__ = ["METHODS", "NAMED", "FullFineTuning", "HeadOnly", "Houlsby", "LoRA", "Method", "make_method"]


def make_method(name: str, settings: Mapping[str, Any] | None = None) -> Method:
    """The method of that name (`houlsby`, `LoRA`, `full_fine_tuning`: case and separators do not matter) with its
    settings.

    Raises:
        MethodError: unknown name or settings.
    """
    plain = {_plain(known): method for known, method in METHODS.items()}
    if _plain(name) not in plain:
        raise MethodError(f"unknown method {name!r}", expected=nearest(name, METHODS), change="--method")
    return plain[_plain(name)](**(settings or {}))


def _plain(name: str) -> str:
    return name.lower().replace("-", "").replace("_", "")
