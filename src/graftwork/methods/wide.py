"""Wide bottlenecks: what acts at a site for each of several parts, as one op."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor

from graftwork.errors import MethodError
from graftwork.ops import Bottleneck, Fused, LowRank, Op, PartGates

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
        if op.dropout:
            raise refusal(
                method,
                part,
                op,
                "its dropout is of the input to one part only",
                expected="trained parts without dropout",
            )
        zeros = op.A.new_zeros
        return Fused(
            down=op.A,
            down_bias=zeros(len(op.A)),
            up=op.B,
            constants=zeros(len(op.B), 1),
            activations=("identity",),
            at="linear",
        )
    assert isinstance(op, Bottleneck)
    wrong = {
        "it has several layers (depth)": op.hidden is not None,
        "it has a layer norm of its own (layer_norm)": op.norm_gain is not None,
        "it multiplies (interaction)": op.multiply,
    }
    for why, found in wrong.items():
        if found:
            raise refusal(method, part, op, why, expected="bottlenecks of one layer that add")
    return Fused(
        down=op.down,
        down_bias=op.down_bias,
        up=op.up,
        constants=op.up_bias[:, None],
        activations=(op.activation,),
        at=op.at,
        source=op.source,
    )


def side_by_side(parts: Sequence[Fused]) -> tuple[Fused, Tensor, Tensor]:
    """Several as one, whose output is the sum of theirs; and which units (N, M) and constants (N, C) are whose."""
    sizes = [part.down.shape[0] for part in parts]
    counts = [part.constants.shape[1] for part in parts]
    names = tuple(dict.fromkeys(name for part in parts for name in part.activations))
    gates: list[PartGates] = []
    for i, part in enumerate(parts):
        units, constants = _around(sizes, i), _around(counts, i)
        gates += [_shifted(gate, units, constants) for gate in part.gates]
    first = parts[0]
    selects = [_selects(part, names) for part in parts]
    whole = replace(
        first,
        down=torch.cat([part.down for part in parts]),
        down_bias=torch.cat([part.down_bias for part in parts]),
        up=torch.cat([part.up for part in parts], dim=1),
        constants=torch.cat([part.constants for part in parts], dim=1),
        activations=names,
        selects=torch.cat(selects, dim=1) if len(names) > 1 else None,
        gates=tuple(gates),
    )
    return whole, _members(first.down, sizes), _members(first.down, counts)


def scaled(part: Fused, weight: Tensor) -> Fused:
    """A part whose output is multiplied by a number."""
    return replace(part, up=part.up * weight, constants=part.constants * weight)


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


def _members(like: Tensor, sizes: Sequence[int]) -> Tensor:
    blocks: Tensor = torch.block_diag(*(like.new_ones(1, size) for size in sizes))  # type: ignore[no-untyped-call]
    return blocks


def _shifted(gate: PartGates, units: tuple[int, int], constants: tuple[int, int]) -> PartGates:
    """A gate of one part, among all: it leaves what is of others as it is."""

    def rows(tensor: Tensor | None, room: tuple[int, int]) -> Tensor | None:
        return None if tensor is None else F.pad(tensor, (0, 0, *room) if tensor.dim() == 2 else room)

    def outside(own: Tensor | None, size: int, room: tuple[int, int]) -> Tensor:
        return F.pad(gate.members.new_zeros(size) if own is None else own, room, value=1.0)

    return replace(
        gate,
        members=F.pad(gate.members, units),
        constant_members=F.pad(gate.constant_members, constants),
        score=rows(gate.score, units),
        score_bias=rows(gate.score_bias, units),
        constant_score=rows(gate.constant_score, constants),
        constant_score_bias=rows(gate.constant_score_bias, constants),
        outside=outside(gate.outside, gate.members.shape[1], units),
        constant_outside=outside(gate.constant_outside, gate.constant_members.shape[1], constants),
    )
