"""The permutation specification of a network: of a backbone by its family's table, of a checkpoint with its task head,
and of a chain of layers (`nn.Sequential`) by its modules."""

from collections.abc import Iterator, Mapping
from math import prod
from types import EllipsisType

import torch.nn as nn
from torch import Tensor

from graftwork.arithmetic.alignment.permutations import AxisGroups, Factor, Segment, Specification
from graftwork.arithmetic.values.roles import role_of
from graftwork.backbones import Backbone, Location
from graftwork.backbones.families.symmetries import SHARED, WITHIN, AxisNames, Symmetries
from graftwork.errors import BackboneError, WeightsError, nearest

POINTWISE = (nn.ReLU, nn.GELU, nn.Tanh, nn.Sigmoid, nn.SiLU, nn.LeakyReLU, nn.ELU, nn.Softplus)
"""Activations of a chain: of each entry alone."""

KEPT = (*POINTWISE, nn.Identity, nn.Dropout, nn.Dropout2d, nn.MaxPool2d, nn.AvgPool2d, nn.AdaptiveAvgPool2d)
"""Modules of a chain that leave units where they are, and have no parameters."""

BEFORE = -1
"""The number of a layer before the first."""


def specification_of(backbone: Backbone) -> Specification:
    """The permutation specification of a backbone, over the keys of its model's state dict.

    Args:
        backbone: the backbone; an outline is sufficient.

    Raises:
        BackboneError: the family has no table of symmetries, or the table says nothing of a site.
    """
    table = _Table(backbone)
    segments: dict[str, dict[Segment, None]] = {}
    shapes = {key: tuple(tensor.shape) for key, tensor in backbone.model.state_dict().items()}
    for name in backbone.weights:
        location = backbone.weights.where(name)
        # The parts of a fused layer have their input in common.
        segments.setdefault(location.key, {}).update(dict.fromkeys(table.segments(location)))
    return Specification({key: tuple(own) for key, own in segments.items()}, shapes, table.within)


def checkpoint_specification(backbone: Backbone, shapes: Mapping[str, tuple[int, ...]]) -> Specification:
    """The permutation specification of a checkpoint of a backbone, with its task head if it has one.

    Args:
        backbone: the model without the head; an outline is sufficient.
        shapes: of the checkpoint's tensors by key, which may begin with the name of the model within the one with the
            head (`bert.`).

    Raises:
        BackboneError: as `specification_of`.
        WeightsError: a tensor belongs neither to the backbone nor to a known head; names it.
    """
    table = _Table(backbone, heads=[key.rpartition(".")[0] for key in shapes])
    prefix = f"{backbone.base.base_model_prefix}."
    known = {key: names for key in backbone.weights.checkpoint_keys for names in [backbone.weights.names_of(key)]}
    segments: dict[str, tuple[Segment, ...]] = {}
    buffers = [key for key in shapes if role_of(key, floating=True) == "buffer"]
    for key, shape in shapes.items():
        if key in buffers:
            continue
        body = next((own for own in (key, key.removeprefix(prefix), prefix + key) if own in known), None)
        if body is None:
            segments[key] = table.head(key, shape)
            continue
        found: dict[Segment, None] = {}
        for name in known[body]:
            stored = backbone.weights.stored(name)
            assert stored is not None  # it is among the names of a stored key
            for segment in table.segments(backbone.weights.where(name)):
                offset = stored.start if segment.dim == stored.dim and stored.size is not None else 0
                found[Segment(segment.dim, segment.start + offset, segment.factors)] = None
        segments[key] = tuple(found)
    # Statistics of a batch norm lie along the units of its weight; other buffers are of positions.
    for key in buffers:
        beside = f"{key.rpartition('.')[0]}.weight"
        segments[key] = segments.get(beside, ()) if shapes[key] == shapes.get(beside) else ()
    segments = {key: segments[key] for key in shapes}
    return Specification(segments, {key: tuple(shape) for key, shape in shapes.items()}, table.within)


