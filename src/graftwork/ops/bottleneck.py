"""Bottleneck op: a down projection, a non-linearity and an up projection, with their own residual."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar, Literal

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
    """A bottleneck beside a sub-layer's output h, which it is added to: y = h + U σ(D x + b_D) + b_U.

    What x is, depends on where it acts. At a result, x = h (Houlsby et al. 2019, section 2.1 and figure 2). At a norm
    that follows a residual, whose input is s: y = LN(s + U σ(D LN(s) + b_D) + b_U), the same norm twice (Pfeiffer et
    al. 2021, figure 5). With `source`, at a result, x is the sub-layer's own input (He et al. 2022, table 1,
    "parallel").

    Shapes: down (m, d), down_bias (m), up (d, m), up_bias (d), each with a leading slot dimension in a bank. Padding
    m with zeros is exact for every σ, since the padded columns of U are zero. A scale is put into U and b_U.

    Attributes:
        activation: name of σ among `ACTIVATIONS`.
        at: the kind of site where it acts.
        source: under which key a `Remember` left x in the pass's memory; None to take it from where it acts.
    """

    down: Float[Tensor, "*S m d"]
    down_bias: Float[Tensor, "*S m"]
    up: Float[Tensor, "*S d m"]
    up_bias: Float[Tensor, "*S d"]
    activation: str
    at: Literal["result", "norm"] = "result"
    source: str | None = None

    kinds: ClassVar[frozenset[SiteKind]] = frozenset({"result", "norm"})
    unmergeable: ClassVar[str] = "its non-linearity is no linear map"

    def around(self, forward: Forward, place: Place) -> Forward:
        activation = ACTIVATIONS[self.activation]

        def change(x: Tensor) -> Tensor:
            narrow = activation(routing.linear(x, self.down, place.route, self.down_bias))
            return routing.linear(narrow, self.up, place.route, self.up_bias)

        def at_result(*args: Any, **kwargs: Any) -> Tensor:
            h: Tensor = forward(*args, **kwargs)
            return h + change(h if self.source is None else place.memory[self.source])

        def at_norm(s: Tensor) -> Tensor:
            y: Tensor = forward(s + change(forward(s)))
            return y

        return at_norm if self.at == "norm" else at_result
