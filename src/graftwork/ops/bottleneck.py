"""Bottleneck op: a down projection, a non-linearity and an up projection, with their own residual."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import ClassVar

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from graftwork.backbones import SiteKind
from graftwork.ops import routing
from graftwork.ops.op import Forward, Op, Place

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu": F.gelu,
    "gelu_tanh": partial(F.gelu, approximate="tanh"),
    "relu": F.relu,
    "silu": F.silu,
    "swish": F.silu,
    "tanh": torch.tanh,
    "sigmoid": torch.sigmoid,
}
"""Non-linearities σ by name."""


@dataclass(frozen=True, kw_only=True)
class Bottleneck(Op):
    """After a sub-layer's output h: y = h + U σ(D h + b_D) + b_U (Houlsby et al. 2019, section 2.1 and figure 2).

    Shapes: down (m, d), down_bias (m), up (d, m), up_bias (d), each with a leading slot dimension in a bank. Padding
    m with zeros is exact for every σ, since the padded columns of U are zero.

    Attributes:
        activation: name of σ among `ACTIVATIONS`.
    """

    down: Float[Tensor, "*S m d"]
    down_bias: Float[Tensor, "*S m"]
    up: Float[Tensor, "*S d m"]
    up_bias: Float[Tensor, "*S d"]
    activation: str

    kinds: ClassVar[frozenset[SiteKind]] = frozenset({"result"})

    def around(self, forward: Forward, place: Place) -> Forward:
        activation = ACTIVATIONS[self.activation]

        def bottleneck(*args: Tensor) -> Tensor:
            h: Tensor = forward(*args)
            narrow = activation(routing.linear(h, self.down, place.route, self.down_bias))
            return h + routing.linear(narrow, self.up, place.route, self.up_bias)

        return bottleneck
