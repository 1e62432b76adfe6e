"""Ops put into weights: the parameters with which a backbone's own modules compute what module and ops do together."""

from collections.abc import Mapping

import torch
import torch.nn as nn
from torch import Tensor

from graftwork.backbones import Backbone, Site
from graftwork.errors import SiteError
from graftwork.ops.op import Op, Ops, ordered
from graftwork.ops.substitution import no_hooks, with_parameters

Parameters = Mapping[str, Tensor]
"""A module's own parameters by name, as it holds them."""


def put_into_weights(ops: Ops, backbone: Backbone) -> dict[str, dict[str, Tensor]]:
    """The parameters that differ from the backbone's own, by the path of their module, in the backbone's precision.

    All ops of a module are put in one after the other in float64, and the result is rounded once. Modules that hold
    one parameter together are given one tensor where it comes out the same for them, as it does where the ops are the
    same; where an op acts at only one of them, the other keeps its own.

    Raises:
        SiteError: an op cannot be put into weights where it acts; names the site.
    """
    changed: dict[str, dict[str, Tensor]] = {}
    made: dict[int, list[Tensor]] = {}
    ops = ordered(ops)
    paths = dict.fromkeys(site.path for site in backbone.sites.values() if site.name in ops)
    for path in paths:
        here = [site for site in backbone.sites.values() if site.path == path and site.name in ops]
        own = dict(backbone.modules[path].named_parameters(recurse=False))
        # A site that reads a parameter of a module within has it under a dotted name.
        own |= {name: backbone.modules[path].get_parameter(name) for site in here for name in site.parameters}
        if "forward" in vars(backbone.modules[path]):
            raise SiteError(f"at site {here[0].name!r} another library has replaced the module's forward")
        values = {name: tensor.detach().double() for name, tensor in own.items()}
        # A fused product's own ops come before those of its parts, as in a forward pass.
        for site in sorted(here, key=lambda site: site.columns is not None):
            for op in ops[site.name]:
                values |= _put(op, site, values)
        for name, tensor in own.items():
            value = torch.empty_like(tensor, requires_grad=False).copy_(values[name])
            if torch.equal(value, tensor):
                continue
            candidates = made.setdefault(id(tensor), [])
            same = next((other for other in candidates if torch.equal(other, value)), None)
            if same is None:
                candidates.append(value)
            changed.setdefault(path, {})[name] = value if same is None else same
    return changed


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


def _put(op: Op, site: Site, values: Parameters) -> dict[str, Tensor]:
    """A module's parameters with one op in them."""
    if op.unmergeable:
        raise SiteError(f"at site {site.name!r} acts {type(op).__name__}: {op.unmergeable}")
    try:
        if op.replaces or site.kind != "linear":
            # Such an op is given what the module holds, as the module holds it.
            return op.into(values)
        start, end = site.columns or (0, site.out_features)
        whole = {name: (t.T if t.dim() == 2 and site.transposed else t).clone() for name, t in values.items()}
        for name, tensor in op.into({name: t[start:end] for name, t in whole.items()}).items():
            whole[name][start:end] = tensor
    except SiteError as error:
        raise SiteError(f"at site {site.name!r}: {error.problem}") from error
    return {name: t.T if t.dim() == 2 and site.transposed else t for name, t in whole.items()}
