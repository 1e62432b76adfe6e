"""Methods: one file each. `METHODS` is the table by name; a new method is a file and a line here."""

from collections.abc import Mapping
from typing import Any

from graftwork.errors import MethodError, nearest
from graftwork.methods.adamix import AdaMix
from graftwork.methods.bitfit import BitFit
from graftwork.methods.compacter import Compacter
from graftwork.methods.dora import DoRA
from graftwork.methods.features import FeatureExtraction
from graftwork.methods.full import FullFineTuning
from graftwork.methods.headonly import HeadOnly
from graftwork.methods.houlsby import Houlsby
from graftwork.methods.ia3 import IA3
from graftwork.methods.layernorm import LayerNormTuning
from graftwork.methods.lora import LoRA
from graftwork.methods.method import Method
from graftwork.methods.named import NAMED, Named
from graftwork.methods.parallel import Parallel
from graftwork.methods.pfeiffer import Pfeiffer
from graftwork.methods.prefix import PrefixTuning
from graftwork.methods.prompts import PromptTuning
from graftwork.methods.ptuning import PTuning
from graftwork.methods.ulmfit import ULMFiT
from graftwork.methods.union import Union
from graftwork.methods.vera import VeRA

METHODS: dict[str, type[Method]] = {
    method.name: method
    for method in (
        *(Houlsby, Pfeiffer, Parallel),
        *(Compacter, AdaMix),
        *(LoRA, DoRA, VeRA),
        *(IA3, BitFit, LayerNormTuning),
        *(PromptTuning, PTuning, PrefixTuning),
        *(FullFineTuning, ULMFiT, HeadOnly, FeatureExtraction),
        Union,
    )
}
"""Methods by name, group by group."""

__all__ = [
    "IA3",
    "METHODS",
    "NAMED",
    "AdaMix",
    "BitFit",
    "Compacter",
    "DoRA",
    "FeatureExtraction",
    "FullFineTuning",
    "HeadOnly",
    "Houlsby",
    "LayerNormTuning",
    "LoRA",
    "Method",
    "PTuning",
    "Parallel",
    "Pfeiffer",
    "PrefixTuning",
    "PromptTuning",
    "ULMFiT",
    "Union",
    "VeRA",
    "as_method",
    "make_method",
]


def make_method(name: str, settings: Mapping[str, Any] | None = None) -> Method:
    """The method of that name (`houlsby`, `LoRA`, `full_fine_tuning`: case and separators do not matter) with its
    settings. Those of a named one (`NAMED`) can be set anew.

    Raises:
        MethodError: unknown name or settings.
    """
    known = {_plain(own): Named(own, method.paper) for own, method in METHODS.items()}
    known |= {_plain(other): named for other, named in NAMED.items()}
    if _plain(name) not in known:
        raise MethodError(f"unknown method {name!r}", expected=nearest(name, {*METHODS, *NAMED}), change="--method")
    named = known[_plain(name)]
    return METHODS[named.method](**{**named.settings, **(settings or {})})


def as_method(value: object) -> Method:
    """A method out of itself, its name, or a mapping of `name` and settings.

    Raises:
        MethodError: it is none of these; or the name or settings are unknown.
    """
    if isinstance(value, Method):
        return value
    if isinstance(value, str):
        return make_method(value)
    if isinstance(value, Mapping) and "name" in value:
        return make_method(str(value["name"]), {key: given for key, given in value.items() if key != "name"})
    raise MethodError(
        f"a method's name is missing in {value!r}" if isinstance(value, Mapping) else f"{value!r} is no method",
        expected="a method, its name, or a mapping of name and settings",
        change="--method",
    )


def _plain(name: str) -> str:
    return name.lower().replace("-", "").replace("_", "")
