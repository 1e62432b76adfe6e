"""Weights: a backbone's parameters by canonical name, and where each of them lies in the model and in a checkpoint.

A canonical name is a site's and a parameter's (`layers.3.attention.query.weight`), the same in every family. A linear
map's weight is (out, in) and its bias (out), also where the module holds them transposed or as a part of a fused
product; all else is as the module holds it. What stands at no site goes by its module's path.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import NamedTuple

import torch
import torch.nn as nn
from torch import Tensor
from transformers import PreTrainedModel

from graftwork.backbones.checkpoint_tensors import CheckpointTensor, checkpoint_tensors
from graftwork.backbones.offloading import OffloadedParameters, offloaded
from graftwork.backbones.parts import GatheredParameters, is_part, whole
from graftwork.backbones.sites import Site, Sites
from graftwork.errors import BackboneError, SiteError, nearest


@dataclass(frozen=True, kw_only=True)
class Location:
    """Where a tensor is in the model.

    Attributes:
        name: canonical name.
        site: the site that it belongs to; None if it belongs to no site.
        path: path of the module; empty for the model itself.
        parameter: name in the module, with a dot if it is in a submodule.
        shape: shape of the canonical tensor.
        columns: first and last-plus-one output column of the module that belong to it; None: all.
        transposed: whether the module stores it as (in, out).
        buffer: whether it is a buffer, which is not trained (such as the running statistics of a batch norm).
        parts: for the tensor of a fused linear layer, the canonical names of its parts, in order.
        tied: other canonical names of the same tensor.
    """

    name: str
    site: str | None
    path: str
    parameter: str
    shape: tuple[int, ...]
    columns: tuple[int, int] | None = None
    transposed: bool = False
    buffer: bool = False
    parts: tuple[str, ...] = ()
    tied: tuple[str, ...] = ()

    @property
    def key(self) -> str:
        """The key of the tensor in the model's state dict."""
        return _dotted(self.path, self.parameter)

    def of(self, held: Tensor) -> Tensor:
        """The canonical tensor, as a view of the module's tensor."""
        own = held.mT if self.transposed and held.dim() == 2 else held
        return own if self.columns is None else own[slice(*self.columns)]


