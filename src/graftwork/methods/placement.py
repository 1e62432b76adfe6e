"""Placement: at which sites of a sub-layer a bottleneck acts, and in which sub-layers."""

from typing import Annotated, Literal, get_args

from pydantic import BeforeValidator, Field

from graftwork.backbones import Site, Sites
from graftwork.settings.checked import split_commas

Placement = Literal["result", "norm", "parallel"]
"""Behind a sub-layer's output; at the norm of its sum with the residual, and behind the output where no norm follows;
or beside the sub-layer."""

Sublayer = Literal["attention", "cross_attention", "ffn"]


def _as_sublayers(value: object) -> object:
    """A list, or names with commas between them, in the order of a layer."""
    names = split_commas(value)
    order: tuple[object, ...] = get_args(Sublayer)
    if not isinstance(names, list | tuple) or any(name not in order for name in names):
        return names
    return tuple(name for name in order if name in names)


Sublayers = Annotated[tuple[Sublayer, ...], BeforeValidator(_as_sublayers), Field(min_length=1)]


def sites_of(result: Site, sites: Sites, placement: Placement) -> list[str]:
    """The sites that a bottleneck at a sub-layer needs, given the sub-layer's result."""
    norm = f"{result.name.removesuffix('result')}norm"
    if placement == "norm" and norm in sites and sites[norm].follows_residual:
        return [norm]
    if placement == "parallel":
        assert result.source is not None  # every result has one
        return [result.source, result.name]
    return [result.name]