def sequential_specification(network: nn.Sequential) -> Specification:
    """The permutation specification of a chain of linear layers, convolutions and batch norms, over the keys of its
    state dict: the outputs of each layer but the last are a group (`0`, `2`, …: by the layer's place).

    Raises:
        WeightsError: a module of another kind; names it.
    """
    state: Mapping[str, Tensor] = network.state_dict()
    axes: dict[str, list[AxisGroups]] = {}
    layers = [place for place, module in network.named_children() if isinstance(module, nn.Linear | nn.Conv2d)]
    group: str | None = None
    width = 0
    for place, module in network.named_children():
        if isinstance(module, nn.Linear | nn.Conv2d):
            if isinstance(module, nn.Conv2d) and module.groups != 1:
                raise WeightsError(f"module {place!r} is a convolution in {module.groups} groups", expected="one group")
            before = _along(group, width, module.weight.shape[1])
            group, width = (None if place == layers[-1] else place), module.weight.shape[0]
            axes[f"{place}.weight"] = [group, before, *[None] * (module.weight.dim() - 2)]
            if module.bias is not None:
                axes[f"{place}.bias"] = [group]
        elif isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            own = [key for key in state if key.rpartition(".")[0] == place]
            axes |= {key: [_along(group, width, len(state[key]))] if state[key].dim() else [] for key in own}
        elif not isinstance(module, (*KEPT, nn.Flatten)):
            raise WeightsError(
                f"module {place!r} of the chain is a {type(module).__name__}, of which it is not known how it treats"
                " units",
                expected="linear layers, convolutions, batch norms, activations, pooling, Flatten",
                change="the network, or Specification.of to say what moves together",
            )
    return Specification.of(axes, {key: tuple(tensor.shape) for key, tensor in state.items()})


