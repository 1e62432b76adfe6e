"""Bottleneck op: a down projection, a nonlinearity and an up projection, with their own residual."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from graftwork.backbones import SiteKind
from graftwork.ops import routing
from graftwork.ops.op import Forward, Op, Place
from graftwork.ops.routing import Blocks, Route
from graftwork.ops.tensortree import Copy

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

NORM_EPS = 1e-5
"""Of the bottleneck's own layer norm: PyTorch's, so that a vector of zeros stays one."""


@dataclass(frozen=True, kw_only=True)
class Bottleneck(Op):
    """A bottleneck beside a sub-layer's output h, which it is added to: y = h + U σ(D x + b_D) + b_U.

    What x is, depends on where it acts. At a result, x = h (Houlsby et al. 2019, section 2.1 and figure 2). At a norm
    that follows a residual, whose input is s: y = LN(s + U σ(D LN(s) + b_D) + b_U), the same norm twice (Pfeiffer et
    al. 2021, figure 5). With `source`, at a result, x is the sub-layer's own input (He et al. 2022, table 1,
    "parallel").

    Shapes: down (m, d), down_bias (m), up (d, m), up_bias (d); of a deeper one, its n further maps hidden (n, m, m) and
    hidden_bias (n, m), each followed by σ; of one with a layer norm of its own, norm_gain and norm_bias (d). All with a
    leading slot dimension in a slab (that of the norm is of rows where they stand in blocks). Padding m with zeros is
    exact for every σ, since what reads the padded units, U or the next hidden map, has zeros in their columns; the
    layer norm is over d, which is never padded. Bottlenecks of different depth, and with and without a norm, cannot
    share a slab. A scale is put into U and b_U, or into the norm where that comes after U.

    Attributes:
        activation: name of σ among `ACTIVATIONS`.
        at: the kind of site where it acts.
        source: under which key a `Remember` left x in the pass's memory; None to take it from where it acts.
        norm_at: whether the layer norm is over what enters the bottleneck or over what leaves it, before it is added.
        multiply: whether it multiplies: y = h + h ⊙ (U σ(D x + b_D) + b_U) (Houlsby et al. 2019, section 3.6).
        blocks: in which the rows stand, in a slab; None for groups of equal size.
    """

    down: Float[Tensor, "*S m d"]
    down_bias: Float[Tensor, "*S m"]
    up: Float[Tensor, "*S d m"]
    up_bias: Float[Tensor, "*S d"]
    hidden: Float[Tensor, "*S n m m"] | None = None
    hidden_bias: Float[Tensor, "*S n m"] | None = None
    norm_gain: Float[Tensor, "*rows d"] | None = None
    norm_bias: Float[Tensor, "*rows d"] | None = None
    activation: str
    at: Literal["result", "norm"] = "result"
    source: str | None = None
    norm_at: Literal["input", "output"] = "input"
    multiply: bool = False
    blocks: Blocks | None = None

    kinds: ClassVar[frozenset[SiteKind]] = frozenset({"result", "norm"})
    unmergeable: ClassVar[str] = "its nonlinearity cannot be expressed as a weight"

    def around(self, forward: Forward, place: Place) -> Forward:
        def at_result(*args: Any, **kwargs: Any) -> Tensor:
            h: Tensor = forward(*args, **kwargs)
            # Where x was remembered, the backbone may compute in another precision than here.
            return self._changed(h, h if self.source is None else place.memory[self.source].to(h.dtype))

        def at_norm(s: Tensor) -> Tensor:
            y: Tensor = forward(self._changed(s, forward(s)))
            return y

        return at_norm if self.at == "norm" else at_result

    def spread(self, route: Route) -> "Bottleneck":
        if route.blocks is None:
            return super().spread(route)
        gain, bias = (None if v is None else route.spread(v) for v in (self.norm_gain, self.norm_bias))
        return replace(self, blocks=route.blocks, norm_gain=gain, norm_bias=bias)

    def laid_out(self, copy: Copy) -> "Bottleneck":
        copied: dict[str, Any] = {name: copy(t, transposed=name == "up") for name, t in self.tensors().items()}
        return replace(self, **copied)

    def _changed(self, h: Tensor, x: Tensor) -> Tensor:
        """h with what the bottleneck makes of x."""
        activation = ACTIVATIONS[self.activation]
        if self.norm_at == "input":
            x = self._normalised(x)
        narrow = activation(routing.linear(x, self.down, self.down_bias, self.blocks))
        for weight, bias in self._hidden():
            narrow = activation(routing.linear(narrow, weight, bias, self.blocks))
        change = routing.linear(narrow, self.up, self.up_bias, self.blocks)
        if self.norm_at == "output":
            change = self._normalised(change)
        return h + (h * change if self.multiply else change)

    def _hidden(self) -> list[tuple[Tensor, Tensor]]:
        """Weight and bias of each further map."""
        if self.hidden is None or self.hidden_bias is None:
            return []
        return list(zip(self.hidden.unbind(-3), self.hidden_bias.unbind(-2), strict=True))

    def _normalised(self, x: Tensor) -> Tensor:
        """x through the bottleneck's own layer norm, where it has one."""
        if self.norm_gain is None or self.norm_bias is None:
            return x
        y = F.layer_norm(x, x.shape[-1:], eps=NORM_EPS)
        return routing.scale(y, self.norm_gain) + routing.per_row(self.norm_bias, x)
