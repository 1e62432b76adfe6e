"""Dense projections: the bottleneck whose maps are trained as they are, and the variants of it that papers tried."""

from abc import ABC
from collections.abc import Mapping
from math import sqrt
from typing import Any, ClassVar, Literal

from pydantic import PositiveFloat, PositiveInt
from torch import Tensor

from graftwork.backbones import Site
from graftwork.methods.bottleneck import BottleneckMethod
from graftwork.methods.parameters import (
    Init,
    Parameter,
    kaiming_uniform,
    normal,
    ones,
    stacked,
    truncated_normal,
    zeros,
)

TENSORS = ("down", "down_bias", "hidden", "hidden_bias", "up", "up_bias", "norm_gain", "norm_bias")


class DenseBottleneck(BottleneckMethod, ABC):
    """A bottleneck f(x) = s · (U σ(D x + b_D) + b_U) with D, U and biases trained.

    Shapes: down (m, d), down_bias (m), up (d, m), up_bias (d); hidden (depth - 1, m, m), hidden_bias (depth - 1, m);
    norm_gain and norm_bias (d); scale (1).

    Attributes:
        init_std: standard deviation of the normal distribution of the initial D and U. None: D is Kaiming-uniform
            (a = √5) and U zero, so that the outputs are unchanged at first.
        scale: the factor s: a number, or `learned`, which starts at 1.
        depth: number of non-linear layers. Above 1, m x m maps follow D, Kaiming-uniform at first.
        layer_norm: add a layer norm over the `input` x, or over the `output` f(x), where its gain starts at 0 so that
            the outputs are unchanged at first; or `none`. There is no batch norm: its running statistics differ between
            training and use.
        interaction: `add`: h + f(x); `multiply`: h + h ⊙ f(x).
    """

    truncated: ClassVar[bool] = False

    scale: PositiveFloat | Literal["learned"] = 1.0
    depth: PositiveInt = 1
    layer_norm: Literal["none", "input", "output"] = "none"
    interaction: Literal["add", "multiply"] = "add"

    def declare_bottleneck(self, owner: str, d: int, m: int) -> dict[str, Parameter]:
        down: Init = kaiming_uniform(sqrt(5))
        up: Init = zeros
        if self.init_std is not None:
            down = up = (truncated_normal if self.truncated else normal)(self.init_std)
        declared = {
            "down": Parameter(shape=(m, d), init=down),
            "down_bias": Parameter(shape=(m,), init=zeros, decay=False),
            "up": Parameter(shape=(d, m), init=up),
            "up_bias": Parameter(shape=(d,), init=zeros, decay=False),
        }
        if self.depth > 1:
            n = self.depth - 1
            declared["hidden"] = Parameter(shape=(n, m, m), init=stacked(kaiming_uniform(sqrt(5))))
            declared["hidden_bias"] = Parameter(shape=(n, m), init=zeros, decay=False)
        if self.layer_norm != "none":
            gain = zeros if self.layer_norm == "output" else ones
            declared["norm_gain"] = Parameter(shape=(d,), init=gain, decay=False)
            declared["norm_bias"] = Parameter(shape=(d,), init=zeros, decay=False)
        if self.scale == "learned":
            declared["scale"] = Parameter(shape=(1,), init=ones, decay=False)
        return {f"{owner}.{name}": parameter for name, parameter in declared.items()}

    def lower_bottleneck(self, site: Site, owner: str, parameters: Mapping[str, Tensor]) -> dict[str, Any]:
        fields: dict[str, Any] = {n: parameters[f"{owner}.{n}"] for n in TENSORS if f"{owner}.{n}" in parameters}
        last = ("norm_gain", "norm_bias") if self.layer_norm == "output" else ("up", "up_bias")
        if self.scale != 1.0:
            scale = parameters[f"{owner}.scale"] if self.scale == "learned" else self.scale
            fields |= {name: fields[name] * scale for name in last}
        if self.layer_norm != "none":
            fields["norm_at"] = self.layer_norm
        return {**fields, "multiply": self.interaction == "multiply"}
