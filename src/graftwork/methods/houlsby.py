"""Bottleneck adapters as Houlsby et al. (2019) place them: twice a layer, after each sub-layer's output.

"Parameter-Efficient Transfer Learning for NLP", ICML 2019, section 2.1 and figure 2:
    A(h) = h + W_up · σ(W_down · h + b_down) + b_up,
with h the output of a sub-layer after its projection and dropout, before the skip connection and its layer norm.

Shapes: W_down (m, d), b_down (m), W_up (d, m), b_up (d) for bottleneck size m and hidden size d. A layer has two
bottlenecks of 2md + m + d parameters each; with `share_positions` one serves both, with `share_layers` = n one serves
n layers running.
"""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal

from pydantic import PositiveFloat, PositiveInt, field_validator
from torch import Tensor

from graftwork.backbones import Site, Sites
from graftwork.methods.method import Method
from graftwork.methods.parameters import Parameter, frozen_value, truncated_normal, zeros
from graftwork.ops import Bottleneck, Norm, Op
from graftwork.ops.bottleneck import ACTIVATIONS


class Houlsby(Method):
    """Houlsby adapters.

    Settings:
        bottleneck: size m.
        activation: σ, one of gelu, gelu_tanh, relu, silu, swish, tanh, sigmoid.
        init_std: standard deviation of the projections' truncated normal (1e-2 in the paper, 1e-3 in its code).
        norms: which layer norms are trained too: `all` (the paper: the embedding's included), `layers` (those in the
            layers), or `none`.
        share_positions: one bottleneck serves both positions of a layer.
        share_layers: one bottleneck serves this many layers running.
        extra_classifier: one more dense layer with tanh before the head's classifier.
    """

    name: ClassVar[str] = "houlsby"
    paper: ClassVar[str] = "Houlsby et al. 2019, arXiv:1902.00751"
    lowers_to: ClassVar[tuple[type[Op], ...]] = (Bottleneck, Norm)

    bottleneck: PositiveInt = 64
    activation: str = "gelu"
    init_std: PositiveFloat = 1e-2
    norms: Literal["all", "layers", "none"] = "all"
    share_positions: bool = False
    share_layers: PositiveInt = 1
    extra_classifier: bool = False

    @field_validator("activation")
    @classmethod
    def _known_activation(cls, name: str) -> str:
        if name not in ACTIVATIONS:
            raise ValueError(f"unknown activation; known are {', '.join(ACTIVATIONS)}")
        return name

    @property
    def head_fields(self) -> Mapping[str, Any]:
        return {"extra_layer": True} if self.extra_classifier else {}

    def sites(self, sites: Sites) -> list[Site]:
        return [site for site in sites.of_kind("result", "norm") if site.kind == "result" or self._trains_norm(site)]

    def declare(self, site: Site) -> dict[str, Parameter]:
        if site.kind == "norm":
            return {
                f"{site.name}.{name}": Parameter(shape=shape, init=frozen_value(name), group="norms", decay=False)
                for name, shape in site.parameters.items()
            }
        owner, d, m = self._owner(site), site.out_features, self.bottleneck
        projection = truncated_normal(self.init_std)
        return {
            f"{owner}.down": Parameter(shape=(m, d), init=projection),
            f"{owner}.down_bias": Parameter(shape=(m,), init=zeros, decay=False),
            f"{owner}.up": Parameter(shape=(d, m), init=projection),
            f"{owner}.up_bias": Parameter(shape=(d,), init=zeros, decay=False),
        }

    def lower(self, site: Site, parameters: Mapping[str, Tensor], frozen: Mapping[str, Tensor]) -> Sequence[Op]:
        if site.kind == "norm":
            return [Norm(gain=parameters[f"{site.name}.weight"], bias=parameters.get(f"{site.name}.bias"))]
        owner = self._owner(site)
        tensors: dict[str, Any] = {
            name: parameters[f"{owner}.{name}"] for name in ("down", "down_bias", "up", "up_bias")
        }
        return [Bottleneck(activation=self.activation, **tensors)]

    def _trains_norm(self, site: Site) -> bool:
        return self.norms == "all" or (self.norms == "layers" and site.layer is not None)

    def _owner(self, site: Site) -> str:
        """The first site of those that share one bottleneck: the parameters stand under its name."""
        assert site.layer is not None
        stack, _, _ = site.name.rpartition(f"layers.{site.layer}.")
        first = site.layer - site.layer % self.share_layers
        return f"{stack}layers.{first}.{'attention' if self.share_positions else site.sublayer}.result"
