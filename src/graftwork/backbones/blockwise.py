"""Attention in blocks: matrix products and a softmax over a few rows of a batch at a time, with few bytes moved.

On a processor, plain products move the scores of a whole batch through memory a dozen times, and the backward pass of
torch's fused kernel is slow in bfloat16. Here the scores of a block stay in the cache while they are scaled, masked and
normalised in place, and the backward pass needs nothing but the weights.

Notation: B batch, h heads, Q queries, T keys, e head dimension.
"""

from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

BLOCK = 1 << 20
"""Scores of a block: 2 MB in bfloat16, about what a core keeps close to it."""

Plain = Callable[..., tuple[Tensor, Tensor]]
"""The same by operations of torch alone: (query, key, value, mask, dropout, scaling) -> (output, weights)."""


def blockwise(
    query: Float[Tensor, "B h Q e"],
    key: Float[Tensor, "B h T e"],
    value: Float[Tensor, "B h T e"],
    mask: Tensor | None,
    scaling: float | None,
    plain: Plain,
) -> Float[Tensor, "B Q h e"]:
    """softmax(q kᵀ · scaling + mask) v.

    Args:
        mask: (1 or B, 1 or h, 1 or Q, T): bool with true where a query sees a key, or float to be added to the scores.
        scaling: 1 / √e if None.
        plain: what to derive where a second derivative is asked for.
    """
    if mask is not None and mask.dtype == torch.bool:
        mask = torch.zeros_like(mask, dtype=query.dtype).masked_fill(~mask, torch.finfo(query.dtype).min)
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    # Copied here, and not in the function, whose backward pass has the copies then.
    query, key, value = (tensor.contiguous() for tensor in (query, key, value))
    output: Tensor = _Blockwise.apply(query, key, value, mask, scale, plain)  # type: ignore[no-untyped-call]
    return output


def suits() -> bool:
    """Whether a pass is one of plain gradients: no compiler looks at it, and no transform of `torch.func`."""
    return not torch.compiler.is_compiling() and not torch._C._are_functorch_transforms_active()


class _Blockwise(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scale: float, plain: Plain
    ) -> Tensor:
        batch, heads, queries, width = query.shape
        keys = key.shape[2]
        q, k, v = (_by_head(tensor) for tensor in (query, key, value))
        output, weights = torch.empty_like(q), q.new_empty(batch * heads, queries, keys)
        rows = None if mask is None else mask.expand(batch, *mask.shape[1:])
        for first, last, block in _blocks(batch, heads, queries * keys):
            scores = torch.bmm(q[block], k[block].mT, out=weights[block])
            if rows is None:
                scores.mul_(scale)
            else:
                split = scores.view(last - first, heads, queries, keys)
                torch.add(rows[first:last], split, alpha=scale, out=split)
            torch.softmax(scores, dim=-1, out=scores)
            torch.bmm(scores, v[block], out=output[block])
        ctx.save_for_backward(query, key, value, mask, weights)
        ctx.scale, ctx.plain = scale, plain
        return output.view(batch, heads, queries, width).transpose(1, 2).contiguous()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value, mask, weights = ctx.saved_tensors
        needed = ctx.needs_input_grad[:3]
        if torch.is_grad_enabled():  # it is derived again
            given = [tensor for tensor, own in zip((query, key, value), needed, strict=True) if own]
            output, _ = ctx.plain(query, key, value, mask, 0.0, ctx.scale)
            found = iter(torch.autograd.grad(output, given, gradient, create_graph=True))
            return (*(next(found) if own else None for own in needed), None, None, None)
        batch, heads, queries, _ = query.shape
        q, k, v = (_by_head(tensor) for tensor in (query, key, value))
        of_output = _by_head(gradient.transpose(1, 2))
        of_q, of_k, of_v = (
            torch.empty_like(tensor) if own else None for tensor, own in zip((q, k, v), needed, strict=True)
        )
        for _, _, block in _blocks(batch, heads, queries * key.shape[2]):
            own, come = weights[block], of_output[block]
            if of_v is not None:
                torch.bmm(own.mT, come, out=of_v[block])
            if of_q is None and of_k is None:
                continue
            of_scores = torch.ops.aten._softmax_backward_data(torch.bmm(come, v[block].mT), own, -1, own.dtype)
            if of_q is not None:
                torch.bmm(of_scores, k[block], out=of_q[block])
            if of_k is not None:
                torch.bmm(of_scores.mT, q[block], out=of_k[block])
        for of_scaled in (of_q, of_k):
            if of_scaled is not None:
                of_scaled.mul_(ctx.scale)
        shaped = (
            None if found is None else found.view(like.shape)
            for found, like in zip((of_q, of_k, of_v), (query, key, value), strict=True)
        )
        return (*shaped, None, None, None)


def _by_head(tensor: Float[Tensor, "B h L e"]) -> Float[Tensor, "Bh L e"]:
    return tensor.reshape(-1, *tensor.shape[2:])


def _blocks(batch: int, heads: int, scores: int) -> list[tuple[int, int, slice]]:
    """Where blocks begin and end in the batch, and which matrices these are."""
    size = max(1, BLOCK // (heads * scores))
    ends = [(first, min(first + size, batch)) for first in range(0, batch, size)]
    return [(first, last, slice(first * heads, last * heads)) for first, last in ends]
