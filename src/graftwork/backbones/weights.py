"""Weights: a backbone's parameters by canonical name, and where each of them lies in the model and in a checkpoint.

A canonical name is a site's and a parameter's (`layers.3.attention.query.weight`), the same in every family. A linear
map's weight is (out, in) and its bias (out), also where the module holds them transposed or as a part of a fused
product; all else is as the module holds it. What stands at no site goes by its module's path.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import NamedTuple

import torch
import torch.nn as nn
from torch import Tensor
from transformers import PreTrainedModel

from graftwork.backbones.checkpoint_tensors import CheckpointTensor, checkpoint_tensors
from graftwork.backbones.offloading import OffloadedParameters, offloaded
from graftwork.backbones.sites import Site, Sites
from graftwork.errors import BackboneError, SiteError, nearest


@dataclass(frozen=True, kw_only=True)
class Location:
    """Where in the model a tensor of a canonical name lies.

    Attributes:
        name: the canonical name.
        site: the site that it belongs to; None of what stands at no site.
        path: of the module; empty for the model itself.
        parameter: its name in the module, with a dot where the site reads it from a module within.
        shape: of the canonical tensor.
        columns: which of the module's outputs are its own, from and to; None for all.
        transposed: whether the module holds it as (in, out).
        buffer: whether it is a buffer of the module, which is not trained (a batch norm's running statistics).
        parts: of a fused product's tensor, the names of the linear maps' tensors that it is made of, in order.
        tied: the other canonical names of the same tensor.
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
        """Its tensor's key in the model's state dict."""
        return _dotted(self.path, self.parameter)

    def of(self, held: Tensor) -> Tensor:
        """The canonical tensor as a view of what the module holds, so that what is written there is written in it."""
        own = held.mT if self.transposed and held.dim() == 2 else held
        return own if self.columns is None else own[slice(*self.columns)]


class Weights(Mapping[str, Tensor]):
    """A backbone's tensors by canonical name, in canonical orientation: views of the very parameters and buffers, which
    stay its own while something else runs in their modules' places. Of weights that are offloaded they are copies.

    Iterating gives names that together cover each key of the model's state dict once. A fused product's whole tensor
    (`layers.3.attention.fused.weight`) can be asked for by name, too, and is not among them: its parts are. Tied
    tensors have a name at each of their places.

    Args:
        sites: the model's.
    """

    def __init__(self, model: PreTrainedModel, sites: Sites) -> None:
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
                        expected="a name of its own for each",
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

    def where(self, name: str) -> Location:
        """Where a tensor lies in the model.

        Raises:
            SiteError: there is none of that name; says which are nearest.
        """
        try:
            return self._locations[name]
        except KeyError:
            raise SiteError(
                f"no parameter of the backbone is named {name!r}", expected=nearest(name, self._locations)
            ) from None

    def at(self, site: Site) -> Mapping[str, Location]:
        """Where the parameters at a site lie, by their name in its module: those of a linear map are its own rows."""
        return {name: location for name, _, location in self._by_site[site.name]}

    def within(self, path: str) -> Sequence[Location]:
        """Where the tensors of the sites at a module's path lie, which together are all that it holds."""
        return self._by_path.get(path, ())

    def of_site(self, site: Site) -> Mapping[str, Tensor]:
        """The parameters at a site, by their name in its module. Those of a linear map are canonical; others are as the
        module holds them, a fused product's too. Of a module whose weights are offloaded they are copies, which are
        read when they are asked for.
        """
        own = self._by_site[site.name]
        read = partial(_read, own, turned=site.kind == "linear")
        away = next((module for module in {held.module for _, held, _ in own} if offloaded(module)), None)
        return read() if away is None else OffloadedParameters(away, read)

    def stored(self, name: str) -> CheckpointTensor | None:
        """Where a tensor lies in a checkpoint as `save_pretrained` writes it; None where it leaves the tensor out. Tied
        tensors are stored once. An outline's are those of a new model.

        Raises:
            SiteError: there is none of that name.
            BackboneError: transformers stores the model's weights in a form that is no rearrangement of them.
        """
        found = self._stored.get(self.where(name).key)
        return None if found is None else replace(found, view=self.where(name).of)

    def names_of(self, key: str) -> tuple[str, ...]:
        """The canonical names of what is stored under a checkpoint's key, in the order in which it lies there; those
        that are tied to it behind.

        Raises:
            BackboneError: no tensor of the backbone is stored under that key; as `stored`.
        """
        if key not in self._names_by_key:
            raise BackboneError(
                f"nothing of the backbone is stored under the key {key!r}", expected=nearest(key, self._names_by_key)
            )
        return self._names_by_key[key]

    @property
    def checkpoint_keys(self) -> tuple[str, ...]:
        """All keys of a checkpoint as `save_pretrained` writes it."""
        return tuple(self._names_by_key)

    def put(self, values: Mapping[str, Tensor] | Iterable[tuple[str, Tensor]]) -> dict[str, dict[str, Tensor]]:
        """New tensors for the modules: what the values make of those that are there, which stay as they are.

        Args:
            values: canonical tensors by name, of any precision. Of a fused product some parts suffice: the others are
                copied.

        Returns:
            By the modules' paths, and by name in each module, in the precision and the orientation in which it holds
            them. Tied tensors are one where the values are the same; where only one of them is given, the other's place
            keeps its own.

        Raises:
            SiteError: there is none of that name; a value has another shape; or a name is given beside a part of it.
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
        """What the module holds; a copy where it is offloaded."""
        held = self._held[location.key]
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
