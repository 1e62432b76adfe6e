"""Differences to a backbone's weights: what an adapter adds to each of them, and the adapter that adds them.

A difference goes by the canonical name of its weight (`layers.3.attention.query.weight`, (out, in)), whatever method it
is of, so that adapters of different methods can be calculated with together. A tied tensor is counted once, under the
name of the site that owns it.
"""

from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor

from graftwork.adapters import Adapter
from graftwork.adapters.declared import lower, usable_sites
from graftwork.arithmetic.adapters.lowrank import Factors, concatenated
from graftwork.backbones import Backbone, Site
from graftwork.errors import AdapterError, MethodError
from graftwork.grafting.merging import summed
from graftwork.heads import Head
from graftwork.methods import FullFineTuning, LoRA, Method
from graftwork.ops import LowRank, SharedLowRank
from graftwork.ops.op import Op, Ops, ordered


def factors_of(adapter: Adapter, backbone: Backbone) -> dict[str, Factors]:
    """The low-rank differences of an adapter whose ops are nothing else, with their scales; float64, on the CPU.

    Args:
        adapter: of LoRA, VeRA or a union of them.
        backbone: the adapter's.
    """
    found: dict[str, Factors] = {}
    for site, acting in _exact_ops(adapter, backbone).items():
        own = [_factors(op).on_cpu() for op in acting]
        found[f"{site}.weight"] = concatenated(own, [1.0] * len(own))
    return found


def weights_of(adapter: Adapter, backbone: Backbone) -> dict[str, Tensor]:
    """The differences of an adapter that can be merged into weights, float32, on the CPU, less those that are zero.

    Args:
        adapter: of any method whose ops can be put into weights.
        backbone: the adapter's.

    Raises:
        SiteError: an op cannot be put into weights where it acts.
        AdapterError: it changes one of two tied tensors and not the other.
    """
    found: dict[str, Tensor] = {}
    for name, value in summed(ordered(_exact_ops(adapter, backbone)), backbone):
        difference = (value - backbone.weights[name].to(value)).float()
        if not bool(difference.any()):
            continue
        # The tensor may have been met at another of its sites.
        other = next((tied for tied in backbone.weights.where(name).tied if tied in found), None)
        if other is None:
            found[name] = difference.cpu()
        elif not torch.equal(found[other], difference.cpu()):
            raise AdapterError(
                f"the adapter changes {name} and {other} in different ways, which are one tensor in backbone "
                f"{backbone.name!r}",
                expected="an adapter that changes neither, or both alike",
            )
    return found


def as_lora(
    factors: Mapping[str, Factors], backbone: Backbone, *, like: Sequence[Method] = ()
) -> tuple[LoRA, dict[str, Tensor]]:
    """The method and the tensors of a LoRA adapter with these differences, whose scale α / r is 1.

    Args:
        factors: by the canonical name of the weight. Where ranks differ, rows and columns of zeros are added.
        backbone: where it acts.
        like: methods with `targets`, which are taken over where they name these very sites.

    Raises:
        MethodError: there is nothing that LoRA could say.
    """
    if not factors or max(one.rank for one in factors.values()) == 0:
        raise MethodError("the adapters change no linear map", expected="adapters that do")
    names = [name.removesuffix(".weight") for name in factors]
    rank = max(one.rank for one in factors.values())
    method = LoRA(rank=rank, alpha=float(rank), targets=_targets(names, backbone, like))
    tensors: dict[str, Tensor] = {}
    for site in method.sites(backbone.sites):
        own = factors[f"{site.name}.weight"].padded(rank)
        tensors[f"{site.name}.A"] = own.A.float().contiguous()
        tensors[f"{site.name}.B"] = own.B.float().contiguous()
    return method, tensors


