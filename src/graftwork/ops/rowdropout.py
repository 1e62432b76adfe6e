"""Dropout of the input of a matrix whose rows belong to several parts, each with dropout of its own."""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from graftwork.ops import routing
from graftwork.ops.routing import Blocks


@dataclass(frozen=True)
class RowDropout:
    """That what rows `start` to `stop` of a matrix are multiplied with has dropout in training.

    Attributes:
        p: the share that is dropped.
    """

    start: int
    stop: int
    p: float

    def behind(self, rows: int) -> "RowDropout":
        """The same where so many rows stand before the matrix."""
        return replace(self, start=self.start + rows, stop=self.stop + rows)


Dropouts = tuple[RowDropout, ...]
"""Those of a matrix, in the order of its rows. Rows of none have the input as it is."""


def linear_of_dropped(
    x: Float[Tensor, "B *T in"],
    weight: Float[Tensor, "*S out in"],
    bias: Float[Tensor, "*S out"] | None,
    blocks: Blocks | None,
    dropouts: Dropouts,
) -> Float[Tensor, "B *T out"]:
    """W x + b, in which each stretch of rows has an input that is dropped by itself. Without dropouts one product."""
    if not dropouts:
        return routing.linear(x, weight, bias, blocks)
    pieces = [
        routing.linear(
            F.dropout(x, own.p) if own.p else x,
            weight[..., own.start : own.stop, :],
            None if bias is None else bias[..., own.start : own.stop],
            blocks,
        )
        for own in _stretches(dropouts, weight.shape[-2])
    ]
    return torch.cat(pieces, dim=-1)


def _stretches(dropouts: Dropouts, rows: int) -> Iterator[RowDropout]:
    """All rows of a matrix: those between dropouts as stretches of which nothing is dropped."""
    at = 0
    for own in (*dropouts, RowDropout(rows, rows, 0.0)):
        if at < own.start:
            yield RowDropout(at, own.start, 0.0)
        if own.start < own.stop:
            yield own
        at = own.stop
