"""The attention function against a softmax written out by hand in float64."""

import pytest
import torch
import torch.nn as nn
from closeness import PASS, close
from tiny import make_batch, make_model
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from graftwork.backbones import attention as ours
from graftwork.backbones import blockwise as blocks
from graftwork.backbones.attention import Rows, attention

B, H, Q, E, L = 2, 4, 5, 8, 3


def random(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def make_qkv(keys: int = Q, heads: int = H, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor, Tensor]:
    return (
        random(B, H, Q, E, seed=1, dtype=dtype),
        random(B, heads, keys, E, seed=2, dtype=dtype),
        random(B, heads, keys, E, seed=3, dtype=dtype),
    )


def by_hand(q, k, v, sees=None, bias=None, scaling=E**-0.5, softcap=None) -> Tensor:
    """(B, Q, h, e), one query at a time: a softmax over the keys that it sees."""
    k, v = (t.repeat_interleave(q.shape[1] // t.shape[1], dim=1) for t in (k, v))
    out = torch.zeros_like(q)
    for b in range(q.shape[0]):
        for h in range(q.shape[1]):
            for i in range(q.shape[2]):
                scores = (k[b, h] @ q[b, h, i]) * scaling
                if softcap is not None:
                    scores = softcap * torch.tanh(scores / softcap)
                if bias is not None:
                    scores = scores + bias.expand(q.shape[0], q.shape[1], -1, -1)[b, h, i]
                seen = torch.ones_like(scores, dtype=torch.bool)
                if sees is not None:
                    seen = sees.expand(q.shape[0], q.shape[1], q.shape[2], -1)[b, h, i]
                weights = torch.where(seen, scores.exp(), torch.zeros_like(scores))
                out[b, h, i] = (weights / weights.sum()) @ v[b, h]
    return out.transpose(1, 2)


def call(q, k, v, mask=None, *, causal=False, **options) -> Tensor:
    module = nn.Module()
    module.is_causal, module.num_key_value_groups = causal, q.shape[1] // k.shape[1]
    output, weights = attention(module, q, k, v, mask, **options)
    assert weights is None
    return output


def make_rows(length: int = L, batch: int | None = None, heads: int = H) -> Rows:
    shape = (heads, length, E) if batch is None else (batch, heads, length, E)
    return Rows(random(*shape, seed=4), random(*shape, seed=5))


def with_rows(k: Tensor, v: Tensor, rows: Rows) -> tuple[Tensor, Tensor]:
    keys, values = (t.expand(k.shape[0], *t.shape[-3:]) for t in (rows.keys, rows.values))
    return torch.cat([keys, k], dim=2), torch.cat([values, v], dim=2)


PADDED = torch.tensor([[True] * Q, [True] * 3 + [False] * 2])[:, None, None, :].expand(B, 1, Q, Q)
LOWER = torch.ones(Q, Q, dtype=torch.bool).tril()[None, None]


def as_float(mask: Tensor) -> Tensor:
    return torch.zeros(mask.shape, dtype=torch.float64).masked_fill(~mask, torch.finfo(torch.float64).min)


@pytest.mark.parametrize("scaling", [None, 0.7])
@pytest.mark.parametrize("mask", [None, PADDED, PADDED & LOWER, as_float(PADDED), as_float(LOWER)])
def test_without_rows(mask, scaling):
    q, k, v = make_qkv()
    sees = mask if mask is None or mask.dtype == torch.bool else mask == 0
    expected = by_hand(q, k, v, sees, scaling=scaling or E**-0.5)
    close(call(q, k, v, mask, scaling=scaling), expected)


@pytest.mark.parametrize("batch", [None, B])
@pytest.mark.parametrize("mask", [None, PADDED, as_float(PADDED), as_float(LOWER)])
def test_rows_stand_before_the_keys_and_every_query_sees_them(mask, batch):
    q, k, v = make_qkv()
    rows = make_rows(batch=batch)
    sees = torch.ones(1, 1, Q, Q, dtype=torch.bool) if mask is None else mask
    sees = sees if sees.dtype == torch.bool else sees == 0
    sees = torch.cat([torch.ones(*sees.shape[:3], L, dtype=torch.bool), sees], dim=-1)
    expected = by_hand(q, *with_rows(k, v, rows), sees)
    close(call(q, k, v, mask, rows=rows), expected)


def test_a_causal_module_without_a_mask_is_causal():
    q, k, v = make_qkv()
    close(call(q, k, v, causal=True), by_hand(q, k, v, LOWER))
    close(call(q, k, v, is_causal=True), by_hand(q, k, v, LOWER))
    close(call(q, k, v, causal=True, is_causal=False), by_hand(q, k, v))


@pytest.mark.parametrize("batch", [None, B])
def test_a_causal_module_with_rows_is_still_causal(batch):
    q, k, v = make_qkv()
    rows = make_rows(batch=batch)
    sees = torch.cat([torch.ones(1, 1, Q, L, dtype=torch.bool), LOWER], dim=-1)
    expected = by_hand(q, *with_rows(k, v, rows), sees)
    close(call(q, k, v, causal=True, rows=rows), expected)


def test_one_query_of_a_causal_module_sees_the_rows_and_every_cached_key():
    q, k, v = make_qkv()
    rows = make_rows()
    expected = by_hand(q[:, :, :1], *with_rows(k, v, rows))
    close(call(q[:, :, :1], k, v, causal=True, rows=rows), expected)


def test_rows_are_a_gate():
    """att([P; K]) = (1 - g) att(K) + g att(P), with g the mass of the attention on the rows."""
    q, k, v = make_qkv()
    rows = make_rows(batch=B)
    scale = E**-0.5
    on_rows = (torch.einsum("bhqe,bhle->bhql", q, rows.keys) * scale).exp().sum(-1)
    on_keys = (torch.einsum("bhqe,bhte->bhqt", q, k) * scale).exp().sum(-1)
    g = (on_rows / (on_rows + on_keys)).transpose(1, 2)[..., None]
    expected = (1 - g) * call(q, k, v) + g * by_hand(q, rows.keys, rows.values)
    close(call(q, k, v, rows=rows), expected)


@pytest.mark.parametrize("mask", [None, PADDED, as_float(PADDED)])
def test_batch_rows_of_different_lengths_equal_each_alone(mask):
    q, k, v = make_qkv()
    long = make_rows(length=L, batch=B)
    lengths = (1, L)
    seen = torch.arange(L) < torch.tensor(lengths)[:, None]
    together = call(q, k, v, mask, rows=long._replace(seen=seen))
    for b, length in enumerate(lengths):
        alone = Rows(long.keys[b : b + 1, :, :length], long.values[b : b + 1, :, :length])
        one = slice(b, b + 1)
        expected = call(q[one], k[one], v[one], None if mask is None else mask[one], rows=alone)
        close(together[one], expected)


def test_a_row_of_the_batch_without_any_rows_is_as_if_there_were_none():
    q, k, v = make_qkv()
    seen = torch.tensor([[False] * L, [True] * L])
    together = call(q, k, v, rows=make_rows(batch=B)._replace(seen=seen))
    close(together[:1], call(q[:1], k[:1], v[:1]))


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("mask", [None, PADDED & LOWER, as_float(PADDED & LOWER)])
def test_position_bias_is_added_to_the_keys_and_not_to_the_rows(mask, causal):
    q, k, v = make_qkv()
    bias = random(1, H, Q, Q, seed=6)
    sees = PADDED & LOWER if mask is not None else LOWER if causal else torch.ones(1, 1, Q, Q, dtype=torch.bool)
    close(call(q, k, v, mask, causal=causal, position_bias=bias), by_hand(q, k, v, sees, bias))
    rows = make_rows()
    wide = torch.cat([torch.zeros(1, H, Q, L, dtype=torch.float64), bias], dim=-1)
    sees = torch.cat([torch.ones(*sees.shape[:3], L, dtype=torch.bool), sees], dim=-1)
    expected = by_hand(q, *with_rows(k, v, rows), sees, wide)
    close(call(q, k, v, mask, causal=causal, position_bias=bias, rows=rows), expected)


@pytest.mark.parametrize("mask", [None, PADDED, as_float(LOWER)])
def test_capped_scores(mask):
    q, k, v = make_qkv(heads=2)
    rows = make_rows(heads=2)
    sees = mask if mask is None or mask.dtype == torch.bool else mask == 0
    close(call(q, k, v, mask, softcap=0.8), by_hand(q, k, v, sees, softcap=0.8))
    close(call(q, k, v, causal=True, softcap=0.8), by_hand(q, k, v, LOWER, softcap=0.8))
    sees = torch.ones(1, 1, Q, Q, dtype=torch.bool) if sees is None else sees
    sees = torch.cat([torch.ones(*sees.shape[:3], L, dtype=torch.bool), sees], dim=-1)
    expected = by_hand(q, *with_rows(k, v, rows), sees, softcap=0.8)
    close(call(q, k, v, mask, rows=rows, softcap=0.8), expected)


@pytest.mark.parametrize("mask", [None, PADDED])
def test_fewer_key_value_heads_than_query_heads(mask):
    q, k, v = make_qkv(heads=2)
    rows = make_rows(heads=2)
    close(call(q, k, v, mask), by_hand(q, k, v, mask))
    sees = mask if mask is None else torch.cat([torch.ones(B, 1, Q, L, dtype=torch.bool), mask], dim=-1)
    expected = by_hand(q, *with_rows(k, v, rows), sees)
    close(call(q, k, v, mask, rows=rows), expected)


def test_rows_take_the_precision_of_the_keys_and_gradients_reach_them():
    q, k, v = make_qkv()
    rows = Rows(*(t.float().requires_grad_() for t in make_rows()[:2]))
    output = call(q, k, v, rows=rows)
    assert output.dtype == torch.float64
    output.square().sum().backward()
    assert all(t.grad.abs().min() > 0 for t in rows[:2])


# -- the half-precision path with plain products -------------------------------------------------------------------


def count_products(monkeypatch) -> list:
    calls = []
    products = ours.blockwise

    def counted(*args):
        calls.append(args)
        return products(*args)

    monkeypatch.setattr(ours, "blockwise", counted)
    return calls


MASKS = {"none": None, "bool": PADDED, "float": as_float(PADDED), "queries": as_float(PADDED & LOWER)}


@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("block", [1, 2 * H * Q * Q, 1 << 20])
def test_blocks_of_any_size_have_the_outputs_and_gradients_of_products(mask, block, monkeypatch):
    monkeypatch.setattr(blocks, "BLOCK", block)
    given = [t.requires_grad_() for t in make_qkv()]
    found = blocks.blockwise(*given, MASKS[mask], 0.3, ours._products)
    expected, _ = ours._products(*given, MASKS[mask], 0.0, 0.3)
    close(found, expected)
    assert found.is_contiguous()
    along = random(*found.shape, seed=8)
    every = torch.autograd.grad(expected, given, along)
    for own, other in zip(torch.autograd.grad(found, given, along), every, strict=True):
        close(own, other)
    for i in range(3):
        some = [t.detach().requires_grad_(i == j) for j, t in enumerate(given)]
        output = blocks.blockwise(*some, MASKS[mask], 0.3, ours._products)
        close(torch.autograd.grad(output, some[i], along)[0], every[i])


def test_blocks_are_derived_twice():
    given = [t.requires_grad_() for t in make_qkv()]
    function = lambda *qkv: blocks.blockwise(*qkv, as_float(PADDED), None, ours._products)  # noqa: E731
    assert gradcheck(function, given, fast_mode=True)
    assert gradgradcheck(function, given, fast_mode=True)


def test_blocks_are_not_for_transforms():
    assert blocks.suits()
    asked = []
    torch.func.vmap(lambda x: asked.append(blocks.suits()) or x)(torch.ones(2))
    assert asked == [False]


@pytest.mark.parametrize("with_mask", ["none", "bool", "float"])
@pytest.mark.parametrize("prefix", [False, True])
def test_half_precision_products_equal_the_fused_kernel(monkeypatch, with_mask, prefix):
    calls = count_products(monkeypatch)
    q, k, v = make_qkv(dtype=torch.bfloat16)
    mask = {"none": None, "bool": PADDED, "float": as_float(PADDED).bfloat16().clamp(min=-1e30)}[with_mask]
    rows = make_rows() if prefix else None
    fused = call(q, k, v, mask, rows=rows)
    assert not calls
    plain = call(q.requires_grad_(), k, v, mask, rows=rows)
    assert len(calls) == 1
    assert (plain.shape, plain.dtype, plain.is_contiguous()) == (fused.shape, fused.dtype, True)
    # Scores of up to about 4 and weights of at most 1, each rounded to 8 bits; then sums of up to 8 terms.
    close(plain, fused, 4)
    sees = None if mask is None else PADDED
    k, v = (t.double() for t in (k, v))
    if rows is not None:
        k, v = with_rows(k, v, Rows(*(t.bfloat16().double() for t in rows[:2])))
        sees = None if sees is None else torch.cat([torch.ones(B, 1, Q, L, dtype=torch.bool), sees], dim=-1)
    close(plain.double(), by_hand(q.double(), k, v, sees), 4, precision=torch.bfloat16)


def test_products_are_exact_where_the_arithmetic_is(monkeypatch):
    calls = count_products(monkeypatch)
    monkeypatch.setattr(ours, "_products_are_faster", lambda query, key, value: True)
    q, k, v = make_qkv()
    for mask in (None, PADDED, as_float(PADDED)):
        sees = None if mask is None else PADDED
        close(call(q, k, v, mask), by_hand(q, k, v, sees))
    assert len(calls) == 3
    close(call(q, k, v, causal=True), by_hand(q, k, v, LOWER))
    bias = random(1, H, Q, Q, seed=6)
    close(call(q, k, v, position_bias=bias), by_hand(q, k, v, None, bias))
    assert len(calls) == 3


def test_products_are_for_short_half_precision_with_gradients_only():
    q, k, v = (t.requires_grad_() for t in make_qkv(dtype=torch.bfloat16))
    assert ours._products_are_faster(q, k, v)
    assert ours._products_are_faster(q.detach(), k.detach(), v)
    assert not ours._products_are_faster(q.float(), k.float(), v.float())
    assert not ours._products_are_faster(q.detach(), k.detach(), v.detach())
    assert not ours._products_are_faster(q, k[:, :2], v)
    assert not ours._products_are_faster(q, k[:, :, :1].expand(B, H, ours.SHORT, E), v)
    assert ours._products_are_faster(q, k[:, :, :1].expand(B, H, ours.SHORT - 1, E), v)
    with torch.no_grad():
        assert not ours._products_are_faster(q, k, v)


def test_dropout_acts_on_the_weights(monkeypatch):
    monkeypatch.setattr(ours, "_products_are_faster", lambda query, key, value: True)
    q, k, v = make_qkv()
    weights = torch.softmax(q @ k.transpose(2, 3) * E**-0.5, dim=-1)
    torch.manual_seed(7)
    found = call(q, k, v, dropout=0.4)
    torch.manual_seed(7)
    kept = torch.nn.functional.dropout(torch.ones_like(weights), 0.4)
    assert 0 < int((kept == 0).sum()) < kept.numel()
    close(found, ((weights * kept) @ v).transpose(1, 2))


def test_dropout_reaches_the_fused_kernel():
    q, k, v = make_qkv()
    module = nn.Module()
    module.is_causal = False
    torch.manual_seed(7)
    found = call(q, k, v, dropout=0.4)
    torch.manual_seed(7)
    expected, _ = sdpa_attention_forward(module, q, k, v, None, dropout=0.4)
    assert torch.equal(found, expected)
    assert not torch.equal(found, call(q, k, v))


# -- inside a model ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("other", ["sdpa", "eager"])
@pytest.mark.parametrize("lengths", [(7, 7), (7, 4)])
@pytest.mark.parametrize("kind", ["bert", "distilbert"])
def test_an_encoder_computes_the_same(kind, lengths, other):
    batch = make_batch(*lengths)
    model = make_model(kind, dtype=torch.float64)
    with torch.no_grad():
        model.set_attn_implementation(other)
        expected = model(**batch).last_hidden_state
        model.set_attn_implementation("graftwork")
        found = model(**batch).last_hidden_state
    real = batch["attention_mask"].bool()
    close(found[real], expected[real], PASS)


@pytest.mark.parametrize("lengths", [(7, 7), (7, 4)])
def test_a_causal_decoder_computes_the_same(lengths):
    batch = make_batch(*lengths)
    model = make_model("bert", dtype=torch.float64, is_decoder=True)
    with torch.no_grad():
        model.set_attn_implementation("eager")
        expected = model(**batch, use_cache=False).last_hidden_state
        model.set_attn_implementation("graftwork")
        found = model(**batch, use_cache=False).last_hidden_state
        shorter = model(batch["input_ids"][:, :4], use_cache=False).last_hidden_state
    real = batch["attention_mask"].bool()
    close(found[real], expected[real], PASS)
    close(found[:, :4], shorter, PASS)
