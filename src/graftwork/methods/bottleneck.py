"""Bottlenecks: the placement and sharing that every bottleneck method has in common.

A final method adds the placement, as data, and a parametrisation: `declare_bottleneck` and `lower_bottleneck`.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal

import torch
from pydantic import (
    Field,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    field_validator,
    model_validator,
)
from torch import Tensor

from graftwork.backbones import Site, Sites
from graftwork.errors import MethodError, SiteError
from graftwork.methods.dropping import check_dropping, depths, drawn, from_layer
from graftwork.methods.method import Method
from graftwork.methods.parameters import Parameter, frozen_value
from graftwork.methods.placement import Placement, Sublayers, sites_of
from graftwork.ops import Bottleneck, Norm, Op, Remember
from graftwork.ops.bottleneck import ACTIVATIONS


class BottleneckMethod(Method, ABC):
    """A method that trains bottlenecks.

    Attributes:
        bottleneck: size m of the bottleneck. Set either this or `reduction`.
        reduction: the ratio d / m of the hidden size to the bottleneck.
        activation: the nonlinearity σ: gelu, gelu_tanh, relu, silu, swish, tanh or sigmoid.
        init_std: standard deviation of the initial weights.
        norms: the norms of the backbone to train as well: `all`, `layers` (those in the layers), or `none`.
        sublayers: the sub-layers with a bottleneck: attention, cross_attention, ffn; as a list or separated by commas.
        share_positions: use one bottleneck for all these sub-layers of a layer.
        share_layers: use one bottleneck for this many consecutive layers.
        skip_layers: leave the first n layers of each stack without bottlenecks and trained norms, so that tasks can
            share their computation (AdapterDrop, Rücklé et al. 2021, arXiv:2010.11918, section 3, specialised).
        robust_drop: draw n from 0 to L - 1 in each training pass (for each stack the same share of its layers), so that
            layers can be left out of the finished adapter with `Adapter.without_layers` (AdapterDrop, robust).
        extra_classifier: add a dense layer with tanh before the classifier of the head.
    """

    lowers_to: ClassVar[tuple[type[Op], ...]] = (Bottleneck, Norm)
    placement: ClassVar[Placement]

    bottleneck: PositiveInt | None = None
    reduction: PositiveInt | None = Field(default=None, validate_default=True)
    activation: str = "gelu"
    init_std: PositiveFloat | None = None
    norms: Literal["all", "layers", "none"] = "none"
    sublayers: Sublayers = ("ffn",)
    share_positions: bool = False
    share_layers: PositiveInt = 1
    skip_layers: NonNegativeInt = 0
    robust_drop: bool = False
    extra_classifier: bool = False

    @model_validator(mode="before")
    @classmethod
    def _one_size_takes_the_others_place(cls, settings: dict[str, Any]) -> dict[str, Any]:
        for given, other in (("bottleneck", "reduction"), ("reduction", "bottleneck")):
            if settings.get(given) is not None and other not in settings:
                return {**settings, other: None}
        return settings

    @field_validator("reduction")
    @classmethod
    def _one_size(cls, reduction: int | None, info: Any) -> int | None:
        if "bottleneck" in info.data and (info.data["bottleneck"] is None) == (reduction is None):
            raise ValueError("either bottleneck or reduction sets the size, not both")
        return reduction

    @field_validator("activation")
    @classmethod
    def _known_activation(cls, name: str) -> str:
        if name not in ACTIVATIONS:
            raise ValueError(f"unknown activation; known are {', '.join(ACTIVATIONS)}")
        return name

    @model_validator(mode="after")
    def _nothing_idle(self) -> "BottleneckMethod":
        if len(self.sublayers) == 1:
            self.refuse_idle("share_positions", f"{self.sublayers[0]} is the only sub-layer")
        return self

    @property
    def head_fields(self) -> Mapping[str, Any]:
        return {"extra_layer": True} if self.extra_classifier else {}

    @abstractmethod
    def declare_bottleneck(self, owner: str, d: int, m: int) -> dict[str, Parameter]:
        """One bottleneck's parameters; their names begin with the owner's."""

    @abstractmethod
    def lower_bottleneck(self, site: Site, owner: str, parameters: Mapping[str, Tensor]) -> dict[str, Any]:
        """The `Bottleneck` op's fields at a site, less those that say where it acts."""

    def draw(self, parameters: Mapping[str, Tensor], sites: Sequence[Site], *, training: bool) -> dict[str, Tensor]:
        """What `lower_bottleneck` is given besides the parameters, made once a pass."""
        return {}

    def sites(self, sites: Sites) -> list[Site]:
        chosen: set[str] = set()
        for sublayer in self.sublayers:
            results = [site for site in sites.of_kind("result") if site.sublayer == sublayer]
            if not results:
                raise SiteError(
                    f"the backbone has no sub-layer {sublayer}, where {self.name!r} should act",
                    expected=", ".join(dict.fromkeys(s.sublayer for s in sites.of_kind("result"))) or "sub-layers",
                    change="--method.sublayers",
                )
            chosen.update(name for result in results for name in sites_of(result, sites, self.placement))
        kept = [site for site in sites.values() if site.name in chosen or self._trains_norm(site)]
        left = list(from_layer(kept, dict.fromkeys(depths(kept), self.skip_layers)))
        before, after = ([site for site in some if self.acts_at(site)] for some in (kept, left))
        check_dropping(self.name, before, after, skipped=self.skip_layers, robust=self.robust_drop)
        return left

    def declare(self, site: Site) -> dict[str, Parameter]:
        declared: dict[str, Parameter] = {}
        if self._trains_norm(site):
            for name, shape in site.parameters.items():
                init = frozen_value(name)
                declared[f"{site.name}.{name}"] = Parameter(shape=shape, init=init, group="norms", decay=False)
        if self.acts_at(site):
            d = site.out_features
            declared |= self.declare_bottleneck(self.owner(site), d, self._size(d))
        return declared

    def replaces(self, site: Site) -> bool:
        return self._trains_norm(site)

    def prepare(
        self, parameters: Mapping[str, Tensor], sites: Sequence[Site], *, training: bool
    ) -> Mapping[str, Tensor]:
        prepared = {**parameters, **self.draw(parameters, sites, training=training)}
        if self.robust_drop and training:
            kept = {site.name for site in drawn(sites)}
            prepared |= {_dropped(site): torch.empty(0) for site in sites if site.name not in kept}
        return prepared

    def lower(self, site: Site, parameters: Mapping[str, Tensor], frozen: Mapping[str, Tensor]) -> Sequence[Op]:
        if _dropped(site) in parameters:
            return []
        if site.kind == "linear":
            return [Remember(key=site.sublayer)]
        ops: list[Op] = []
        if self._trains_norm(site):
            ops.append(Norm(gain=parameters[f"{site.name}.weight"], bias=parameters.get(f"{site.name}.bias")))
        if self.acts_at(site):
            fields = self.lower_bottleneck(site, self.owner(site), parameters)
            source = site.sublayer if self.placement == "parallel" else None
            at: Literal["result", "norm"] = "norm" if site.kind == "norm" else "result"
            ops.append(Bottleneck(activation=self.activation, at=at, source=source, **fields))
        return ops

    def acts_at(self, site: Site) -> bool:
        """Whether a bottleneck acts at one of the method's sites."""
        if site.kind == "norm":
            return self.placement == "norm" and site.follows_residual and site.sublayer in self.sublayers
        return site.kind == "result"

    def owner(self, site: Site) -> str:
        """The first sub-layer's result of those that share one bottleneck: the parameters stand under its name."""
        assert site.layer is not None
        stack, _, _ = site.name.rpartition(f"layers.{site.layer}.")
        first = site.layer - site.layer % self.share_layers
        return f"{stack}layers.{first}.{self.sublayers[0] if self.share_positions else site.sublayer}.result"

    def _size(self, d: int) -> int:
        """m."""
        if self.bottleneck is not None:
            return self.bottleneck
        assert self.reduction is not None  # one of the two says the size
        if self.reduction > d:
            raise MethodError(
                f"a reduction of {self.reduction} is larger than the hidden size {d}",
                expected=f"at most {d}",
                change="--method.reduction",
            )
        return d // self.reduction

    def _trains_norm(self, site: Site) -> bool:
        wanted = self.norms == "all" or (self.norms == "layers" and site.layer is not None)
        return wanted and site.kind == "norm"


def _dropped(site: Site) -> str:
    """The name under which `prepare` says that nothing acts at a site in this pass."""
    return f"{site.name}.dropped"
