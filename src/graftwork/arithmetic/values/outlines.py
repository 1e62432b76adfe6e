"""Weights that have names, shapes and types alone: what is refused before numbers are read is refused of them, too."""

from collections.abc import Mapping

import torch
from torch import Tensor

from graftwork.arithmetic.values.running import Piece
from graftwork.arithmetic.values.sources import Source
from graftwork.arithmetic.values.weights import Weights


class NoNumbersError(Exception):
    """Numbers of weights that have none are asked for."""


class _Outline(Source):
    """Tensors without numbers.

    Args:
        shapes: the shape of each.
        dtypes: the type of each; None: float32.
    """

    def __init__(self, shapes: Mapping[str, tuple[int, ...]], dtypes: Mapping[str, torch.dtype] | None = None) -> None:
        self.shapes = shapes
        self.dtypes = dict.fromkeys(shapes, torch.float32) if dtypes is None else dtypes

    def read(self, piece: Piece) -> Tensor:
        raise NoNumbersError(piece.name)


def outlined(shapes: Mapping[str, tuple[int, ...]], dtypes: Mapping[str, torch.dtype] | None = None) -> Weights:
    """Weights without numbers.

    Args:
        shapes: the shape of each tensor.
        dtypes: the type of each; None: float32.
    """
    return Weights(_Outline(shapes, dtypes))
