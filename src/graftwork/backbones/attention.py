"""Our attention function, registered with transformers' attention and mask interfaces under the name `graftwork`.

It does two things that the stock functions do not: it prepends key-value rows (prefix tuning) while positions, caches
and masks of the real tokens stay as they are, and it chooses the kernel by device, precision, length and whether
gradients flow. Without rows to prepend it computes what `sdpa` computes.

Notation: B batch, h query heads, g key-value heads (g <= h), Q queries, T keys, l prepended rows, e head dimension.
"""

from typing import Any, NamedTuple

import torch
import torch.nn as nn
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from graftwork.backbones.blockwise import blockwise, suits

ATTENTION = "graftwork"

SHORT = 512
"""Below this many keys the backward pass of the CPU's half-precision fused kernel is slower than plain products."""


class Rows(NamedTuple):
    """Key-value rows to prepend.

    Shapes: keys and values (g, l, e) for all batch rows, or (B, g, l, e); seen (B, l), false where a row of the batch
    has fewer than l rows, or None when all are seen.
    """

    keys: Tensor
    values: Tensor
    seen: Tensor | None = None

    def before(self, other: "Rows") -> "Rows":
        """These rows, and behind them others for the same batch."""
        seen = None
        if self.seen is not None or other.seen is not None:
            batch = max(len(rows.seen) for rows in (self, other) if rows.seen is not None)
            seen = torch.cat([rows._all_seen(batch) for rows in (self, other)], dim=1)
        keys, values = (
            torch.cat(_as_wide(*pair), dim=-2) for pair in ((self.keys, other.keys), (self.values, other.values))
        )
        return Rows(keys, values, seen)

    def _all_seen(self, batch: int) -> Tensor:
        if self.seen is not None:
            return self.seen
        return torch.ones(batch, self.keys.shape[-2], dtype=torch.bool, device=self.keys.device)


def _as_wide(one: Tensor, other: Tensor) -> tuple[Tensor, Tensor]:
    """Both with a batch dimension where one of them has it."""
    if one.dim() == other.dim():
        return one, other
    if one.dim() < other.dim():
        return one.expand(len(other), *one.shape), other
    return one, other.expand(len(one), *other.shape)


def attention(
    module: nn.Module,
    query: Float[Tensor, "B h Q e"],
    key: Float[Tensor, "B g T e"],
    value: Float[Tensor, "B g T e"],
    attention_mask: Tensor | None,
    *,
    rows: Rows | None = None,
    dropout: float = 0.0,
    scaling: float | None = None,
    is_causal: bool | None = None,
    position_bias: Tensor | None = None,
    softcap: float | None = None,
    **kwargs: Any,
) -> tuple[Float[Tensor, "B Q h e"], Float[Tensor, "B h Q _"] | None]:
    """Attention over the keys and values and, before them, the given rows; and its weights, when they are asked for.

    Args:
        attention_mask: (B or 1, 1 or h, Q, T): bool with true where a query sees a key, or float to be added to the
            scores; None when all is seen, in which case a module that says that it is causal is so by itself.
        position_bias: (1 or B, h, Q, T), added to the scores; rows have none.
        softcap: scores s become c tanh(s / c) before anything is added to them (Gemma 2), those of rows too. No fused
            kernel does that.
    """
    # A module that says nothing was written for eager attention, to which no mask means that all is seen; stock `sdpa`
    # would take it for a causal one.
    causal = getattr(module, "is_causal", False) if is_causal is None else is_causal
    if rows is not None:
        if attention_mask is None and causal and query.shape[2] > 1:
            attention_mask = _causal_mask(query.shape[2], key.shape[2], query.device)
        attention_mask = _extend_mask(attention_mask, rows, query.shape[0], query.shape[2], key.shape[2])
        if position_bias is not None:
            position_bias = F.pad(position_bias, (rows.keys.shape[-2], 0))
        key = torch.cat([_for_batch(rows.keys, key), key], dim=2)
        value = torch.cat([_for_batch(rows.values, value), value], dim=2)
        causal = False
    asked = kwargs.pop("output_attentions", False)
    if asked or softcap is not None:
        if attention_mask is None and causal and query.shape[2] > 1:
            attention_mask = _causal_mask(query.shape[2], key.shape[2], query.device)
        groups = query.shape[1] // key.shape[1]
        key, value = key.repeat_interleave(groups, dim=1), value.repeat_interleave(groups, dim=1)
        output, weights = _products(query, key, value, attention_mask, dropout, scaling, position_bias, softcap)
        return output, weights if asked else None
    plain = attention_mask is not None or not causal or query.shape[2] == 1
    if plain and position_bias is None and _products_are_faster(query, key, value):
        if not dropout and suits():
            return blockwise(query, key, value, attention_mask, scaling, _products), None
        return _products(query, key, value, attention_mask, dropout, scaling)[0], None
    output, _ = sdpa_attention_forward(
        module,
        query,
        key,
        value,
        attention_mask,
        dropout=dropout,
        scaling=scaling,
        is_causal=causal,
        position_bias=position_bias,
        **kwargs,
    )
    return output, None


