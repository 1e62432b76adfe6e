"""Gated compositions: parts whose outputs are multiplied by gates, which read the hidden state."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from pydantic import PrivateAttr, field_validator
from torch import Generator, Tensor

from graftwork.backbones import Backbone, Site, Sites
from graftwork.errors import MethodError
from graftwork.methods.average import Average
from graftwork.methods.composition import (
    ComposedSite,
    Composition,
    all_of,
    in_columns,
    require_one_place,
    residual_key,
)
from graftwork.methods.wide import COMBINABLE, as_units, refusal, side_by_side
from graftwork.ops import Fused, Op
from graftwork.settings.checked import split_commas

Watcher = Callable[[str, Tensor], None]
"""Is shown the name of a site and the gates there in a pass, (B, T, N)."""


class GatedComposition(Composition, ABC):
    """Parts whose outputs are multiplied by gates and added.

    Attributes:
        masked_parts: names of parts to leave out; those that are left share what the gates give.
    """

    masked_parts: tuple[str, ...] = ()
    _watcher: Watcher | None = PrivateAttr(default=None)

    @field_validator("masked_parts", mode="before")
    @classmethod
    def _as_names(cls, value: object) -> object:
        return split_commas(value)

    def model_post_init(self, context: Any, /) -> None:
        names = [part.name for part in self.parts]
        unknown = [name for name in self.masked_parts if name not in names]
        if unknown or {*names} == {*self.masked_parts}:
            raise MethodError(
                f"masked_parts names {unknown[0]!r}, which is no part" if unknown else "masked_parts names every part",
                expected=f"some of {', '.join(names)}",
                change="--method.masked_parts",
            )

    def watched_by(self, watcher: Watcher) -> "GatedComposition":
        """The same composition, whose gates are shown to somebody in each pass."""
        found = self.model_copy()
        found._watcher = watcher
        return found

    @abstractmethod
    def gated(self, site: Site, units: Fused, gates: Mapping[str, Any], parameters: Mapping[str, Tensor]) -> Fused:
        """The parts at a site, with gates on them.

        Args:
            site: the site.
            units: the parts, side by side.
            gates: those fields of `PartGates` that say which units are whose.
            parameters: of the whole composition.
        """

    def initial(
        self,
        tensors: Mapping[str, Tensor],
        sites: Sequence[Site],
        backbone: Backbone,
        labels: Sequence[str] | None,
        generator: Generator,
    ) -> Mapping[str, Tensor]:
        """The initial values, once it is known that the parts can be gated at each site.

        Raises:
            MethodError: they cannot; says whether they can be averaged.
        """
        found = super().initial(tensors, sites, backbone, labels, generator)
        own = {**tensors, **found}
        try:
            self.lower_everywhere(own, sites, backbone)
        except MethodError as error:
            average = Average(parts=self.parts, train_parts=self.train_parts)
            try:
                average.lower_everywhere(own, sites, backbone)
            except MethodError:
                raise error from None
            raise MethodError(
                error.problem,
                expected=f"{error.expected}; average takes these",
                change=f"--kind average, or {error.change}",
            ) from None
        return found

    def residual_of(self, site: Site, sites: Sites) -> str | None:
        norm = f"{site.name.removesuffix('result')}norm"
        behind_sum = self.placement == "norm" and site.kind == "result"
        return norm if behind_sum and norm in sites and not sites[norm].follows_residual else None

    def combine(
        self,
        site: Site,
        ops: Mapping[str, Sequence[Op]],
        parameters: Mapping[str, Tensor],
        frozen: Mapping[str, Tensor],
    ) -> Sequence[Op]:
        assert isinstance(site, ComposedSite)  # it is one of the composition's
        found: list[Op] = []
        for column in in_columns(self.name, ops):
            combinable = all_of(self.name, column, *COMBINABLE)
            if combinable is None:
                name, op = next(iter(column.items()))
                raise refusal(self.name, name, op, "it cannot be gated")
            units = {name: as_units(self.name, name, op) for name, op in combinable.items()}
            require_one_place(self.name, units)
            whole, members = side_by_side(list(units.values()))
            gates = {
                "members": members,
                "present": members.new_tensor([float(name not in self.masked_parts) for name in units]),
                "masked": bool(self.masked_parts),
                "watch": None if self._watcher is None else _at(self._watcher, site.name),
            }
            fused = self.gated(site, whole, gates, parameters)
            found.append(replace(fused, residual=None if site.residual is None else residual_key(site)))
        return found


def _at(watcher: Watcher, site: str) -> Callable[[Tensor], None]:
    return lambda p: watcher(site, p)
