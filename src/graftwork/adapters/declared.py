"""What a method and a head add to a backbone: where they act, their parameters, and their ops."""

from collections.abc import Mapping, Sequence

from torch import Tensor

from graftwork.adapters.added import declare_added, with_added
from graftwork.backbones import Backbone, Site, Sites
from graftwork.errors import MethodError
from graftwork.heads import Head
from graftwork.methods import Method
from graftwork.methods.parameters import Group, Parameter
from graftwork.ops.op import Ops


def usable_sites(backbone: Backbone, head: Head) -> Sites:
    """The backbone's sites less those whose output the head does not read.

    Raises:
        BackboneError: the head pools by a layer that the backbone lacks.
    """
    head.check(backbone)
    return backbone.sites.without(head.unused_sites(backbone))


def declare(
    backbone: Backbone, method: Method, head: Head, *, sites: Sequence[Site] | None = None, added: int = 0
) -> dict[str, Parameter]:
    """All trainable parameters, by canonical name. Needs no weights.

    Args:
        sites: where the method acts, when that is known already.
        added: how many tokens are added to the backbone's.
    """
    declared: dict[str, Parameter] = {}
    for site in method.sites(usable_sites(backbone, head)) if sites is None else sites:
        declared |= method.declare(site)
    return declared | head.declare(backbone) | declare_added(backbone, added)


def refuse_nothing_to_train(method: Method, kind: str, backbone: Backbone, count: int) -> None:
    """Refuse to train an adapter that has nothing to train.

    Args:
        count: number of trained parameters.

    Raises:
        MethodError: there are none.
    """
    if count < 1:
        raise MethodError(
            f"method {method.name!r} has nothing to train for a task of kind {kind}: the head is the language-model "
            f"head of backbone {backbone.name!r} itself, which stays frozen",
            expected="a method that acts on the backbone, such as lora",
            change="--method",
        )


def counts(declared: Mapping[str, Parameter]) -> dict[Group, int]:
    """Number of trained parameters by group."""
    groups: tuple[Group, ...] = ("adapter", "norms", "head")
    return {group: sum(p.count for p in declared.values() if p.group == group and p.trained) for group in groups}


def lower(
    backbone: Backbone,
    method: Method,
    head: Head,
    parameters: Mapping[str, Tensor],
    *,
    training: bool = False,
    sites: Sequence[Site] | None = None,
) -> Ops:
    """The ops of an adapter, by site. Sites at which nothing acts in this pass are left out.

    Args:
        sites: where the method acts, when that is known already.
    """
    sites = method.sites(usable_sites(backbone, head)) if sites is None else sites
    prepared = method.prepare(parameters, sites, training=training)
    ops = {site.name: method.lower(site, prepared, backbone.frozen(site)) for site in sites}
    return with_added({name: acting for name, acting in ops.items() if acting}, backbone, parameters)