class Weights(Mapping[str, Tensor]):
    """The parameters and buffers of a backbone by canonical name, in canonical orientation: (out, in) for the weight of
    a linear map. They are views of the backbone's own tensors; offloaded weights are copies.

    The names cover each key of the model's state dict once. The tensor of a fused linear layer
    (`layers.3.attention.fused.weight`) can also be accessed by name, but is not listed: its parts are. A tied tensor
    has a name for each of its sites.

    Args:
        model: the model.
        sites: its sites.

    Attributes:
        in_parts: whether each of several processes holds a part of the layers' weights; then these are copies, which
            all processes have to ask for together.
        lost: whether they stay so, because the run failed whose processes these were.
    """

    def __init__(self, model: PreTrainedModel, sites: Sites) -> None:
        self.in_parts = self.lost = False
        self._model = model
        self._held: dict[str, _Held] = dict(_held_by(model))
        wholes, parts = self._at_sites(sites)
        self._locations: dict[str, Location] = {}
        covering: list[str] = []
        for key, held in self._held.items():
            whole = wholes.get(key) or [_unplaced(held)]
            pieces = sorted(parts.get(key, ()), key=lambda part: part.columns or (0, 0))
            if pieces and _tile(pieces, whole[0].shape[0]):
                whole = [replace(location, parts=tuple(part.name for part in pieces)) for location in whole]
                covering += [part.name for part in pieces]
            else:
                covering.append(whole[0].name)
            for location in (*whole, *pieces):
                if location.name in self._locations:
                    raise BackboneError(
                        f"{type(model).__name__} has two tensors of the canonical name {location.name!r}, at "
                        f"{self._locations[location.name].key!r} and {key!r}",
                        expected="a different name for each",
                        change="the family's table in graftwork/backbones/families",
                    )
                self._locations[location.name] = location
        self._covering = tuple(covering)
        self._tie()
        self._by_path: dict[str, list[Location]] = {}
        for name in self:
            self._by_path.setdefault(self._locations[name].path, []).append(self._locations[name])
        self._by_site = {site.name: self._of_site(site) for site in sites.values()}

    def __getitem__(self, name: str) -> Tensor:
        location = self.where(name)
        return location.of(self._tensor(location))

    def __contains__(self, name: object) -> bool:
        return name in self._locations

    def __iter__(self) -> Iterator[str]:
        return iter(self._covering)

    def __len__(self) -> int:
        return len(self._covering)

    def require_whole(self, backbone: str) -> None:
        """Refuse weights that a run has left in parts.

        Args:
            backbone: whose they are, by name.

        Raises:
            BackboneError: they are.
        """
        if self.lost:
            raise BackboneError(
                f"the weights of backbone {backbone!r} were sharded by a run that failed, and are in parts",
                expected="a backbone that is loaded again",
            )

    def where(self, name: str) -> Location:
        """Where a tensor is in the model.

        Raises:
            SiteError: no tensor has that name; gives the nearest names.
        """
        try:
            return self._locations[name]
        except KeyError:
            raise SiteError(
                f"no parameter of the backbone is named {name!r}", expected=nearest(name, self._locations)
            ) from None

    def at(self, site: Site) -> Mapping[str, Location]:
        """Where the parameters of a site are in the model, by name in its module."""
        return {name: location for name, _, location in self._by_site[site.name]}

    def within(self, path: str) -> Sequence[Location]:
        """Where all tensors of the module at a path are."""
        return self._by_path.get(path, ())

    def of_site(self, site: Site) -> Mapping[str, Tensor]:
        """The parameters of a site, by name in its module. Those of a linear map are canonical; others, also those of a
        fused linear layer, have the module's layout. Offloaded weights are copied when they are accessed.
        """
        own = self._by_site[site.name]
        read = partial(_read, own, turned=site.kind == "linear")
        if self.in_parts and any(is_part(held.tensor) for _, held, _ in own):
            return GatheredParameters(_parts(own, turned=site.kind == "linear"))
        away = next((module for module in {held.module for _, held, _ in own} if offloaded(module)), None)
        return read() if away is None else OffloadedParameters(away, read)

    def stored(self, name: str) -> CheckpointTensor | None:
        """Where a tensor is in a checkpoint that `save_pretrained` writes; None if the checkpoint does not contain it.
        Tied tensors are stored once.

        Raises:
            SiteError: no tensor has that name.
            BackboneError: transformers does not just rename and concatenate the weights when it stores them.
        """
        found = self._stored.get(self.where(name).key)
        return None if found is None else replace(found, view=self.where(name).of)

    def names_of(self, key: str) -> tuple[str, ...]:
        """The canonical names of the tensors that are stored under a key of a checkpoint, in order, followed by names
        that are tied to them.

        Raises:
            BackboneError: no tensor of the backbone is stored under that key; or as `stored`.
        """
        if key not in self._names_by_key:
            raise BackboneError(
                f"nothing of the backbone is stored under the key {key!r}", expected=nearest(key, self._names_by_key)
            )
        return self._names_by_key[key]

    @property
    def checkpoint_keys(self) -> tuple[str, ...]:
        """All keys of a checkpoint that `save_pretrained` writes."""
        return tuple(self._names_by_key)

    def put(self, values: Mapping[str, Tensor] | Iterable[tuple[str, Tensor]]) -> dict[str, dict[str, Tensor]]:
        """New tensors for the modules, with some values replaced. The backbone itself is not changed.

        Args:
            values: canonical tensors by name, in any precision. For a fused linear layer, some parts are sufficient;
                the others are copied.

        Returns:
            The tensors by path of the module and name in the module, in its precision and layout. Tied tensors with the
            same value are one tensor; if only one of their names is given, the other site keeps its tensor.

        Raises:
            SiteError: no tensor has that name; a value has the wrong shape; or both a tensor and a part of it are
                given.
        """
        made: dict[str, Tensor] = {}
        given: dict[str, list[Location]] = {}
        for name, value in values.items() if isinstance(values, Mapping) else values:
            location = self.where(name)
            if tuple(value.shape) != location.shape:
                raise SiteError(
                    f"a tensor of shape {tuple(value.shape)} is given for {name!r}", expected=f"shape {location.shape}"
                )
            beside = next((other for other in given.get(location.key, ()) if _overlap(other, location)), None)
            if beside is not None:
                raise SiteError(f"{name!r} and {beside.name!r} are given together, and are parts of one tensor")
            given.setdefault(location.key, []).append(location)
            if location.key not in made:
                held = self._tensor(location).detach()
                made[location.key] = torch.empty_like(held) if location.columns is None else held.clone()
            location.of(made[location.key]).copy_(value)
        return self._as_modules_have_them(made, given)

    def _as_modules_have_them(
        self, made: Mapping[str, Tensor], given: Mapping[str, list[Location]]
    ) -> dict[str, dict[str, Tensor]]:
        """New tensors by path and name, with one in the place of those that are tied and the same."""
        found: dict[str, dict[str, Tensor]] = {}
        same: dict[int, list[Tensor]] = {}
        for key, tensor in made.items():
            candidates = same.setdefault(self._held[key].identity, [])
            one = next((other for other in candidates if other.is_meta or torch.equal(other, tensor)), None)
            if one is None:
                candidates.append(tensor)
            location = given[key][0]
            found.setdefault(location.path, {})[location.parameter] = tensor if one is None else one
        return found

    @cached_property
    def _stored(self) -> dict[str, CheckpointTensor]:
        shapes = {key: held.shape for key, held in self._held.items()}
        return checkpoint_tensors(self._model, shapes, {key: held.identity for key, held in self._held.items()})

    @cached_property
    def _names_by_key(self) -> dict[str, tuple[str, ...]]:
        found: dict[str, list[tuple[bool, int, str]]] = {}
        owners: dict[int, str] = {}
        for name in self._covering:
            held = self._held[self._locations[name].key]
            stored = self._stored.get(self._locations[name].key)
            if stored is not None:
                owner = owners.setdefault(held.identity, self._locations[name].key)
                tied = owner != self._locations[name].key
                found.setdefault(stored.key, []).append((tied, stored.start, name))
        # Sorting is stable: the parts of a fused product stand in their order.
        return {key: tuple(name for *_, name in sorted(own, key=lambda row: row[:2])) for key, own in found.items()}

    def _at_sites(self, sites: Sites) -> tuple[dict[str, list[Location]], dict[str, list[Location]]]:
        """By key of the state dict, what sites have of a tensor: all of it, and parts."""
        wholes: dict[str, list[Location]] = {}
        parts: dict[str, list[Location]] = {}
        own_names: dict[str, list[str]] = {}
        for held in self._held.values():
            own_names.setdefault(held.path, []).append(held.leaf)
        for site in sites.values():
            if site.kind in ("stack", "attention", "result"):
                continue
            # What a site reads from modules within has a dot in its name, and is all that is the site's.
            within = [name for name in site.parameters if "." in name]
            for parameter in within or own_names.get(site.path, []):
                held = self._held[_dotted(site.path, parameter)]
                shape = tuple(reversed(held.shape)) if site.transposed and len(held.shape) == 2 else held.shape
                if site.columns is not None:
                    shape = (site.columns[1] - site.columns[0], *shape[1:])
                location = Location(
                    name=f"{site.name}.{parameter}",
                    site=site.name,
                    path=site.path,
                    parameter=parameter,
                    shape=shape,
                    columns=site.columns,
                    transposed=site.transposed,
                    buffer=held.buffer,
                )
                (wholes if site.columns is None else parts).setdefault(location.key, []).append(location)
        return wholes, parts

    def _of_site(self, site: Site) -> "_Own":
        linear = ["weight", "bias"] if site.biased else ["weight"]
        names = linear if site.kind == "linear" else list(site.parameters)
        places = {name: self._locations[f"{site.name}.{name}"] for name in names}
        return tuple((name, self._held[place.key], place) for name, place in places.items())

    def _tie(self) -> None:
        """Tell each name which others are of the same tensor."""
        alike: dict[tuple[int, tuple[int, int] | None], list[str]] = {}
        for name, location in self._locations.items():
            alike.setdefault((self._held[location.key].identity, location.columns), []).append(name)
        for names in alike.values():
            for name in names if len(names) > 1 else ():
                others = tuple(other for other in names if other != name)
                self._locations[name] = replace(self._locations[name], tied=others)

    def _tensor(self, location: Location) -> Tensor:
        """What the module holds; a copy where it is offloaded or in parts."""
        held = self._held[location.key]
        if self.in_parts:
            return whole(held.tensor)
        return (
            OffloadedParameters(held.module, lambda: {"": held.tensor})[""] if offloaded(held.module) else held.tensor
        )


