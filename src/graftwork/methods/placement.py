"""Placement: at which sites of a sub-layer a bottleneck acts, in which sub-layers, and from which layer on."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated, Literal, get_args

from pydantic import BeforeValidator, Field

from graftwork.backbones import Site, Sites
from graftwork.checked import split_commas

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


def depths(sites: Sequence[Site]) -> dict[str, int]:
    """How many layers each stack has."""
    found: dict[str, int] = {}
    for site in sites:
        if site.layer is not None:
            found[site.stack] = max(found.get(site.stack, 0), 1 + site.layer)
    return found


def from_layer(sites: Sequence[Site], first: Mapping[str, int]) -> Iterator[Site]:
    """The sites less those of each stack's first layers and, unless none is left out, those before its layers."""
    begun: set[str] = set()
    for site in sites:
        start = first.get(site.stack, max(first.values(), default=0))
        if site.layer is not None and site.layer >= start:
            begun.add(site.stack)
        if start == 0 or (site.stack in begun if site.layer is None else site.layer >= start):
            yield site
