"""Prompt op: trained vectors before the input embeddings of a stack (prompt tuning and P-tuning lower to it).

Notation: B batch, T tokens, l prompt vectors, d width of the embeddings.
"""

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from jaxtyping import Float, Int
from torch import Tensor

from graftwork.backbones import SiteKind
from graftwork.errors import SiteError
from graftwork.ops.op import Forward, Op, Place


@dataclass(frozen=True, kw_only=True)
class Prompt(Op):
    """The stack run over [P; E(x)] (Lester et al. 2021, section 2). Real tokens stand l positions later; what a head
    reads of the stack's output begins at the first real token again. Padding before a text stays before its prompt, so
    that nothing comes between the two. Attention weights, where asked for, are over l + T keys.

    Shapes: vectors (l, d).

    Attributes:
        keeps: whether the output keeps the prompt's own l rows, as an encoder's does, to which its decoder attends.
    """

    vectors: Float[Tensor, "l d"]
    keeps: bool = False

    kinds: ClassVar[frozenset[SiteKind]] = frozenset({"stack"})
    unmergeable: ClassVar[str] = "vectors before a text are no part of any weight"

    def around(self, forward: Forward, place: Place) -> Forward:
        def prompted(input_ids: Tensor | None = None, attention_mask: Any = None, **kwargs: Any) -> Any:
            length, padding, seam = len(self.vectors), _padding_position(place), None
            cache = kwargs.get("past_key_values")
            begun = cache is not None and cache.get_seq_length() > 0
            if attention_mask is not None:
                seam = _seam(attention_mask)
                kwargs["attention_mask"] = _longer(attention_mask, length, 1, seam)
            told = begun or kwargs.get("position_ids") is not None
            if padding is not None and input_ids is not None and not told:
                # As the stack itself counts tokens; of embeddings it could not tell which are padding.
                real = (input_ids != padding).long()
                kwargs["position_ids"] = real.cumsum(dim=1) * real + padding
            if kwargs.get("position_ids") is not None:
                kwargs["position_ids"] = _later(kwargs["position_ids"], length, padding, None if begun else seam, begun)
            if begun:
                # The prompt's own keys and values are in the cache.
                return forward(input_ids=input_ids, **kwargs)
            if kwargs.get("token_type_ids") is not None:
                kwargs["token_type_ids"] = _longer(kwargs["token_type_ids"], length, 0, seam)
            embeddings = kwargs.pop("inputs_embeds", None)
            if embeddings is None:
                embeddings = place.inner.get_input_embeddings()(input_ids)  # type: ignore[operator]
            vectors = self.vectors.to(embeddings).expand(len(embeddings), -1, -1)
            output = forward(inputs_embeds=_joined(vectors, embeddings, seam), **kwargs)
            return output if self.keeps else _without(output, length, seam, place)

        return prompted


@dataclass(frozen=True, kw_only=True)
class PromptedEncoder(Op):
    """A decoder told that its encoder's output has the rows of a prompt.

    Attributes:
        length: l.
    """

    length: int

    kinds: ClassVar[frozenset[SiteKind]] = frozenset({"stack"})
    unmergeable: ClassVar[str] = Prompt.unmergeable

    def around(self, forward: Forward, place: Place) -> Forward:
        def decode(*args: Any, encoder_attention_mask: Tensor | None = None, **kwargs: Any) -> Any:
            if encoder_attention_mask is not None:
                seam = _seam(encoder_attention_mask)
                encoder_attention_mask = _longer(encoder_attention_mask, self.length, 1, seam)
            return forward(*args, encoder_attention_mask=encoder_attention_mask, **kwargs)

        return decode


def _seam(mask: Any) -> Int[Tensor, "B 1"]:
    """How much padding stands before each text: the prompt goes behind it."""
    if not isinstance(mask, Tensor) or mask.dim() != 2:
        raise SiteError(
            "a prompt needs the attention mask of the texts",
            expected="a tensor (B, T) of zeros and ones, which a static cache does not leave as it is",
        )
    return (mask.cumsum(dim=1) == 0).sum(dim=1, keepdim=True)


def _joined(prompt: Tensor, rows: Tensor, seam: Tensor | None) -> Tensor:
    """(B, l, *) and (B, T, *) -> (B, l + T, *), the first put into the second at the seam; at the start without one."""
    both = torch.cat([prompt.expand(len(rows), *prompt.shape[1:]), rows], dim=1)
    if seam is None:
        return both
    length, at = prompt.shape[1], torch.arange(both.shape[1], device=rows.device)
    return _taken(both, torch.where(at < seam, at + length, torch.where(at < seam + length, at - seam, at)))


def _taken(rows: Tensor, index: Int[Tensor, "B n"]) -> Tensor:
    """Of each batch row the given ones, in that order."""
    return rows.gather(1, index.view(*index.shape, *[1] * (rows.dim() - 2)).expand(-1, -1, *rows.shape[2:]))


def _longer(rows: Tensor, length: int, value: int, seam: Tensor | None) -> Tensor:
    """(B, T) -> (B, l + T), with a value for the prompt."""
    return _joined(rows.new_full((len(rows), length), value), rows, seam)


def _padding_position(place: Place) -> int | None:
    """The position of padding in a stack that counts positions from the next one on, as RoBERTa's does."""
    table = getattr(getattr(place.inner, "embeddings", None), "position_embeddings", None)
    return getattr(table, "padding_idx", None)


def _later(positions: Tensor, length: int, padding: int | None, seam: Tensor | None, begun: bool) -> Tensor:
    """Positions of the real tokens behind a prompt, and with them those of the prompt unless it is in the cache."""
    moved = positions + length
    if padding is not None:
        moved = torch.where(positions == padding, positions, moved)
    if begun:
        return moved
    if seam is not None:
        moved = moved.expand(len(seam), -1)
    first = 0 if padding is None else padding + 1
    own = torch.arange(first, first + length, device=positions.device, dtype=positions.dtype)
    return _joined(own[None], moved, seam)


def _without(output: Any, length: int, seam: Tensor | None, place: Place) -> Any:
    """A stack's output without the prompt's rows."""

    def stripped(states: Tensor) -> Tensor:
        if seam is None:
            return states[:, length:]
        at = torch.arange(states.shape[1] - length, device=states.device)
        return _taken(states, torch.where(at < seam, at, at + length))

    output.last_hidden_state = stripped(output.last_hidden_state)
    if output.get("hidden_states") is not None:
        output.hidden_states = tuple(stripped(states) for states in output.hidden_states)
    if output.get("pooler_output") is not None:
        output.pooler_output = _pooled(place.inner, output.last_hidden_state)
    return output


def _pooled(stack: Any, states: Tensor) -> Tensor:
    """What the stack's pooling layer makes of other states. ALBERT's is a linear map without its activation."""
    activation = getattr(stack, "pooler_activation", None)
    pooled: Tensor = stack.pooler(states) if activation is None else activation(stack.pooler(states[:, 0]))
    return pooled