class _Held(NamedTuple):
    """A tensor of the state dict, as a module holds it.

    Attributes:
        leaf: its name in the module itself.
        identity: the same number for those that are one tensor.
    """

    path: str
    module: nn.Module
    leaf: str
    shape: tuple[int, ...]
    buffer: bool
    identity: int

    @property
    def tensor(self) -> Tensor:
        return (self.module._buffers if self.buffer else self.module._parameters)[self.leaf]  # type: ignore[return-value]


_Own = tuple[tuple[str, _Held, Location], ...]
"""What is a site's: by name in its module, what is held and where it lies."""


def _read(own: _Own, *, turned: bool) -> dict[str, Tensor]:
    return {name: location.of(held.tensor) if turned else held.tensor for name, held, location in own}


def _parts(own: _Own, *, turned: bool) -> dict[str, tuple[Callable[[Tensor], Tensor], Tensor]]:
    """The same of what is held in parts: how each is read once it is whole, and what is held."""
    return {name: (location.of if turned else lambda tensor: tensor, held.tensor) for name, held, location in own}


def _held_by(model: nn.Module) -> Iterator[tuple[str, _Held]]:
    """All tensors of a model's state dict by key, in its order."""
    numbers: dict[int, int] = {}
    for path, module in model.named_modules(remove_duplicate=False):
        buffers = {n: b for n, b in module._buffers.items() if n not in module._non_persistent_buffers_set}
        for buffer, own in ((False, module._parameters), (True, buffers)):
            for name, tensor in own.items():
                if tensor is not None:
                    number = numbers.setdefault(id(tensor), len(numbers))
                    yield _dotted(path, name), _Held(path, module, name, tuple(tensor.shape), buffer, number)


def _unplaced(held: _Held) -> Location:
    """Of what stands at no site."""
    name = _dotted(held.path, held.leaf)
    return Location(name=name, site=None, path=held.path, parameter=held.leaf, shape=held.shape, buffer=held.buffer)


def _tile(parts: list[Location], size: int) -> bool:
    """Whether parts, in order, are a whole of so many outputs, each of them once."""
    edges = [part.columns or (0, size) for part in parts]
    return [0, *(end for _, end in edges)] == [*(start for start, _ in edges), size]


def _overlap(one: Location, other: Location) -> bool:
    """Whether two locations in one tensor have entries in common."""
    if one.columns is None or other.columns is None:
        return True
    return max(one.columns[0], other.columns[0]) < min(one.columns[1], other.columns[1])


def _dotted(*parts: str) -> str:
    return ".".join(part for part in parts if part)
