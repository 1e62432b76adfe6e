"""Methods: one file each. `METHODS` is the table by name; a new method is a file and a line here."""

from collections.abc import Mapping
from typing import Any

from graftwork.errors import MethodError, nearest
from graftwork.methods.features import FeatureExtraction
from graftwork.methods.full import FullFineTuning
from graftwork.methods.headonly import HeadOnly
from graftwork.methods.houlsby import Houlsby
from graftwork.methods.lora import LoRA
from graftwork.methods.method import Method
from graftwork.methods.ulmfit import ULMFiT

METHODS: dict[str, type[Method]] = {
    method.name: method for method in (Houlsby, LoRA, FullFineTuning, ULMFiT, HeadOnly, FeatureExtraction)
}

NAMED: dict[str, tuple[str, Mapping[str, Any]]] = {
    "top-layers": ("full-fine-tuning", {"top_layers": 1}),
    "random-subset": ("full-fine-tuning", {"random_subset": 0.01}),
    "discriminative": ("full-fine-tuning", {"layer_decay": 2.6}),
    "gradual-unfreezing": ("full-fine-tuning", {"gradual_unfreezing": True}),
}
"""What papers call by a name of its own and is another method with other settings: name -> (method, settings)."""

__all__ = [
    "METHODS",
    "NAMED",
    "FeatureExtraction",
    "FullFineTuning",
    "HeadOnly",
    "Houlsby",
    "LoRA",
    "Method",
    "ULMFiT",
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
