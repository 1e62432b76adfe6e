"""Parts with a layer norm behind them, as units that are divided by its deviation; see `graftwork.ops.unitnorms`."""

from collections.abc import Sequence
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor

from graftwork.ops import Fused, UnitNorms


def with_norm(part: Fused, gain: Tensor, bias: Tensor, always: Tensor) -> Fused:
    """A part with a layer norm over what it adds.

    Args:
        part: without gates and norms.
        gain: of the norm, (d).
        bias: of the norm, (d); one more unit adds it, which the norm leaves as it is.
        always: what a unit of the part's activation says of 1.
    """
    centred = part.up - part.up.mean(dim=0)
    count = len(part.down)
    of_part = F.pad(gain.new_ones(1, count), (0, 1))
    gram = F.pad(centred.T @ centred / len(centred), (0, 1, 0, 1))
    return replace(
        part,
        down=F.pad(part.down, (0, 0, 0, 1)),
        down_bias=F.pad(part.down_bias, (0, 1), value=1.0),
        up=torch.cat([gain[:, None] * centred, bias[:, None] / always], dim=1),
        norms=UnitNorms(gram=gram, members=of_part, outside=1 - of_part[0]),
    )


def norms_of(parts: Sequence[Fused]) -> UnitNorms | None:
    """The norms of parts whose units stand side by side; None where none has any."""
    if all(part.norms is None for part in parts):
        return None
    own = [part.norms or _none(part) for part in parts]
    return UnitNorms(
        gram=torch.block_diag(*(norms.gram for norms in own)),  # type: ignore[no-untyped-call]
        members=torch.block_diag(*(norms.members for norms in own)),  # type: ignore[no-untyped-call]
        outside=torch.cat([norms.outside for norms in own]),
    )


def _none(part: Fused) -> UnitNorms:
    """No norm, for as many units as a part has."""
    like, count = part.down, len(part.down)
    return UnitNorms(gram=like.new_zeros(count, count), members=like.new_zeros(0, count), outside=like.new_ones(count))
