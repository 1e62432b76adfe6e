"""Ops put into weights: the parameters with which a backbone's own modules compute what module and ops do together."""

from collections.abc import Iterator, Mapping

import torch
import torch.nn as nn
from torch import Tensor

from graftwork.backbones import Backbone, Location, Site
from graftwork.errors import SiteError
from graftwork.ops.op import Op, Ops, ordered
from graftwork.ops.substitution import no_hooks, with_parameters


def put_into_weights(ops: Ops, backbone: Backbone) -> dict[str, dict[str, Tensor]]:
    """The parameters that differ from the backbone's own, by the path of their module, in the backbone's precision.

    All ops of a module are put in one after the other in float64, and the result is rounded once. Modules that hold
    one parameter together are given one tensor where it comes out the same for them, as it does where the ops are the
    same; where an op acts at only one of them, the other keeps its own.

    Raises:
        SiteError: an op cannot be put into weights where it acts; names the site.
    """
    changed: dict[str, dict[str, Tensor]] = {}
    for path, made in backbone.weights.put(summed(ordered(ops), backbone)).items():
        module = backbone.modules[path]
        own = {name: tensor for name, tensor in made.items() if not torch.equal(tensor, module.get_parameter(name))}
        if own:
            changed[path] = own
    return changed


def summed(ops: Ops, backbone: Backbone) -> Iterator[tuple[str, Tensor]]:
    """The parameters of all modules at which ops act, with the ops in them, by canonical name, in float64.

    Raises:
        SiteError: an op cannot be put into weights where it acts; names the site.
    """
    for path in dict.fromkeys(site.path for site in backbone.sites.values() if site.name in ops):
        here = [site for site in backbone.sites.values() if site.path == path and site.name in ops]
        module = backbone.modules[path]
        if "forward" in vars(module):
            raise SiteError(f"at site {here[0].name!r} another library has replaced the module's forward")
        own = [place for place in backbone.weights.within(path) if not place.buffer]
        values = {place.parameter: module.get_parameter(place.parameter).detach() for place in own}
        values = {name: tensor.to(torch.float64, copy=True) for name, tensor in values.items()}
        # A fused product's own ops come before those of its parts, as in a forward pass.
        for site in sorted(here, key=lambda site: site.columns is not None):
            for op in ops[site.name]:
                _put(op, site, backbone.weights.at(site), values)
        yield from ((place.name, place.of(values[place.parameter])) for place in own)


def merged_modules(ops: Ops, backbone: Backbone) -> dict[str, nn.Module]:
    """Copies of the backbone's modules, by path, that compute what modules and ops compute together. They have all but
    the changed parameters in common with the backbone's own, which stay as they are, and no hooks: these are called
    where the copies run.

    Raises:
        SiteError: an op cannot be put into weights where it acts; names the site.
    """
    made: dict[int, nn.Parameter] = {}

    def as_parameter(tensor: Tensor) -> nn.Parameter:
        # One tensor at several places becomes one parameter.
        return made.setdefault(id(tensor), nn.Parameter(tensor, requires_grad=False))

    merged = {}
    for path, changed in put_into_weights(ops, backbone).items():
        merged[path] = with_parameters(backbone.modules[path], {name: as_parameter(t) for name, t in changed.items()})
        merged[path].__dict__.update(no_hooks())
    return merged


def _put(op: Op, site: Site, at: Mapping[str, Location], values: dict[str, Tensor]) -> None:
    """Put one op into a module's parameters.

    Args:
        at: where the site's own lie.
        values: all of the module's, as it holds them; they are written to.
    """
    if op.unmergeable:
        raise SiteError(f"at site {site.name!r} acts {type(op).__name__}: {op.unmergeable}")
    try:
        if op.replaces or site.kind != "linear":
            # Such an op is given what the module holds, as the module holds it.
            values |= op.into(values)
            return
        own = {name: place.of(values[name]) for name, place in at.items()}
        for name, tensor in op.into(own).items():
            own[name].copy_(tensor)
    except SiteError as error:
        raise SiteError(f"at site {site.name!r}: {error.problem}") from error
