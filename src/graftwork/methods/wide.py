"""Wide bottlenecks: what acts at a site for each of several parts, as one op."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor

from graftwork.errors import MethodError
from graftwork.methods.unitnorms import norms_of, with_norm
from graftwork.ops import Bottleneck, Fused, LowRank, Op, PartGates
from graftwork.ops.fused import UNIT_ACTIVATIONS
from graftwork.ops.rowdropout import Dropouts

COMBINABLE = (Bottleneck, LowRank, Fused)
"""The ops whose outputs are linear in a few units."""


def refusal(method: str, part: str, op: Op, why: str, *, expected: str = "", change: str = "the parts") -> MethodError:
    """The error for a part that a composition cannot combine."""
    return MethodError(
        f"{method} cannot combine part {part!r}, which has a {type(op).__name__} op: {why}",
        expected=expected or "parts of bottlenecks without trained norms, or of LoRA",
        change=change,
    )


def as_units(method: str, part: str, op: Op) -> Fused:
    """An op as units whose weighted sum is its output.

    Args:
        method: name of the composition, for errors.
        part: name of the part.
        op: one of `COMBINABLE`.

    Raises:
        MethodError: the op's output is no sum of units.
    """
    if isinstance(op, Fused):
        return op
    if isinstance(op, LowRank):
        return Fused(
            down=op.A,
            down_bias=op.A.new_zeros(len(op.A)),
            up=op.B,
            activations=("identity",),
            at="linear",
            dropouts=op.row_dropouts,
        )
    assert isinstance(op, Bottleneck)
    wrong = {
        "it has several layers (depth)": op.hidden is not None,
        "it has a layer norm over its input (layer_norm)": op.norm_gain is not None and op.norm_at == "input",
        "it multiplies (interaction)": op.multiply,
    }
    for why, found in wrong.items():
        if found:
            raise refusal(method, part, op, why, expected="bottlenecks of one layer that add, without layer_norm input")
    # One more unit says σ(1) for every x: its column of U is b_U / σ(1), so that it adds b_U.
    always = UNIT_ACTIVATIONS[op.activation](op.down_bias.new_ones(1))
    units = Fused(
        down=F.pad(op.down, (0, 0, 0, 1)),
        down_bias=F.pad(op.down_bias, (0, 1), value=1.0),
        up=torch.cat([op.up, op.up_bias[:, None] / always], dim=1),
        activations=(op.activation,),
        at=op.at,
        source=op.source,
    )
    if op.norm_gain is None or op.norm_bias is None:
        return units
    return with_norm(units, op.norm_gain, op.norm_bias, always)


def side_by_side(parts: Sequence[Fused]) -> tuple[Fused, Tensor]:
    """Several as one, whose output is the sum of theirs; and which units are whose, (N, M)."""
    sizes = [len(part.down) for part in parts]
    names = tuple(dict.fromkeys(name for part in parts for name in part.activations))
    gates: list[PartGates] = []
    for i, part in enumerate(parts):
        gates += [_shifted(gate, _around(sizes, i)) for gate in part.gates]
    first = parts[0]
    selects = [_selects(part, names) for part in parts]
    whole = replace(
        first,
        residual=next((part.residual for part in parts if part.residual is not None), None),
        down=torch.cat([part.down for part in parts]),
        down_bias=torch.cat([part.down_bias for part in parts]),
        up=torch.cat([part.up for part in parts], dim=1),
        activations=names,
        selects=torch.cat(selects, dim=1) if len(names) > 1 else None,
        norms=norms_of(parts),
        gates=tuple(gates),
        dropouts=one_after_the_other([(len(part.down), part.dropouts) for part in parts]),
    )
    members: Tensor = torch.block_diag(*(first.down.new_ones(1, n) for n in sizes))  # type: ignore[no-untyped-call]
    return whole, members


def one_after_the_other(each: Sequence[tuple[int, Dropouts]]) -> Dropouts:
    """The dropouts of matrices as of one with all their rows, by the number of rows of each and its own."""
    sizes = [size for size, _ in each]
    return tuple(dropout.behind(sum(sizes[:i])) for i, (_, own) in enumerate(each) for dropout in own)


def scaled(part: Fused, weight: Tensor) -> Fused:
    """A part whose output is multiplied by a number."""
    return replace(part, up=part.up * weight)


def averaged(values: Mapping[str, Tensor], weights: Mapping[str, Tensor]) -> Tensor:
    """Σ w_n v_n over parts."""
    return torch.stack([weights[name] * value for name, value in values.items()]).sum(dim=0)


def _selects(part: Fused, names: Sequence[str]) -> Tensor:
    """(K, M) over the names of all parts."""
    own = part.down.new_zeros(len(names), part.down.shape[0])
    rows = part.selects if part.selects is not None else part.down.new_ones(1, part.down.shape[0])
    for name, row in zip(part.activations, rows, strict=True):
        own[names.index(name)] = row
    return own


def _around(sizes: Sequence[int], i: int) -> tuple[int, int]:
    """How many stand before and behind those of one part."""
    return sum(sizes[:i]), sum(sizes[i + 1 :])


def _shifted(gate: PartGates, room: tuple[int, int]) -> PartGates:
    """A gate of one part, among all: it leaves what is of others as it is.

    Args:
        room: how many units stand before and behind those of the part.
    """
    if not any(room):
        return gate
    own = gate.members.new_zeros(gate.members.shape[1]) if gate.outside is None else gate.outside
    return replace(
        gate,
        members=F.pad(gate.members, room),
        score=None if gate.score is None else F.pad(gate.score, (0, 0, *room)),
        score_bias=None if gate.score_bias is None else F.pad(gate.score_bias, room),
        outside=F.pad(own, room, value=1.0),
    )
