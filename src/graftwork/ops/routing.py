"""Routes, and the two primitives over which every op is written.

Notation: B rows of the batch, T tokens, S slots of a bank. A weight is (out, in) when one adapter serves the whole
batch, and (S, out, in) when it is a bank's slab; then the route says which slot each row uses. One adapter costs no
gather.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor


@dataclass(frozen=True)
class Route:
    """Which slot each row of a batch uses.

    Attributes:
        rows: (B,) slot numbers, or None when one adapter serves all rows.
    """

    rows: Int[Tensor, " B"] | None = None

    def require_rows(self) -> Int[Tensor, " B"]:
        """The slot numbers, for tensors that are slabs.

        Raises:
            ValueError: a bank's slab met a route without slots: an error of the caller, not of the user.
        """
        if self.rows is None:
            raise ValueError("a bank's slab needs a route that names a slot for each row")
        return self.rows


def linear(
    x: Float[Tensor, "B *T in"],
    weight: Float[Tensor, "*S out in"],
    route: Route,
    bias: Float[Tensor, "*S out"] | None = None,
) -> Float[Tensor, "B *T out"]:
    """y = x Wᵀ + b, with each row's own W and b when they are slabs."""
    if weight.dim() == 2:
        return F.linear(x, weight, bias)
    rows = route.require_rows()
    tokens = x.reshape(x.shape[0], -1, x.shape[-1])
    chosen = weight.index_select(0, rows).transpose(1, 2)
    if bias is None:
        y = torch.bmm(tokens, chosen)
    else:
        y = torch.baddbmm(bias.index_select(0, rows).unsqueeze(1), tokens, chosen)
    return y.reshape(*x.shape[:-1], -1)


def scale(x: Float[Tensor, "B *T out"], v: Float[Tensor, "*S out"], route: Route) -> Float[Tensor, "B *T out"]:
    """y = x ⊙ v, with each row's own v when it is a slab."""
    return x * per_row(v, route, x.dim())


def per_row(v: Float[Tensor, "*S out"], route: Route, dim: int) -> Tensor:
    """A vector as it broadcasts against (B, …, out) of `dim` dimensions: itself, or each row's own."""
    if v.dim() == 1:
        return v
    chosen = v.index_select(0, route.require_rows())
    return chosen.reshape(chosen.shape[0], *(1,) * (dim - 2), chosen.shape[-1])