def _causal_mask(queries: int, keys: int, device: torch.device) -> Bool[Tensor, "1 1 Q T"]:
    """Query i sees keys 0..i: what a causal module does when it is given no mask."""
    order = torch.arange(keys, device=device) <= torch.arange(queries, device=device)[:, None]
    return order[None, None]


def _extend_mask(mask: Tensor | None, rows: Rows, batch: int, queries: int, keys: int) -> Tensor | None:
    """The mask over l + T keys; None stays None when every row is seen by every query."""
    if mask is None and rows.seen is None:
        return None
    if mask is None:
        mask = torch.ones(1, 1, queries, keys, dtype=torch.bool, device=rows.keys.device)
    length = rows.keys.shape[-2]
    seen = rows.seen if rows.seen is not None else mask.new_ones((1, length), dtype=torch.bool)
    seen = seen[:, None, None, :].expand(max(seen.shape[0], mask.shape[0]), mask.shape[1], queries, length)
    if mask.dtype != torch.bool:
        seen = torch.zeros_like(seen, dtype=mask.dtype).masked_fill(~seen, torch.finfo(mask.dtype).min)
    return torch.cat([seen, mask.expand(seen.shape[0], -1, -1, -1)], dim=-1)


def _for_batch(rows: Tensor, like: Tensor) -> Tensor:
    rows = rows.to(like)
    return rows if rows.dim() == 4 else rows.expand(like.shape[0], *rows.shape)


def _products_are_faster(query: Tensor, key: Tensor, value: Tensor) -> bool:
    return (
        query.device.type == "cpu"
        and query.dtype == torch.bfloat16
        and query.shape[1] == key.shape[1]
        and key.shape[2] < SHORT
        and torch.is_grad_enabled()
        and (query.requires_grad or key.requires_grad or value.requires_grad)
    )


def _products(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    dropout: float,
    scaling: float | None,
    position_bias: Tensor | None = None,
    softcap: float | None = None,
) -> tuple[Float[Tensor, "B Q h e"], Float[Tensor, "B h Q _"]]:
    """softmax(cap(q kᵀ · scaling) + bias + mask) v, by plain matrix products, and the softmax."""
    scores = torch.matmul(query * (query.shape[-1] ** -0.5 if scaling is None else scaling), key.transpose(2, 3))
    if softcap is not None:
        scores = softcap * torch.tanh(scores / softcap)
    if position_bias is not None:
        scores = scores + position_bias
    if mask is not None:
        lowest = torch.finfo(scores.dtype).min
        scores = scores.masked_fill(~mask, lowest) if mask.dtype == torch.bool else scores + mask
    weights = F.dropout(scores.softmax(dim=-1), dropout)
    return torch.matmul(weights, value).transpose(1, 2).contiguous(), weights


AttentionInterface.register(ATTENTION, attention)
AttentionMaskInterface.register(ATTENTION, sdpa_mask)