def as_full(
    differences: Mapping[str, Tensor], backbone: Backbone, heads: Sequence[Head]
) -> tuple[FullFineTuning, dict[str, Tensor]]:
    """The method and the tensors of a full fine-tuning with these differences, in the layout of the modules.

    Args:
        differences: by canonical name; a tied tensor under any of its names. What is left out is zero.
        backbone: where it acts.
        heads: what reads the backbone: a tensor whose output none of them reads is left out.

    Raises:
        AdapterError: a difference to a buffer, which nothing trains.
    """
    method = FullFineTuning()
    reached: set[str] = set()
    tensors: dict[str, Tensor] = {}
    sites = sites_of_full(backbone, heads)
    for site in (site for name, site in sites.items() if site.owner == name):
        for parameter, shape in site.parameters.items():
            held = tensors[f"{site.name}.{parameter}"] = torch.zeros(shape)
            for location in backbone.weights.within(site.path):
                if location.parameter != parameter:
                    continue
                name = next((own for own in (location.name, *location.tied) if own in differences), None)
                if name is not None:
                    location.of(held).copy_(differences[name])
                    reached.add(name)
    lost = sorted(name for name in differences.keys() - reached if bool(differences[name].any()))
    unread = {site.name for site in backbone.sites.values() if site.name not in sites}
    lost = [name for name in lost if backbone.weights.where(name).site not in unread]
    if lost:
        raise AdapterError(
            f"{lost[0]} cannot be changed by an adapter: it is not trained ({len(lost)} such tensors)",
            expected="differences to parameters",
        )
    return method, tensors


def sites_of_full(backbone: Backbone, heads: Sequence[Head]) -> dict[str, Site]:
    """The sites of a full fine-tuning whose output one of the heads reads, by name."""
    return {site.name: site for head in heads for site in FullFineTuning().sites(usable_sites(backbone, head))}


def ranks_of(adapter: Adapter, backbone: Backbone) -> dict[str, tuple[int, int, int]]:
    """The rank of what an adapter of low rank adds to each weight, and the weight's outputs and inputs; read off shapes
    alone, so that neither needs numbers (torch's device `meta`)."""
    found = {}
    for site, acting in _exact_ops(adapter, backbone).items():
        own = [_factors(op) for op in acting]
        found[f"{site}.weight"] = (sum(one.rank for one in own), len(own[0].B), own[0].A.shape[1])
    return found


def is_low_rank(name: str, backbone: Backbone) -> bool:
    """Whether a tensor is the weight of a linear map in the layers, which LoRA can adapt."""
    location = backbone.weights.where(name)
    site = None if location.site is None else backbone.sites[location.site]
    return site is not None and site.kind == "linear" and site.layer is not None and name == f"{site.name}.weight"


def _exact_ops(adapter: Adapter, backbone: Backbone) -> Ops:
    """An adapter's ops in float64, by site, as they are in use."""
    exact = {name: tensor.to(backbone.device, torch.float64) for name, tensor in adapter.tensors.items()}
    with torch.no_grad():
        return lower(backbone, adapter.method, adapter.head, exact)


def _factors(op: Op) -> Factors:
    if isinstance(op, SharedLowRank):
        return Factors(A=op.d[:, None] * op.A.tensor, B=op.b[:, None] * op.B.tensor)
    assert isinstance(op, LowRank)  # the method was looked at
    return Factors(A=op.A, B=op.B)


def _targets(names: Sequence[str], backbone: Backbone, like: Sequence[Method]) -> tuple[str, ...]:
    """The shortest known patterns that match these sites and no others; else their names."""
    for targets in _known_targets(like):
        linear: Iterator[Site] = (site for site in backbone.sites.of_kind("linear") if site.matches(targets))
        if {site.name for site in linear} == {*names}:
            return targets
    return tuple(name for name in backbone.sites if name in {*names})


def _known_targets(like: Sequence[Method]) -> Iterator[tuple[str, ...]]:
    yield ("layers.*",)
    yield from (method.targets for method in like if isinstance(getattr(method, "targets", None), tuple))  # type: ignore[attr-defined]
