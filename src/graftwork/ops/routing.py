"""Routes, and the primitives over which every op is written.

Notation: B rows of a pass, T tokens, S slots of a slab. A weight is (out, in) when one adapter serves the whole pass,
and (S, out, in) when several do: the rows then stand in S groups of equal size, a group a slot, in the order of the
slots. A `Route` brings rows and slabs into that order, once a pass, so that no op gathers anything.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Shaped
from torch import Tensor


@dataclass(frozen=True)
class Route:
    """Which slot each row of a batch uses.

    A pass may have more rows than the batch: a question's choices, or the beams of a search, are rows running. Each of
    them uses the slot of the row that it comes from.

    Attributes:
        slots: the slot of each row.
        count: how many slots there are.
    """

    slots: tuple[int, ...]
    count: int

    @cached_property
    def even(self) -> bool:
        """Whether the rows stand in groups of equal size, a group a slot, in the order of the slots."""
        return self.slots == tuple(slot for slot in range(self.count) for _ in range(len(self.slots) // self.count))

    def spread(self, slab: Shaped[Tensor, "S *shape"]) -> Shaped[Tensor, "groups *shape"]:
        """The slab as the rows need it: as it is, or with a slot of its own for each row."""
        return slab if self.even else slab.index_select(0, torch.tensor(self.slots, device=slab.device))


def each(slab: Shaped[Tensor, "S *shape"], batch: int) -> Shaped[Tensor, "B *shape"]:
    """What each of so many rows has of a slab."""
    return slab if len(slab) == batch else slab.repeat_interleave(batch // len(slab), dim=0)


def linear(
    x: Float[Tensor, "B *T in"],
    weight: Float[Tensor, "*S out in"],
    bias: Float[Tensor, "*S out"] | None = None,
) -> Float[Tensor, "B *T out"]:
    """y = x Wᵀ + b, with each row's own W and b when they are slabs."""
    if weight.dim() == 2:
        return F.linear(x, weight, bias)
    tokens, chosen = x.reshape(len(weight), -1, x.shape[-1]), weight.transpose(1, 2)
    y = torch.bmm(tokens, chosen) if bias is None else torch.baddbmm(bias.unsqueeze(1), tokens, chosen)
    return y.reshape(*x.shape[:-1], -1)


def linear_and(
    x: Float[Tensor, "B *T in"],
    weight: Float[Tensor, "out in"],
    bias: Float[Tensor, " out"] | None,
    s: Float[Tensor, "B *T r"],
    wider: Float[Tensor, "*S out r"],
) -> Float[Tensor, "B *T out"]:
    """x Wᵀ + b + s Uᵀ for frozen W and b, in place of a sum; with each row's own U when it is a slab."""
    if torch.compiler.is_compiling():
        # A compiler chooses by itself what is kept and what is added in place.
        return add_linear(F.linear(x, weight, bias), s, wider)
    y: Tensor = _LinearAnd.apply(x, weight, bias, s, wider)  # type: ignore[no-untyped-call]
    return y


class _LinearAnd(torch.autograd.Function):
    """Keeps s and U for the backward pass, and neither x nor a copy of what is added to."""

    @staticmethod
    def forward(x: Tensor, weight: Tensor, bias: Tensor | None, s: Tensor, wider: Tensor) -> Tensor:
        y = F.linear(x, weight, bias)
        rows, narrow = _by_slot(y, wider), _by_slot(s, wider)
        rows.baddbmm_(narrow, wider.transpose(1, 2)) if wider.dim() == 3 else rows.addmm_(narrow, wider.T)
        return y

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        _, weight, _, s, wider = inputs
        ctx.save_for_backward(weight, s, wider)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        weight, s, wider = ctx.saved_tensors
        needs_x, _, _, needs_s, needs_wider = ctx.needs_input_grad
        rows = _by_slot(gradient, wider)
        of_x = gradient @ weight if needs_x else None
        of_s = (rows @ wider).reshape(s.shape) if needs_s else None
        of_wider = rows.transpose(-1, -2) @ _by_slot(s, wider) if needs_wider else None
        return of_x, None, None, of_s, of_wider


def _by_slot(x: Float[Tensor, "B *T d"], weight: Float[Tensor, "*S out in"]) -> Float[Tensor, "*S rows d"]:
    """x with its rows in one dimension, after that of the slots."""
    return x.reshape(*weight.shape[:-2], -1, x.shape[-1])


def add_linear(
    y: Float[Tensor, "B *T out"], x: Float[Tensor, "B *T in"], weight: Float[Tensor, "*S out in"]
) -> Float[Tensor, "B *T out"]:
    """y + x Wᵀ in one product, with each row's own W when it is a slab."""
    width = x.shape[-1]
    if weight.dim() == 2:
        return torch.addmm(y.reshape(-1, y.shape[-1]), x.reshape(-1, width), weight.T).reshape(y.shape)
    slots = len(weight)
    added = torch.baddbmm(y.reshape(slots, -1, y.shape[-1]), x.reshape(slots, -1, width), weight.transpose(1, 2))
    return added.reshape(y.shape)


def scale(x: Float[Tensor, "B *T out"], v: Float[Tensor, "*S out"]) -> Float[Tensor, "B *T out"]:
    """y = x ⊙ v, with each row's own v when it is a slab."""
    return x * per_row(v, x)


def per_row(v: Float[Tensor, "*S out"], x: Float[Tensor, "B *T out"]) -> Tensor:
    """A vector as it broadcasts against x: itself, or each row's own."""
    if v.dim() == 1:
        return v
    return each(v, len(x)).reshape(len(x), *(1,) * (x.dim() - 2), v.shape[-1])
