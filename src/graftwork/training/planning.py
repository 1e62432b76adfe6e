"""Trainable parameters of a method on a backbone: counts by group, from shapes alone."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

import torch

from graftwork.adapters.adapter import Adapter
from graftwork.adapters.contents import size_of_file
from graftwork.adapters.declared import counts, declare, usable_sites
from graftwork.backbones import Backbone, Pooling, Site
from graftwork.errors import GraftworkError
from graftwork.kinds import default_kind
from graftwork.kinds.heads import head_for
from graftwork.methods import Method, find_method, known_methods, make_method
from graftwork.methods.named import Named
from graftwork.methods.parameters import Parameter
from graftwork.training.lengths import check_prompt
from graftwork.training.recipe import Recipe


def count(
    backbone: str,
    method: str,
    settings: Mapping[str, Any] | None = None,
    *,
    kind: str | None = None,
    num_labels: int = 2,
    pooling: Pooling | Literal["auto"] = "auto",
) -> dict[str, Any]:
    """Number of trained parameters by group, without loading weights.

    Args:
        kind: the task's; None: `graftwork.kinds.default_kind` of the number of labels.

    Returns:
        `trained` (adapter, norms, head, total, and without_classifier: the total less the last classifier), `backbone`
        (its parameters), `percent` (total to backbone), `bytes` (of the finished adapter's file of tensors).

    Raises:
        BackboneError, MethodError, SiteError: the backbone or method is unknown, or they do not suit each other.
    """
    outline, chosen = Backbone.outline(backbone), make_method(method, settings)
    return _count(outline, chosen, kind=kind, num_labels=num_labels, pooling=pooling)


def trained_for(adapter: Adapter) -> int:
    """Number of parameters that were trained for an adapter that was tuned, head included. AdaMix keeps fewer.

    Raises:
        RecipeError: the adapter's recipe is not one of graftwork.
        BackboneError: its backbone is not to be found.
    """
    recipe = Recipe.parse(adapter.recipe, origin="the adapter's recipe")
    declared = adapter.declared(Backbone.outline(recipe.backbone), recipe.find_method())
    return sum(counts(declared).values())


@dataclass(frozen=True, kw_only=True)
class Surveyed:
    """One method, and what it would do on a backbone.

    Attributes:
        name: how it is called.
        settings: what differs from the method of another name that it is; empty for a method of its own.
        method: the name of the method that it is.
        paper: where it is from.
        when: when to use it, in a line.
        ops: what it lowers to.
        unmergeable: why it cannot be merged into weights; empty when it can.
        sites: where it acts on the backbone, without the layers' numbers; empty without a backbone.
        trained: number of trained parameters on the backbone, without the head; None without a backbone.
        refused: why it cannot act on the backbone; empty when it can.
    """

    name: str
    settings: Mapping[str, Any]
    method: str
    paper: str
    when: str
    ops: tuple[str, ...]
    unmergeable: str
    sites: tuple[str, ...] = ()
    trained: int | None = None
    refused: str = ""

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


def survey(backbone: str | None = None) -> list[Surveyed]:
    """Every method and every named one, in the order of `METHODS`, and what it would train on a backbone.

    Raises:
        BackboneError: the backbone is unknown.
    """
    outline = None if backbone is None else Backbone.outline(backbone)
    return [_surveyed(name, named, outline) for name, named in known_methods().items()]


def survey_one(method: str, backbone: str | None = None) -> Surveyed:
    """The same of one method, by any spelling of its name.

    Raises:
        MethodError: the method is unknown.
        BackboneError: the backbone is.
    """
    return _surveyed(*find_method(method), None if backbone is None else Backbone.outline(backbone))


def _surveyed(name: str, named: Named, outline: Backbone | None) -> Surveyed:
    chosen = make_method(name)
    known = Surveyed(
        name=name,
        settings=named.settings,
        method=named.method,
        paper=named.paper,
        when=named.when,
        ops=tuple(op.__name__ for op in chosen.lowers_to),
        unmergeable=chosen.unmergeable,
    )
    if outline is None:
        return known
    try:
        groups = _count(outline, chosen, kind=None, num_labels=2, pooling="auto")["trained"]
        sites = chosen.sites(outline.sites)
    except GraftworkError as error:
        return replace(known, refused=error.problem)
    places = dict.fromkeys(re.sub(r"layers\.\d+\.", "", site.name) for site in sites)
    return replace(known, sites=tuple(places), trained=groups["total"] - groups["head"])


def _count(
    outline: Backbone, chosen: Method, *, kind: str | None, num_labels: int, pooling: Pooling | Literal["auto"]
) -> dict[str, Any]:
    head = head_for(
        kind or default_kind(num_labels),
        outline,
        num_labels=num_labels,
        pooling=outline.pooling if pooling == "auto" else pooling,
        **chosen.head_fields,
    )
    check_prompt(outline, chosen.num_prompt_tokens)
    sites = chosen.sites(usable_sites(outline, head))
    declared = declare(outline, chosen, head, sites=sites)
    groups = counts(declared)
    total = sum(groups.values())
    classifier = sum(p.count for name, p in declared.items() if name.startswith("head.classifier."))
    return {
        "trained": {**groups, "total": total, "without_classifier": total - classifier},
        "backbone": outline.num_parameters,
        "percent": 100 * total / outline.num_parameters,
        "bytes": _size_when_finished(chosen, declared, sites),
    }


def _size_when_finished(chosen: Method, declared: Mapping[str, Parameter], sites: Sequence[Site]) -> int:
    """Bytes of the file of tensors that is saved when training has ended: some methods save other tensors than those
    that they train (AdaMix)."""
    shapes = {name: torch.empty(parameter.shape, device="meta") for name, parameter in declared.items()}
    _, kept = chosen.finish(shapes, sites)
    return size_of_file({name: tensor.shape for name, tensor in kept.items()})
