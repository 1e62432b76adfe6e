"""Routes, and the primitives on which every op is built: linear maps and scaling with one adapter or several.

Notation: B rows in a pass, T tokens, S slots in a slab. A weight is (out, in) when one adapter serves the whole pass,
and (S, out, in) when several do. In that case the rows come in S groups of equal size, one group per slot, in slot
order. A `Route` arranges rows and slabs this way once per pass, so that no op has to gather anything. Alternatively
the groups are blocks of any size, and each block has its own matrix product.
"""

import inspect
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Shaped
from torch import Tensor

Blocks = tuple[int, ...]
"""Number of rows of each slot, when the rows of a slot are adjacent and the slots are in order."""


@dataclass(frozen=True)
class Route:
    """Which slot each row of a batch uses.

    A pass may have more rows than the batch: the choices of a question and the beams of a search are consecutive rows.
    Each of them uses the slot of the row that it comes from.

    Attributes:
        slots: the slot of each row.
        count: the number of slots.
        in_blocks: whether each slot may have its own matrix product, as on a CPU, where gathering weights costs more.
    """

    slots: tuple[int, ...]
    count: int
    in_blocks: bool = True

    @cached_property
    def even(self) -> bool:
        """Whether the rows come in groups of equal size, one group per slot, in slot order."""
        return self.slots == tuple(slot for slot in range(self.count) for _ in range(len(self.slots) // self.count))

    @cached_property
    def blocks(self) -> Blocks | None:
        """The sizes of the blocks of rows. None where blocks do not save a gather: the groups are even, the rows of a
        slot are not adjacent, or there are nearly as many slots as rows."""
        sizes = Counter(self.slots)
        if self.even or not self.in_blocks or 2 * self.count > len(self.slots):
            return None
        return tuple(sizes[slot] for slot in range(self.count)) if list(self.slots) == sorted(self.slots) else None

    @cached_property
    def _indices(self) -> dict[torch.device, Tensor]:
        """The slots of the rows on each device."""
        return {}

    def spread(self, slab: Shaped[Tensor, "S *shape"]) -> Shaped[Tensor, "groups *shape"]:
        """The slab as the rows need it: unchanged for even groups, else with one entry per row."""
        if self.even:
            return slab
        if slab.device not in self._indices:
            self._indices[slab.device] = torch.tensor(self.slots, device=slab.device)
        return slab.index_select(0, self._indices[slab.device])


def each(slab: Shaped[Tensor, "S *shape"], batch: int) -> Shaped[Tensor, "B *shape"]:
    """A slab expanded to one entry per row."""
    return slab if len(slab) == batch else slab.repeat_interleave(batch // len(slab), dim=0)


def linear(
    x: Float[Tensor, "B *T in"],
    weight: Float[Tensor, "*S out in"],
    bias: Float[Tensor, "*S out"] | None = None,
    blocks: Blocks | None = None,
) -> Float[Tensor, "B *T out"]:
    """y = x Wᵀ + b. When W and b are slabs, each row uses those of its slot."""
    if weight.dim() == 2:
        return F.linear(x, weight, bias)
    if no_derivatives():
        return _LinearOfSlab.forward(x, weight, bias, blocks)
    # A compiler takes no function that has tangents.
    product = _LinearOfSlab if torch.compiler.is_compiling() else _LinearOfSlabWithTangents
    y: Tensor = product.apply(x, weight, bias, blocks)  # type: ignore[no-untyped-call]
    return y


def no_derivatives() -> bool:
    """Whether a pass needs no gradients and runs under no transform of `torch.func`. To call a function of autograd
    takes longer than some of the products."""
    if torch.compiler.is_compiling() or torch.is_grad_enabled():
        return False
    return not torch._C._are_functorch_transforms_active()


def _with_signature(forward: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Keep what torch asks of a function's forward in each call, and takes a tenth of a millisecond to find out."""
    forward.__signature__ = inspect.signature(forward)  # type: ignore[attr-defined]
    return forward


class _LinearOfSlab(torch.autograd.Function):
    """`linear` with a slab. Its gradients have the memory layout of the weights. Torch's own batched product gives
    transposed gradients, so that the gradient of each slot would be copied on its way to the parameter."""

    @staticmethod
    @_with_signature
    def forward(x: Tensor, weight: Tensor, bias: Tensor | None, blocks: Blocks | None) -> Tensor:
        groups = zip(_tokens(x, len(weight), blocks), _matrices(weight, blocks), strict=True)
        if bias is None:
            y = _joined([tokens @ W.mT for tokens, W in groups])
        else:
            biases = [bias.unsqueeze(1)] if blocks is None else bias.unbind()
            added = torch.baddbmm if blocks is None else torch.addmm
            y = _joined([added(b, tokens, W.mT) for (tokens, W), b in zip(groups, biases, strict=True)])
        return y.reshape(*x.shape[:-1], -1)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        x, weight, _, ctx.blocks = inputs
        needs_x, needs_weight, *_ = ctx.needs_input_grad
        ctx.slots, ctx.shape = len(weight), x.shape
        ctx.save_for_backward(x if needs_weight else None, weight if needs_x else None)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        groups = _tokens(gradient, ctx.slots, ctx.blocks)
        of_x = of_weight = of_bias = None
        # Under autocast the product was in another precision.
        if weight is not None:
            matrices = _matrices(weight.to(gradient.dtype), ctx.blocks)
            of_x = _joined([rows @ W for rows, W in zip(groups, matrices, strict=True)]).reshape(ctx.shape)
        if x is not None:
            tokens = _tokens(x.to(gradient.dtype), ctx.slots, ctx.blocks)
            of_weight = _joined([rows.mT @ own for rows, own in zip(groups, tokens, strict=True)])
            of_weight = of_weight.view(ctx.slots, -1, x.shape[-1])
        if ctx.needs_input_grad[2]:
            of_bias = _joined([rows.sum(dim=-2) for rows in groups]).view(ctx.slots, -1)
        return of_x, of_weight, of_bias, None

    @staticmethod
    def vmap(info: Any, in_dims: Any, *inputs: Any) -> tuple[Tensor, int]:
        return _mapped(_LinearOfSlab.forward, info, in_dims, inputs)


class _LinearOfSlabWithTangents(_LinearOfSlab):
    """Also has forward-mode derivatives. The tensors that these need are kept during the forward pass only."""

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        _LinearOfSlab.setup_context(ctx, inputs, output)
        ctx.save_for_forward(*inputs[:2])

    @staticmethod
    def jvp(ctx: Any, x: Tensor | None, weight: Tensor | None, bias: Tensor | None, _: None) -> Tensor:
        own_x, own_weight = ctx.saved_tensors
        y = _LinearOfSlab.forward(torch.zeros_like(own_x) if x is None else x, own_weight, bias, ctx.blocks)
        return y if weight is None else y + _LinearOfSlab.forward(own_x, weight, None, ctx.blocks)


def _mapped(function: Callable[..., Tensor], info: Any, in_dims: Any, inputs: Sequence[Any]) -> tuple[Tensor, int]:
    """Map a function of tensors, whose last argument is `blocks`, over the dimensions given by `torch.vmap`."""
    *tensors, blocks = inputs
    of_tensors = partial(function, blocks=blocks)
    return torch.vmap(of_tensors, tuple(in_dims[:-1]), randomness=info.randomness)(*tensors), 0


def linear_and(
    x: Float[Tensor, "B *T in"],
    weight: Float[Tensor, "out in"],
    bias: Float[Tensor, " out"] | None,
    s: Float[Tensor, "B *T r"],
    wider: Float[Tensor, "*S out r"],
    blocks: Blocks | None = None,
) -> Float[Tensor, "B *T out"]:
    """y = x Wᵀ + b + s Uᵀ with frozen W and b, where the last term is added in place. When U (`wider`) is a slab, each
    row uses that of its slot."""
    if torch.compiler.is_compiling():
        # A compiler chooses by itself what is kept and what is added in place.
        return _sum_of_linears(x, weight, bias, s, wider, blocks)
    if no_derivatives():
        return _LinearAnd.forward(x, weight, bias, s, wider, blocks)
    y: Tensor = _LinearAnd.apply(x, weight, bias, s, wider, blocks)  # type: ignore[no-untyped-call]
    return y


class _LinearAnd(torch.autograd.Function):
    """`linear_and`. Keeps s and U for the backward pass, but neither x nor a copy of x Wᵀ + b."""

    @staticmethod
    @_with_signature
    def forward(
        x: Tensor, weight: Tensor, bias: Tensor | None, s: Tensor, wider: Tensor, blocks: Blocks | None
    ) -> Tensor:
        slots = _slots(wider)
        if blocks is None and bias is not None:
            # What is narrow first: the wide product then adds to it as it writes.
            narrow, U = s.reshape(*_leading(slots), -1, s.shape[-1]), wider.mT
            added = torch.addmm(bias, narrow, U) if slots is None else torch.baddbmm(bias, narrow, U)
            return added.view(-1, len(weight)).addmm_(x.reshape(-1, x.shape[-1]), weight.T).view(*x.shape[:-1], -1)
        y = F.linear(x, weight, bias)
        for rows, narrow, U in zip(
            _tokens(y, slots, blocks), _tokens(s, slots, blocks), _matrices(wider, blocks), strict=True
        ):
            rows.baddbmm_(narrow, U.mT) if U.dim() == 3 else rows.addmm_(narrow, U.mT)
        return y

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        _, weight, _, s, wider, ctx.blocks = inputs
        needs_x, _, _, needs_s, needs_wider, _ = ctx.needs_input_grad
        ctx.slots, ctx.shape = _slots(wider), s.shape
        ctx.save_for_backward(weight if needs_x else None, s if needs_wider else None, wider if needs_s else None)
        ctx.save_for_forward(inputs[0], weight, s, wider)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        weight, s, wider = ctx.saved_tensors
        groups = _tokens(gradient, ctx.slots, ctx.blocks)
        of_x = of_s = of_wider = None
        if weight is not None:
            of_x = gradient @ weight
        if wider is not None:
            matrices = _matrices(wider, ctx.blocks)
            of_s = _joined([rows @ U for rows, U in zip(groups, matrices, strict=True)]).reshape(ctx.shape)
        if s is not None:
            narrow = _tokens(s, ctx.slots, ctx.blocks)
            # Transposed twice: a product with few rows is faster than one with few columns.
            turned = _joined([own.mT @ rows for rows, own in zip(groups, narrow, strict=True)])
            of_wider = turned.view(*_leading(ctx.slots), s.shape[-1], -1).mT.contiguous()
        return of_x, None, None, of_s, of_wider, None

    @staticmethod
    def vmap(info: Any, in_dims: Any, *inputs: Any) -> tuple[Tensor, int]:
        # A product that is one for all cannot be added to in place with one of each.
        return _mapped(_sum_of_linears, info, in_dims, inputs)

    @staticmethod
    def jvp(
        ctx: Any,
        x: Tensor | None,
        weight: Tensor | None,
        bias: Tensor | None,
        s: Tensor | None,
        wider: Tensor | None,
        _: None,
    ) -> Tensor:
        own_x, own_weight, own_s, own_wider = ctx.saved_tensors
        y = F.linear(torch.zeros_like(own_x) if x is None else x, own_weight, bias)
        if weight is not None:
            y = y + F.linear(own_x, weight)
        if s is not None:
            y = add_linear(y, s, own_wider, ctx.blocks)
        return y if wider is None else add_linear(y, own_s, wider, ctx.blocks)


def _sum_of_linears(
    x: Tensor, weight: Tensor, bias: Tensor | None, s: Tensor, wider: Tensor, blocks: Blocks | None
) -> Tensor:
    """The same as `linear_and`, with torch's operations only."""
    return add_linear(F.linear(x, weight, bias), s, wider, blocks)


def _slots(weight: Float[Tensor, "*S out in"]) -> int | None:
    """The number of slots of a weight; None for the weight of a single adapter."""
    return len(weight) if weight.dim() == 3 else None


def _leading(slots: int | None) -> tuple[int, ...]:
    """The leading dimension: the number of slots, if there are slots."""
    return () if slots is None else (slots,)


def _tokens(x: Float[Tensor, "B *T d"], slots: int | None, blocks: Blocks | None) -> Sequence[Tensor]:
    """The tokens grouped by matrix product: with blocks, one (tokens, d) tensor per block; otherwise one tensor, whose
    first dimension is the slots if there are slots.
    """
    if blocks is None:
        return [x.reshape(*_leading(slots), -1, x.shape[-1])]
    tokens = x.reshape(-1, x.shape[-1])
    of_a_row = len(tokens) // sum(blocks)
    return torch.split(tokens, [rows * of_a_row for rows in blocks])


def _matrices(weight: Float[Tensor, "*S out in"], blocks: Blocks | None) -> Sequence[Tensor]:
    """The weight for each of the groups of `_tokens`."""
    return [weight] if blocks is None else weight.unbind()


def _joined(parts: Sequence[Tensor]) -> Tensor:
    """The results of the groups, concatenated."""
    return parts[0] if len(parts) == 1 else torch.cat(list(parts))


def add_linear(
    y: Float[Tensor, "B *T out"],
    x: Float[Tensor, "B *T in"],
    weight: Float[Tensor, "*S out in"],
    blocks: Blocks | None = None,
) -> Float[Tensor, "B *T out"]:
    """y + x Wᵀ, in one call where there are no blocks. When W is a slab, each row uses that of its slot."""
    if blocks is not None:
        return y + linear(x, weight, None, blocks)
    width = x.shape[-1]
    if weight.dim() == 2:
        return torch.addmm(y.reshape(-1, y.shape[-1]), x.reshape(-1, width), weight.T).reshape(y.shape)
    slots = len(weight)
    added = torch.baddbmm(y.reshape(slots, -1, y.shape[-1]), x.reshape(slots, -1, width), weight.transpose(1, 2))
    return added.reshape(y.shape)


def scale(x: Float[Tensor, "B *T out"], v: Float[Tensor, "*S out"]) -> Float[Tensor, "B *T out"]:
    """y = x ⊙ v. When v is a slab, each row uses that of its slot."""
    return x * per_row(v, x)


def times(fresh: Tensor, other: Tensor) -> Tensor:
    """A tensor that nobody else has, multiplied; in place where no gradients flow, which saves a large new tensor."""
    return fresh.mul_(other) if no_derivatives() else fresh * other


def per_row(v: Float[Tensor, "*S out"], x: Float[Tensor, "B *T out"]) -> Tensor:
    """A vector shaped to broadcast against x; a slab is expanded to one vector per row."""
    if v.dim() == 1:
        return v
    return each(v, len(x)).reshape(len(x), *(1,) * (x.dim() - 2), v.shape[-1])
