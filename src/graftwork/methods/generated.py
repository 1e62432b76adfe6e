"""Generated bottlenecks: a hypernetwork, which tasks can share, makes the tensors of all bottlenecks from what is known
of a task. They are made once a pass, and run as any bottleneck does.

A final method adds how the code of each place is made: `declare_code` and `codes`. From a code I of t numbers, linear
maps make what a bottleneck is made of (Karimi Mahabadi et al. 2021, arXiv:2106.04489, sections 2.2 and 2.3):
    D = W_D I + B_D,  U = W_U I + B_U,  and so b_D, b_U, γ and β;   f(x) = LN_{γ,β}(U σ(D x + b_D) + b_U),
with LN over the d numbers of each token, γ its gain and β its bias.

Shapes: D (m, d), U (d, m), b_D (m), b_U, γ and β (d); W_D (md, t), B_D (md), and so on. One set of generators has
(t + 1)(2dm + d + m) + 2(t + 1)d parameters.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from math import sqrt
from typing import Any, ClassVar, NamedTuple

import torch
import torch.nn.functional as F
from pydantic import PositiveFloat, PositiveInt
from torch import Tensor

from graftwork.backbones import Site
from graftwork.methods.bottleneck import BottleneckMethod
from graftwork.methods.houlsby import Houlsby
from graftwork.methods.hypernetwork import Hypernetwork
from graftwork.methods.method import Method
from graftwork.methods.parameters import Parameter, kaiming_uniform, normal, ones, uniform, zeros
from graftwork.methods.placement import Placement, Sublayers

TENSORS = ("down", "down_bias", "up", "up_bias", "norm_gain", "norm_bias")
"""What is generated of each bottleneck."""

NETWORK = "hypernetwork"

EPS = 1e-6
"""Of layer norms within hypernetworks."""


class Spot(NamedTuple):
    """Where a bottleneck stands: in the stack, with a dot behind its name, the layer, and the sub-layer."""

    stack: str
    layer: str
    position: str

    @classmethod
    def of(cls, owner: str) -> "Spot":
        """That of an owner, such as `encoder.layers.3.ffn.result`."""
        *stack, _, layer, position, _ = owner.split(".")
        return cls("".join(f"{part}." for part in stack), layer, position)


class GeneratedBottleneck(Hypernetwork, BottleneckMethod, ABC):
    """A method whose bottlenecks are made by a hypernetwork.

    Attributes:
        init_std: standard deviation of the normal distribution of the generators' initial weights; their biases are 0.
        code_size: number t of entries of each embedding and of each code.
        hidden_size: hidden size of the network that makes codes.
    """

    placement: ClassVar[Placement] = "result"

    reduction: PositiveInt | None = 32
    activation: str = "gelu_tanh"
    init_std: PositiveFloat = 0.01
    sublayers: Sublayers = ("attention", "ffn")
    code_size: PositiveInt = 64
    hidden_size: PositiveInt = 128

    @property
    def learning_rate(self) -> float:
        """A step of the maps moves all that is generated, t times as far as a step of its own would. An embedding alone
        takes larger steps."""
        return 1e-4 if self.trains == "all" else 1e-2

    @abstractmethod
    def declare_code(self, spot: Spot, d: int) -> dict[str, Parameter]:
        """The parameters that the code of a bottleneck is made of."""

    @abstractmethod
    def codes(self, parameters: Mapping[str, Tensor], owners: Sequence[str]) -> dict[str, Tensor]:
        """The codes (n, t) of these bottlenecks, by the generators that read them; in order."""

    @abstractmethod
    def generator(self, owner: str) -> str:
        """The name of the generators that make a bottleneck."""

    def declare(self, site: Site) -> dict[str, Parameter]:
        return self.trained(super().declare(site))

    def declare_bottleneck(self, owner: str, d: int, m: int) -> dict[str, Parameter]:
        declared = self.declare_code(Spot.of(owner), d)
        for name, size in zip(TENSORS, (m * d, m, d * m, d, d, d), strict=True):
            start = f"{self.generator(owner)}.{name}"
            declared[f"{start}.weight"] = Parameter(shape=(size, self.code_size), init=normal(self.init_std))
            declared[f"{start}.bias"] = Parameter(shape=(size,), init=zeros, decay=False)
        return declared

    def draw(self, parameters: Mapping[str, Tensor], sites: Sequence[Site], *, training: bool) -> dict[str, Tensor]:
        widths = {self.owner(site): site.out_features for site in sites if self.acts_at(site)}
        readers: dict[str, list[str]] = {}
        for owner in widths:
            readers.setdefault(self.generator(owner), []).append(owner)
        codes = self.codes(parameters, list(widths))
        made: dict[str, Tensor] = {}
        for generator, owners in readers.items():
            d = widths[owners[0]]
            shapes = {"down": (-1, d), "up": (d, -1)}
            for name in TENSORS:
                start = f"{generator}.{name}"
                rows = F.linear(codes[generator], parameters[f"{start}.weight"], parameters[f"{start}.bias"])
                for owner, row in zip(owners, rows, strict=True):
                    made[_generated(owner, name)] = row.view(shapes.get(name, (-1,)))
        return made

    def lower_bottleneck(self, site: Site, owner: str, parameters: Mapping[str, Tensor]) -> dict[str, Any]:
        return {**{name: parameters[_generated(owner, name)] for name in TENSORS}, "norm_at": "output"}

    def written_out(self, parameters: Mapping[str, Tensor], sites: Sequence[Site]) -> tuple[Method, dict[str, Tensor]]:
        with torch.no_grad():
            made = self.draw(parameters, sites, training=False)
        widths = {self.owner(site): site.out_features for site in sites if self.acts_at(site)}
        own = {name for owner, d in widths.items() for name in self.declare_bottleneck(owner, d, self._size(d))}
        kept = {name: tensor for name, tensor in parameters.items() if name not in own}
        kept |= {f"{owner}.{n}": made[_generated(owner, n)].contiguous() for owner in widths for n in TENSORS}
        common = BottleneckMethod.model_fields.keys() - {"init_std", "robust_drop"}
        return Houlsby(layer_norm="output", **self.model_dump(include={*common})), kept


def declare_network(name: str, inputs: int, hidden: int, outputs: int) -> dict[str, Parameter]:
    """A network of two layers, W_2 relu(W_1 x + b_1) + b_2, as PyTorch initialises it."""
    return {
        f"{name}.inner": Parameter(shape=(hidden, inputs), init=kaiming_uniform(sqrt(5))),
        f"{name}.inner_bias": Parameter(shape=(hidden,), init=uniform(1 / sqrt(inputs)), decay=False),
        f"{name}.outer": Parameter(shape=(outputs, hidden), init=kaiming_uniform(sqrt(5))),
        f"{name}.outer_bias": Parameter(shape=(outputs,), init=uniform(1 / sqrt(hidden)), decay=False),
    }


def network(x: Tensor, parameters: Mapping[str, Tensor], name: str) -> Tensor:
    """What it makes of rows."""
    hidden = F.relu(F.linear(x, parameters[f"{name}.inner"], parameters[f"{name}.inner_bias"]))
    return F.linear(hidden, parameters[f"{name}.outer"], parameters[f"{name}.outer_bias"])


def declare_trunk(spot: Spot, width: int, t: int, hidden: int) -> dict[str, Parameter]:
    """What makes the codes of all bottlenecks of a stack, LN(MLP([z; l; p])): embeddings l of the layer and p of the
    position, a network and a layer norm.

    Args:
        width: of z.
    """
    name = trunk_of(spot)
    embedding = Parameter(shape=(t,), init=normal(1.0), decay=False)
    return {
        f"{name}.layer.{spot.layer}": embedding,
        f"{name}.position.{spot.position}": embedding,
        **declare_network(name, width + 2 * t, hidden, t),
        f"{name}.code_norm.weight": Parameter(shape=(t,), init=ones, decay=False),
        f"{name}.code_norm.bias": Parameter(shape=(t,), init=zeros, decay=False),
    }


def trunk_codes(parameters: Mapping[str, Tensor], owners: Sequence[str], z: Tensor) -> dict[str, Tensor]:
    """The codes (n, t) of bottlenecks that each stack's trunk makes, by its name."""
    rows: dict[str, list[Tensor]] = {}
    for owner in owners:
        spot = Spot.of(owner)
        name = trunk_of(spot)
        place = [parameters[f"{name}.layer.{spot.layer}"], parameters[f"{name}.position.{spot.position}"]]
        rows.setdefault(name, []).append(torch.cat([z, *place]))
    made = {name: network(torch.stack(own), parameters, name) for name, own in rows.items()}
    return {
        name: F.layer_norm(
            x, x.shape[-1:], parameters[f"{name}.code_norm.weight"], parameters[f"{name}.code_norm.bias"], EPS
        )
        for name, x in made.items()
    }


def trunk_of(spot: Spot) -> str:
    """The name of the network, and of the generators, that a stack's bottlenecks have in common."""
    return f"{spot.stack}{NETWORK}"


def _generated(owner: str, name: str) -> str:
    """The name under which a tensor is handed on that was made for a bottleneck."""
    return f"{owner}.generated.{name}"