def _along(group: str | None, width: int, length: int) -> AxisGroups:
    """An axis along units. Behind a flattened map, each channel is so many entries one behind the other."""
    return group if group is None or length == width else (group, length // width)


class _Table:
    """The symmetries of a backbone's family, with the sizes of its groups.

    Args:
        heads: paths of modules of a task head.

    Raises:
        BackboneError: the family has no table.
    """

    def __init__(self, backbone: Backbone, heads: list[str] | None = None) -> None:
        if backbone.family.symmetries is None:
            raise BackboneError(
                f"it is not known which units of the family {backbone.family.name!r} can be permuted",
                expected="a family with a table of symmetries",
                change="the family's table in graftwork/backbones/families",
            )
        self.backbone = backbone
        self.symmetries: Symmetries = backbone.family.symmetries
        names = [*backbone.sites, *(heads or ())]
        self._other = {
            group: other
            for group, (end, other) in self.symmetries.otherwise.items()
            if not any(name == end or name.endswith(f".{end}") for name in names)
        }
        self.within: dict[str, str] = {}
        self._streams = dict(self._numbered_streams())

    def segments(self, location: Location) -> Iterator[Segment]:
        """Of a tensor as its module holds it, the parts of its axes that lie along groups."""
        site = None if location.site is None else self.backbone.sites[location.site]
        name = location.name if site is None else site.name
        start, layer = "", None
        if site is not None:
            start = f"{site.stack}." if site.stack and name.startswith(f"{site.stack}.") else ""
            layer = BEFORE if site.layer is None and site.height else site.layer
            start += "" if site.layer is None else f"layers.{site.layer}."
        relative = name.removeprefix(start)
        if relative not in self.symmetries.axes:
            raise BackboneError(
                f"the symmetries of the family {self.backbone.family.name!r} say nothing of {name!r}",
                expected=nearest(relative, self.symmetries.axes),
                change="the family's table in graftwork/backbones/families",
            )
        scope = start if site is None or site.layer is None else f"{start}{site.sublayer}."
        for axis, names in enumerate(_spread(self.symmetries.axes[relative], len(location.shape))):
            if names is not None:
                turned = location.transposed and len(location.shape) == 2
                columns = (location.columns or (0, 0))[0] if axis == 0 else 0
                factors = self._factors(names, scope, layer, location.shape[axis])
                if any(group is not None for group, _ in factors):
                    yield Segment(1 - axis if turned else axis, columns, factors)

    def head(self, key: str, shape: tuple[int, ...]) -> tuple[Segment, ...]:
        """Of a tensor of a task head.

        Raises:
            WeightsError: the head is not known.
        """
        path = key.rpartition(".")[0]
        if path not in self.symmetries.heads:
            raise WeightsError(
                f"tensor {key!r} is neither of the backbone nor of a task head that family"
                f" {self.backbone.family.name!r} is known to have",
                expected=nearest(path, self.symmetries.heads),
                change="the checkpoint, or the heads of the family's table in graftwork/backbones/families",
            )
        found = []
        for axis, names in enumerate(_spread(self.symmetries.heads[path], len(shape))):
            if names is not None:
                found.append(Segment(axis, 0, self._factors(names, "", None, shape[axis])))
        return tuple(found)

    def _factors(
        self, names: str | tuple[str | int | None, ...], scope: str, layer: int | None, length: int
    ) -> tuple[Factor, ...]:
        """The factors of an axis; those of one unit are left out."""
        if isinstance(names, str):
            return (Factor(self._named(names, scope, layer), length),)
        own = [name for name in names if isinstance(name, str)]
        of_attention = any(name in WITHIN for name in own)
        sizes = self._sizes(scope) if of_attention else {own[-1]: length // prod(_numbers(names))}
        found = []
        for name in names:
            if isinstance(name, int):
                found.append(Factor(None, name))
            elif name is not None and (sizes[name] > 1 or name not in WITHIN):
                group = None if name in self.symmetries.ordered else self._named(name, scope, layer)
                found.append(Factor(group, sizes[name]))
                if group is not None and name in WITHIN:
                    self.within[group] = self._named(WITHIN[name], scope, layer)
        return tuple(found)

    def _named(self, name: str, scope: str, layer: int | None) -> str:
        name = self._other.get(name, name)
        if name in ("residual", "before"):
            return self._streams[layer, name]
        return name if name in SHARED else scope + name

    def _numbered_streams(self) -> Iterator[tuple[tuple[int | None, str], str]]:
        """By layer, the residual stream that it adds to, and the one before it; those before and after all layers."""
        renewed = self.symmetries.renewed_by
        layers = sorted({site.layer for site in self.backbone.sites.values() if site.layer is not None})
        if not renewed:
            yield from (((layer, "residual"), "residual") for layer in (BEFORE, *layers, None))
            return
        stream = 0
        yield (BEFORE, "residual"), f"residual.{stream}"
        for layer in layers:
            yield (layer, "before"), f"residual.{stream}"
            stream += f"layers.{layer}.{renewed}" in self.backbone.sites
            yield (layer, "residual"), f"residual.{stream}"
        yield (None, "residual"), f"residual.{stream}"

    def _sizes(self, scope: str) -> dict[str, int]:
        """Of the groups of one attention."""
        site = self.backbone.sites[f"{scope}kv"]
        heads = site.in_features // site.head_dim
        return {
            "heads": site.heads,
            "queries": heads // site.heads,
            "query_units": site.head_dim,
            "value_units": site.head_dim,
        }


def _numbers(names: tuple[str | int | None, ...]) -> list[int]:
    return [name for name in names if isinstance(name, int)]


def _spread(axes: tuple[AxisNames, ...], count: int) -> list[str | tuple[str | int | None, ...] | None]:
    """The names for each axis of a tensor with so many: the first ones, or the last ones after `...`."""
    known = [names for names in axes if not isinstance(names, EllipsisType)]
    if ... in axes:
        return [*[None] * (count - len(known)), *known[max(0, len(known) - count) :]]
    return [*known[:count], *[None] * (count - len(known))]
