"""Methods: one file each. `METHODS` is the table by name; a new method is a file and a line here."""

from collections.abc import Mapping
from typing import Any

from graftwork.errors import MethodError, nearest
from graftwork.methods.full import FullFineTuning
from graftwork.methods.headonly import HeadOnly
from graftwork.methods.houlsby import Houlsby
from graftwork.methods.lora import LoRA
from graftwork.methods.method import Method
from graftwork.methods.prefix import PrefixTuning
from graftwork.methods.prompts import PromptTuning
from graftwork.methods.ptuning import PTuning
from graftwork.methods.union import Union

METHODS: dict[str, type[Method]] = {
    method.name: method
    for method in (
        *(Houlsby, LoRA, PromptTuning, PTuning, PrefixTuning),
        *(FullFineTuning, HeadOnly, Union),
    )
}

NAMED: dict[str, tuple[str, Mapping[str, Any]]] = {
    "p-tuning-v2": ("prefix-tuning", {"reparametrise": False, "num_virtual_tokens": 40}),
    "unipelt": (
        "union",
        {
            "methods": [
                {"name": "lora", "targets": ["query", "value"]},
                {"name": "prefix-tuning"},
                {"name": "houlsby", "norms": "none"},
            ],
            "gated": True,
        },
    ),
}
"""What papers call by a name of its own and is another method with other settings: name -> (method, settings)."""

__all__ = [
    "METHODS",
    "NAMED",
    "FullFineTuning",
    "HeadOnly",
    "Houlsby",
    "LoRA",
    "Method",
    "PTuning",
    "PrefixTuning",
    "PromptTuning",
    "Union",
    "make_method",
]


def make_method(name: str, settings: Mapping[str, Any] | None = None) -> Method:
    """The method of that name (`houlsby`, `LoRA`, `full_fine_tuning`: case and separators do not matter) with its
    settings. Those of a named one (`NAMED`) can be set anew.

    Raises:
        MethodError: unknown name or settings.
    """
    known: dict[str, tuple[str, Mapping[str, Any]]] = {_plain(given): (given, {}) for given in METHODS}
    known |= {_plain(given): named for given, named in NAMED.items()}
    if _plain(name) not in known:
        raise MethodError(f"unknown method {name!r}", expected=nearest(name, {*METHODS, *NAMED}), change="--method")
    method, preset = known[_plain(name)]
    return METHODS[method](**{**preset, **(settings or {})})


def _plain(name: str) -> str:
    return name.lower().replace("-", "").replace("_", "")
