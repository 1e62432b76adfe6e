"""Methods: one file each. `METHODS` is the table by name; a new method is a file and a line here."""

from collections.abc import Mapping
from typing import Any

from graftwork.errors import MethodError, nearest
from graftwork.methods.adamix import AdaMix
from graftwork.methods.bitfit import BitFit
from graftwork.methods.compacter import Compacter
from graftwork.methods.dora import DoRA
from graftwork.methods.full import FullFineTuning
from graftwork.methods.headonly import HeadOnly
from graftwork.methods.houlsby import Houlsby
from graftwork.methods.ia3 import IA3
from graftwork.methods.layernorm import LayerNormTuning
from graftwork.methods.lora import LoRA
from graftwork.methods.method import Method
from graftwork.methods.parallel import Parallel
from graftwork.methods.pfeiffer import Pfeiffer
from graftwork.methods.vera import VeRA

METHODS: dict[str, type[Method]] = {
    method.name: method
    for method in (
        *(Houlsby, Pfeiffer, Parallel),
        *(Compacter, AdaMix),
        *(LoRA, DoRA, VeRA),
        *(IA3, BitFit, LayerNormTuning),
        *(FullFineTuning, HeadOnly),
    )
}

NAMED: dict[str, tuple[str, Mapping[str, Any]]] = {
    "scaled-parallel": ("parallel", {"scale": 4.0}),
    "adapterdrop": ("pfeiffer", {"robust_drop": True}),
    "compacter++": ("compacter", {"sublayers": ("ffn",)}),
    "phm": ("compacter", {"phm_rank": None, "share_rule": False}),
    "rslora": ("lora", {"rank_stabilised": True}),
    "lora+": ("lora", {"b_rate": 16.0}),
    "pissa": ("lora", {"init": "pissa"}),
}
"""What papers call by a name of its own and is another method with other settings: name -> (method, settings)."""

__all__ = [
    "IA3",
    "METHODS",
    "NAMED",
    "AdaMix",
    "BitFit",
    "Compacter",
    "DoRA",
    "FullFineTuning",
    "HeadOnly",
    "Houlsby",
    "LayerNormTuning",
    "LoRA",
    "Method",
    "Parallel",
    "Pfeiffer",
    "VeRA",
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
