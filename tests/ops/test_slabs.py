"""Slabs: adapters of one layout are one part, whose slots are what each of them is."""

import pytest
import torch

from graftwork.ops import Bottleneck, Gated, LowRank
from graftwork.ops.slabs import Packed, stacked

D, R = 4, 2


def random(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).requires_grad_()


def low_rank(seed, rank=R):
    return LowRank(A=random(rank, D, seed=seed), B=random(D, rank, seed=seed + 1), dropout=0.1)


def ops_of(seed, rank=R):
    """Ops with a tensor that two of them have, and with ops inside an op."""
    A = random(rank, D, seed=seed)
    pair = [LowRank(A=A, B=random(D, rank, seed=seed + place)) for place in (1, 2)]
    gated = Gated(ops=(low_rank(seed + 3, rank),), weight=random(1, D, seed=seed + 5), bias=random(1, seed=seed + 6))
    return {"first": [pair[0], gated], "second": [pair[1]]}


def tensors_of(ops):
    return [tensor for acting in ops.values() for op in acting for tensor in op.numbers()]


@pytest.mark.parametrize("in_a_row", [False, True])
def test_packed_ops_are_what_they_were(in_a_row):
    ops = ops_of(0)
    packed = Packed.of(ops)
    found = (packed.to_row(torch.float64, torch.device("cpu")) if in_a_row else packed).ops()
    assert [type(op) for op in found["first"]] == [LowRank, Gated]
    assert found["first"][1].ops[0].dropout == 0.1
    assert found["first"][0].A is found["second"][0].A
    for own, expected in zip(tensors_of(found), tensors_of(ops), strict=True):
        assert torch.equal(own, expected)


@pytest.mark.parametrize("in_a_row", [False, True])
def test_adapters_of_one_layout_that_stand_together_are_one_part(in_a_row):
    adapters = [ops_of(0), ops_of(10), ops_of(20, rank=R + 1), ops_of(30)]
    packed = [Packed.of(ops) for ops in adapters]
    rows = [own.to_row(torch.float64, torch.device("cpu")) for own in packed] if in_a_row else packed
    parts = stacked(rows, torch.float64)
    assert [part.slots for part in parts] == [2, 1, 1]
    of_each = [[tensor[slot] for tensor in tensors_of(part.ops)] for part in parts for slot in range(part.slots)]
    for found, ops in zip(of_each, adapters, strict=True):
        for own, expected in zip(found, tensors_of(ops), strict=True):
            assert torch.equal(own, expected)


def test_gradients_flow_through_stacked_tensors_in_another_precision():
    adapters = [ops_of(0), ops_of(10)]
    [part] = stacked([Packed.of(ops) for ops in adapters], torch.float32)
    found = tensors_of(part.ops)
    assert {tensor.dtype for tensor in found} == {torch.float32}
    sum(((slot + 1) * tensor[slot]).sum() for slot in range(2) for tensor in found).backward()
    for slot, ops in enumerate(adapters):
        # A stands at two sites.
        assert torch.equal(ops["first"][0].A.grad, torch.full((R, D), 2.0 * (slot + 1), dtype=torch.float64))
        assert torch.equal(ops["second"][0].B.grad, torch.full((D, R), 1.0 * (slot + 1), dtype=torch.float64))


def test_ops_of_other_kinds_or_settings_have_other_layouts():
    op = low_rank(0)
    bottleneck = {"down": random(R, D), "down_bias": random(R), "up": random(D, R), "up_bias": random(D)}
    others = [
        {"first": [op]},
        {"second": [op]},
        {"first": [op, low_rank(2)]},
        {"first": [LowRank(A=op.A, B=op.B)]},
        {"first": [low_rank(0, rank=R + 1)]},
        {"first": [Bottleneck(**bottleneck, activation="gelu")]},
        {"first": [Bottleneck(**bottleneck, activation="relu")]},
    ]
    # All of them kept: the place of one that has gone may be another one's.
    layouts = [Packed.of(ops).layout for ops in others]
    assert len({*map(id, layouts)}) == len(others)
    assert Packed.of({"first": [low_rank(8)]}).layout is layouts[0]
