"""Low-rank op: y + B(A x) at a linear site (LoRA and its relatives lower to it)."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import ClassVar, TypeGuard

import torch
import torch.nn as nn
from jaxtyping import Float
from torch import Tensor

from graftwork.backbones import SiteKind
from graftwork.ops import routing
from graftwork.ops.op import Forward, Op, Place
from graftwork.ops.routing import Blocks, Route
from graftwork.ops.rowdropout import Dropouts, RowDropout, linear_of_dropped
from graftwork.ops.tensortree import Copy


@dataclass(frozen=True)
class Joint:
    """That an op's A stands in one tensor with those of other sites, which are given the same input.

    Attributes:
        name: of the tensor, in the sub-layer.
        place: which of them this op's is.
    """

    name: str
    place: int


@dataclass(frozen=True, kw_only=True)
class LowRank(Op):
    """y = W x + b + B A dropout(x) (Hu et al. 2021, eq. 3, with any scale inside B).

    Shapes: A (r, in), or (g, r, in) for g sites with one input, B (out, r), each with a leading slot dimension in a
    slab. Padding the rank with zeros is exact.

    Attributes:
        dropout: of the input to A, in training.
        dropouts: of the input to some of A's rows, in training, where it is made of several parts. It has either.
        joint: None for an A of its own.
        blocks: in which the rows stand, in a slab; None for groups of equal size.
    """

    A: Float[Tensor, "*S r in"]
    B: Float[Tensor, "*_ out r"]
    dropout: float = 0.0
    dropouts: Dropouts = ()
    joint: Joint | None = None
    blocks: Blocks | None = None

    kinds: ClassVar[frozenset[SiteKind]] = frozenset({"linear"})

    def around(self, forward: Forward, place: Place) -> Forward:
        def low_rank(x: Tensor) -> Tensor:
            shrunk = self._shrunk(x, place)
            if _is_plain(forward):
                return routing.linear_and(x, forward.weight, forward.bias, shrunk, self.B, self.blocks)
            return routing.add_linear(forward(x), shrunk, self.B, self.blocks)

        return low_rank

    def into(self, frozen: Mapping[str, Tensor]) -> dict[str, Tensor]:
        difference = self.B.double() @ self.A.double()
        return {**frozen, "weight": (frozen["weight"].double() + difference).to(frozen["weight"])}

    def for_inference(self) -> "LowRank":
        return replace(self, dropout=0.0, dropouts=()) if self.row_dropouts else self

    @property
    def row_dropouts(self) -> Dropouts:
        """Of the input to A's rows."""
        return (RowDropout(0, self.A.shape[-2], self.dropout),) if self.dropout else self.dropouts

    def spread(self, route: Route) -> "LowRank":
        return super().spread(route) if route.blocks is None else replace(self, blocks=route.blocks)

    def laid_out(self, copy: Copy) -> "LowRank":
        return replace(self, A=copy(self.A), B=copy(self.B, transposed=True))

    def _shrunk(self, x: Tensor, place: Place) -> Tensor:
        """A dropout(x), of which the first of the sites with one input computes all, and the last forgets them."""
        dropouts = self.row_dropouts if place.training else ()
        if self.joint is None or dropouts:
            A = self.A if self.joint is None else self.A[..., self.joint.place, :, :]
            return linear_of_dropped(x, A, None, self.blocks, dropouts)
        given, products, uses = place.memory.pop(self.joint.name, (None, None, 0))
        if given is not x:
            products = routing.linear(x, self.A.flatten(-3, -2), blocks=self.blocks)
            products = products.reshape(*x.shape[:-1], *self.A.shape[-3:-1])
            uses = 0
        if uses + 1 < self.A.shape[-3]:
            place.memory[self.joint.name] = (x, products, uses + 1)
        shrunk: Tensor = products.select(-2, self.joint.place)
        return shrunk


def _is_plain(forward: Forward) -> TypeGuard[nn.Linear]:
    """Whether nothing but a frozen linear map runs there, in the precision in which it is held: no hook, and no forward
    that another library has put in its place."""
    return (
        type(forward) is nn.Linear
        and "forward" not in vars(forward)
        and not torch.is_autocast_enabled(forward.weight.device.type)
        and not forward.weight.requires_grad
        and not (forward._forward_hooks or forward._forward_pre_hooks)
        and not (forward._backward_hooks or forward._backward_pre_hooks)
    )
