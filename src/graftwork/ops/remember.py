"""Remember op: the input of a linear layer or a norm, kept for an op that acts later in the same sub-layer."""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from graftwork.backbones import SiteKind
from graftwork.ops.op import Forward, Op, Place


@dataclass(frozen=True, kw_only=True)
class Remember(Op):
    """Changes nothing. A parallel bottleneck acts at a sub-layer's result and reads the sub-layer's input; the query of
    a fusion there includes the residual, which enters the norm before the sub-layer.

    Attributes:
        key: under which the input stands in the pass's memory until it is overwritten.
    """

    key: str

    kinds: ClassVar[frozenset[SiteKind]] = frozenset({"linear", "norm"})
    unmergeable: ClassVar[str] = "what remembers it is not part of the sub-layer's weights"

    def around(self, forward: Forward, place: Place) -> Forward:
        def remembering(x: Tensor) -> Tensor:
            place.memory[self.key] = x
            y: Tensor = forward(x)
            return y

        return remembering
