"""`extract_lora`: the LoRA adapter that is nearest to what a larger adapter or a fully fine-tuned model changes.

The best approximation of a weight's difference by a product of rank r is its r largest singular triples (Eckart & Young
1936). What is no weight of a linear map is kept exactly where a small method can say it (biases, norms), or left out;
the result says of each tensor which of them it is.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor

from graftwork.adapters import Adapter
from graftwork.adapters.declared import usable_sites
from graftwork.adapters.identity import library_versions
from graftwork.arithmetic.adapters.differences import as_lora, factors_of, weights_of
from graftwork.arithmetic.adapters.lowrank import Factors, best_of_rank, truncated
from graftwork.arithmetic.adapters.mergeable import is_low_rank_method
from graftwork.backbones import Backbone, Site
from graftwork.errors import MethodError
from graftwork.methods import BitFit, LayerNormTuning, Method, Union
from graftwork.settings.checked import require_count

Rest = Literal["keep", "drop"]
"""What becomes of differences of biases and norms: kept exactly, or left out."""

How = Literal["low rank", "exact", "left out"]


@dataclass(frozen=True)
class ExtractedTensor:
    """What became of the difference to one tensor.

    Attributes:
        name: its canonical name.
        relative: ‖Δ‖ / ‖W‖.
        squared: ‖Δ‖².
        how: as a product of the rank, exactly, or not at all.
        kept: how much of ‖Δ‖² is in the adapter, from 0 to 1.
    """

    name: str
    relative: float
    squared: float
    how: How
    kept: float


@dataclass(frozen=True)
class Extracted:
    """A small adapter out of a large one.

    Attributes:
        adapter: LoRA; with differences of biases and norms, a union of LoRA, BitFit and layer-norm tuning.
        tensors: what became of each tensor that is changed.
    """

    adapter: Adapter
    tensors: tuple[ExtractedTensor, ...]

    @property
    def kept(self) -> float:
        """How much of the sum of all ‖Δ‖² is in the adapter, from 0 to 1."""
        total = sum(one.squared for one in self.tensors)
        return sum(one.kept * one.squared for one in self.tensors) / total if total else 1.0

    @property
    def left_out(self) -> tuple[ExtractedTensor, ...]:
        """The tensors whose difference is not in the adapter at all."""
        return tuple(one for one in self.tensors if one.how == "left out")


def extract_lora(
    adapter: Adapter, backbone: Backbone, rank: int, *, targets: Sequence[str] | None = None, rest: Rest = "keep"
) -> Extracted:
    """Extract the best LoRA adapter of a rank from an adapter that changes weights.

    Args:
        adapter: of full fine-tuning, LoRA of a larger rank, DoRA, VeRA or another method that can be merged into
            weights; `finetuned_adapter` makes one of a Hugging Face model.
        backbone: that it was made for, with weights.
        rank: of the products.
        targets: patterns of the linear maps that LoRA is to adapt. None: all whose weights are changed.
        rest: keep what is changed in biases and norms exactly, or leave it out. What is changed in embeddings and other
            tensors is left out, and told by `Extracted.left_out`.

    Raises:
        MethodError: the method cannot be merged into weights, or it changes no linear map that the targets name.
        SiteError: a pattern matches no linear map.
        AdapterError: the adapter is of another backbone.
    """
    require_count("rank", rank)
    adapter.check(backbone)
    if adapter.method.unmergeable or not adapter.method.lowers_to:
        raise MethodError(
            f"no LoRA can be extracted from an adapter of method {adapter.method.name!r}: "
            + (adapter.method.unmergeable or "it changes no weights"),
            expected="an adapter that can be merged into weights, such as one of full-fine-tuning",
        )
    wanted = backbone.sites.of_kind("linear") if targets is None else backbone.sites.match(tuple(targets), "linear")
    names = {f"{site.name}.weight" for site in wanted}
    products: dict[str, Factors] = {}
    others: dict[str, Tensor] = {}
    report: list[ExtractedTensor] = []
    for name, difference in _differences(adapter, backbone).items():
        squared = _squared(difference)
        size = float(backbone.weights[name].double().square().sum())
        relative = math.sqrt(squared / size) if size else math.inf
        how: How = "left out"
        kept = 0.0
        if name in names:
            found = truncated(difference, rank) if isinstance(difference, Factors) else best_of_rank(difference, rank)
            products[name], how, kept = found.factors, "low rank", found.kept
        elif rest == "keep" and isinstance(difference, Tensor) and _member_of(name, backbone) is not None:
            others[name], how, kept = difference, "exact", 1.0
        report.append(ExtractedTensor(name, relative, squared, how, kept))
    if not products:
        raise MethodError(
            f"the adapter changes no linear map{' that the targets name' if targets is not None else ''}",
            expected="an adapter that does, and targets among what it changes",
            change="--targets",
        )
    method, tensors = _together(*as_lora(products, backbone, like=[adapter.method]), others, backbone)
    said = {"rank": rank, "rest": rest, "targets": None if targets is None else list(targets)}
    return Extracted(_as_adapter(adapter, method, tensors, backbone, said), tuple(report))


def _differences(adapter: Adapter, backbone: Backbone) -> Mapping[str, Factors | Tensor]:
    return factors_of(adapter, backbone) if is_low_rank_method(adapter.method) else weights_of(adapter, backbone)


def _squared(difference: Factors | Tensor) -> float:
    """‖Δ‖²; of a product, the sum over the entries of (BᵀB) ⊙ (AAᵀ)."""
    if isinstance(difference, Tensor):
        return float(difference.double().square().sum())
    A, B = difference.A.double(), difference.B.double()
    return float(((B.T @ B) * (A @ A.T)).sum().clamp_min(0.0))


def _member_of(name: str, backbone: Backbone) -> type[Method] | None:
    """The small method that can say a difference exactly; None where there is none."""
    site = _site_of(name, backbone)
    if site is None:
        return None
    if site.kind == "norm":
        return LayerNormTuning
    return BitFit if site.kind == "linear" and name == f"{site.name}.bias" else None


def _site_of(name: str, backbone: Backbone) -> Site | None:
    site = backbone.weights.where(name).site
    return None if site is None else backbone.sites[site]


def _together(
    lora: Method, tensors: dict[str, Tensor], others: Mapping[str, Tensor], backbone: Backbone
) -> tuple[Method, dict[str, Tensor]]:
    """LoRA alone, or a union of it with the methods that say the other differences."""
    members = {
        kind: kind() for kind in (LayerNormTuning, BitFit) if any(_member_of(n, backbone) is kind for n in others)
    }
    if not members:
        return lora, tensors
    union = Union(methods=(lora, *members.values()))
    found = {f"lora.{name}": tensor for name, tensor in tensors.items()}
    for kind, method in members.items():
        for site in method.sites(backbone.sites):
            for name, parameter in method.declare(site).items():
                own = others.get(name) if _member_of(name, backbone) is kind else None
                found[f"{method.name}.{name}"] = torch.zeros(parameter.shape) if own is None else own
    return union, found


def _as_adapter(
    adapter: Adapter, method: Method, tensors: Mapping[str, Tensor], backbone: Backbone, said: Mapping[str, Any]
) -> Adapter:
    sites = method.sites(usable_sites(backbone, adapter.head))
    declared = adapter.declared(backbone, method, sites)
    head = {name: tensor for name, tensor in adapter.tensors.items() if name.startswith("head.")}
    recipe = {key: adapter.recipe[key] for key in ("backbone", "task") if key in adapter.recipe}
    made = replace(
        adapter,
        method=method,
        sites=tuple(site.name for site in sites),
        tensors={name: t.contiguous() for name, t in {**tensors, **head}.items() if name in declared},
        fixed=(),
        metrics={},
        baseline={},
        rows={},
        recipe={**recipe, "extracted": {"from": adapter.digest, "method": adapter.method.name, **said}},
        versions=library_versions(),
    )
    made.check(backbone)
    return made
