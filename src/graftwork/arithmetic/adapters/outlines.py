"""What a merge of adapters will hold, from shapes alone: neither adapters nor backbone need numbers (torch's device
`meta`).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from graftwork.adapters import Adapter
from graftwork.arithmetic.adapters.bodies import Align, LowRankBodies, ParameterBodies, body_of
from graftwork.arithmetic.adapters.differences import is_low_rank, ranks_of, sites_of_full
from graftwork.arithmetic.adapters.mergeable import is_low_rank_method, kind_of_bodies
from graftwork.backbones import Backbone


@dataclass(frozen=True)
class OutlinedTensor:
    """A tensor of a merge.

    Attributes:
        shape: its shape.
        of: the adapters that change what it says; none: it is zero, and changes nothing.
    """

    shape: tuple[int, ...]
    of: tuple[str, ...]


@dataclass(frozen=True)
class OutlinedBody:
    """A merge of adapters without its heads.

    Attributes:
        method: the name of its method.
        tensors: by name.
        vectors: shapes of the vectors that are calculated with.
        at_most: whether the numbers decide the rank, which is at most the one of the shapes.
    """

    method: str
    tensors: Mapping[str, OutlinedTensor]
    vectors: Mapping[str, tuple[int, ...]]
    at_most: bool = False


def outlined_body(
    adapters: Mapping[str, Adapter],
    backbone: Backbone,
    *,
    coefficients: Sequence[float] | None = None,
    formula: str = "",
    basis: bool = False,
    rank: int | None = None,
    align: Align = "auto",
) -> OutlinedBody:
    """What `merge_adapters` makes of adapters.

    Args:
        adapters: by name; their numbers are not read.
        backbone: of all of them; its numbers are not read.
        coefficients: of a sum, whose factors are concatenated; None: it is none.
        formula: the name of a formula over vectors; empty: there is none.
        basis: whether it is applied to low-rank differences in the common basis (KnOTS, Iso-C, TSV-M).
        rank, align: see `merge_adapters`.

    Raises:
        AdapterError: an adapter is of a backbone of another shape.
        MethodError: methods that cannot be merged, or a rank that does not suit them.
    """
    for adapter in adapters.values():
        adapter.backbone.check_shape(backbone)
    kind = kind_of_bodies(adapters, align=align)
    if coefficients is not None:
        kind.refuse_other_sums(coefficients)
    elif formula:
        kind.refuse_formula(adapters, formula)
    if issubclass(kind, ParameterBodies):
        first = next(iter(adapters.values()))
        kind(adapters, backbone).refuse_rank(rank)
        own = {name: OutlinedTensor(tuple(t.shape), tuple(adapters)) for name, t in body_of(first).items()}
        return OutlinedBody(first.method.name, own, {name: tensor.shape for name, tensor in own.items()})
    changed = {name: _changed(adapter, backbone) for name, adapter in adapters.items()}
    names = [*dict.fromkeys(weight for own in changed.values() for weight in own)]
    vectors = {name: tuple(backbone.weights.where(name).shape) for name in names}
    of = {weight: tuple(name for name, own in changed.items() if weight in own) for weight in names}
    if kind is LowRankBodies and (coefficients is not None or basis or rank is not None):
        ranks = [ranks_of(adapter, backbone) for adapter in adapters.values()]
        total = max(sum(own[w][0] for own in ranks if w in own) for w in names)
        joined = total if rank is None else rank
        return OutlinedBody("lora", _lora(names, joined, backbone, of), vectors, at_most=basis and rank is None)
    if rank is not None:
        low = [name for name in names if is_low_rank(name, backbone)]
        return OutlinedBody("lora", _lora(low, rank, backbone, of), vectors)
    return OutlinedBody("full-fine-tuning", _full(backbone, [*adapters.values()], of), vectors)


def _changed(adapter: Adapter, backbone: Backbone) -> dict[str, None]:
    """The canonical names of the weights that an adapter changes, in order."""
    if is_low_rank_method(adapter.method):
        return dict.fromkeys(ranks_of(adapter, backbone))
    sites = [backbone.sites[name] for name in adapter.sites]
    return dict.fromkeys(
        place.name for site in sites for place in backbone.weights.within(site.path) if not place.buffer
    )


def _lora(
    names: Sequence[str], rank: int, backbone: Backbone, of: Mapping[str, tuple[str, ...]]
) -> dict[str, OutlinedTensor]:
    wanted = {name.removesuffix(".weight") for name in names}
    found = {}
    for site in (own for own in backbone.sites.of_kind("linear") if own.name in wanted):
        out, width = backbone.weights.where(f"{site.name}.weight").shape
        found[f"{site.name}.A"] = OutlinedTensor((rank, width), of[f"{site.name}.weight"])
        found[f"{site.name}.B"] = OutlinedTensor((out, rank), of[f"{site.name}.weight"])
    return found


def _full(
    backbone: Backbone, adapters: Sequence[Adapter], of: Mapping[str, tuple[str, ...]]
) -> dict[str, OutlinedTensor]:
    found = {}
    sites = sites_of_full(backbone, [adapter.head for adapter in adapters])
    for site in (site for name, site in sites.items() if site.owner == name):
        places = [*backbone.weights.within(site.path)]
        for parameter, shape in site.parameters.items():
            names = [own for p in places if p.parameter == parameter for own in (p.name, *p.tied)]
            whose = dict.fromkeys(adapter for name in names for adapter in of.get(name, ()))
            found[f"{site.name}.{parameter}"] = OutlinedTensor(tuple(shape), tuple(whose))
    return found
