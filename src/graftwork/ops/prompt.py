"""Prompt op: trained vectors before the input embeddings of a stack (prompt tuning and P-tuning lower to it).

Notation: B batch, T tokens, l prompt vectors, d width of the embeddings.
"""

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import Cache

from graftwork.backbones import SiteKind
from graftwork.errors import SiteError
from graftwork.ops import routing
from graftwork.ops.op import Forward, Op, Place


@dataclass(frozen=True, kw_only=True)
class Prompt(Op):
    """The stack run over [P; E(x)] (Lester et al. 2021, section 2). Real tokens stand l positions later; what a head
    reads of the stack's output begins at the first real token again. Padding before a text stays before its prompt, so
    that nothing comes between the two. Attention weights, where asked for, are over l + T keys.

    Shapes: vectors (l, d). In a slab (S, l, d), with the lengths (S) of the prompts; shorter ones are padded at
    the end; what a shorter prompt leaves of the l positions is masked, and stands behind the text, or before everything
    in a causal stack, whose text goes on at its end.

    Attributes:
        keeps: whether the output keeps the prompt's own l rows, as an encoder's does, to which its decoder attends.
    """

    vectors: Float[Tensor, "*S l d"]
    lengths: Int[Tensor, " S"] | None = None
    keeps: bool = False

    kinds: ClassVar[frozenset[SiteKind]] = frozenset({"stack"})
    unmergeable: ClassVar[str] = "vectors before the input embeddings cannot be expressed as a weight"

    def around(self, forward: Forward, place: Place) -> Forward:
        def prompted(input_ids: Tensor | None = None, attention_mask: Any = None, **kwargs: Any) -> Any:
            padding = _padding_position(place)
            given = input_ids if input_ids is not None else kwargs["inputs_embeds"]
            size = self.vectors.shape[-2]
            past = _take_past(kwargs, size)
            begun = past is not None
            lengths = None if self.lengths is None else routing.each(self.lengths, len(given))[:, None]
            if lengths is not None and attention_mask is None:
                whole = (len(given), (past or 0) + given.shape[1])
                attention_mask = torch.ones(whole, dtype=torch.long, device=given.device)
            offset = None if attention_mask is None else _padding_before(attention_mask)
            layout = PromptLayout(size, lengths, offset, first=lengths is not None and _is_causal(place))
            if attention_mask is not None:
                kwargs["attention_mask"] = layout.longer(attention_mask, 1)
            told = kwargs.get("position_ids") is not None
            if padding is not None and input_ids is not None and not told and not begun:
                # As the stack itself counts tokens; of embeddings it could not tell which are padding.
                real = (input_ids != padding).long()
                kwargs["position_ids"] = real.cumsum(dim=1) * real + padding
            elif layout.first and not told:
                # Behind a cache the stack would count the longest prompt of the batch.
                places = torch.arange(given.shape[1], device=given.device) + (past or 0)
                kwargs["position_ids"] = places.expand(len(given), -1)
            if kwargs.get("position_ids") is not None:
                kwargs["position_ids"] = layout.later(kwargs["position_ids"], padding, begun)
            if begun:
                # The prompt's own keys and values are in the cache.
                return forward(input_ids=input_ids, **kwargs)
            if kwargs.get("token_type_ids") is not None:
                kwargs["token_type_ids"] = layout.longer(kwargs["token_type_ids"], 0)
            embeddings = kwargs.pop("inputs_embeds", None)
            if embeddings is None:
                embeddings = embedded(place.module, given)
            vectors = self.vectors.to(embeddings)
            vectors = vectors if lengths is None else routing.each(vectors, len(given))
            output = forward(inputs_embeds=layout.joined(vectors.expand(len(given), -1, -1), embeddings), **kwargs)
            return output if self.keeps else _without(output, layout, place)

        return prompted

    def slab(self, slots: int) -> "Prompt":
        lengths = torch.full((slots,), self.vectors.shape[-2], device=self.vectors.device)
        return replace(self, lengths=lengths)

    def before(self, other: "Prompt") -> "Prompt":
        """These vectors, and behind them another prompt's, as one."""
        return replace(self, vectors=torch.cat([self.vectors, other.vectors]))


@dataclass(frozen=True, kw_only=True)
class PromptedEncoder(Op):
    """A decoder told that its encoder's output has the rows of a prompt.

    Shapes: lengths (S), of the prompts in a slab.

    Attributes:
        length: l, the longest one's in a slab.
    """

    length: int
    lengths: Int[Tensor, " S"] | None = None

    kinds: ClassVar[frozenset[SiteKind]] = frozenset({"stack"})
    unmergeable: ClassVar[str] = Prompt.unmergeable

    def around(self, forward: Forward, place: Place) -> Forward:
        def decode(*args: Any, encoder_attention_mask: Tensor | None = None, **kwargs: Any) -> Any:
            mask = encoder_attention_mask
            if mask is not None:
                lengths = (
                    None if self.lengths is None else routing.each(self.lengths.to(mask.device), len(mask))[:, None]
                )
                mask = PromptLayout(self.length, lengths, _padding_before(mask)).longer(mask, 1)
            return forward(*args, encoder_attention_mask=mask, **kwargs)

        return decode

    def alike(self) -> Hashable:
        return type(self)

    def slab(self, slots: int) -> "PromptedEncoder":
        return replace(self, lengths=torch.full((slots,), self.length))

    def before(self, other: "PromptedEncoder") -> "PromptedEncoder":
        """For both prompts."""
        return replace(self, length=self.length + other.length)

    def joined(self, parts: Sequence["Op"]) -> "PromptedEncoder":
        prompts = [part for part in parts if isinstance(part, PromptedEncoder)]
        lengths = [part.lengths for part in prompts if part.lengths is not None]
        return replace(self, length=max(part.length for part in prompts), lengths=torch.cat(lengths))


class TextCache(Cache):
    """A cache as what is outside of a prompt sees it: its length is the text's. `generate` takes what comes before that
    for known, and would leave out as many tokens of a later turn as the prompt has.

    Args:
        whole: the cache, which has the prompt's keys and values too.
        size: l, of the longest prompt.
    """

    whole: Cache
    size: int

    def __init__(self, whole: Cache, size: int) -> None:
        vars(self).update(whole=whole, size=size)

    def __getattr__(self, name: str) -> Any:
        return getattr(vars(self)["whole"], name)

    def __setattr__(self, name: str, value: Any) -> None:
        setattr(self.whole, name, value)

    def get_seq_length(self, layer_idx: int = 0) -> int:
        return max(int(self.whole.get_seq_length(layer_idx)) - self.size, 0)


def as_of_text(options: Mapping[str, Any], ops: Mapping[str, Sequence[Op]]) -> Mapping[str, Any]:
    """Options of `generate` with a cache of the text where it is one of prompt and text.

    Args:
        ops: those that act.
    """
    cache = options.get("past_key_values")
    sizes = [
        op.vectors.shape[-2] for acting in ops.values() for op in acting if isinstance(op, Prompt) and not op.keeps
    ]
    if not sizes or not isinstance(cache, Cache) or cache.get_seq_length() == 0:
        return options
    return {**options, "past_key_values": TextCache(cache, *sizes)}


def as_one(ops: Sequence[Op]) -> list[Op]:
    """Ops with the prompts among them as one, and so what decoders are told of them: each would take the other's rows
    for text.
    """
    found: list[Op] = []
    for op in ops:
        place = next((i for i, other in enumerate(found) if type(other) is type(op)), None)
        if place is not None and isinstance(op, Prompt | PromptedEncoder):
            found[place] = found[place].before(op)  # type: ignore[attr-defined]
        else:
            found.append(op)
    return found


@dataclass(frozen=True)
class PromptLayout:
    """Where a prompt and a text stand in the rows of a batch.

    Attributes:
        size: l, of the longest prompt.
        lengths: (B, 1), of each row's prompt; None when all are of length l.
        offset: (B, 1), how much padding stands before each text: the prompt goes behind it. None: the prompt comes
            first.
        first: whether what a shorter prompt leaves stands before everything, and not behind it.
    """

    size: int
    lengths: Tensor | None
    offset: Tensor | None
    first: bool = False

    def joined(self, prompt: Tensor, rows: Tensor) -> Tensor:
        """(B, l, *) and (B, T, *) -> (B, l + T, *)."""
        both = torch.cat([prompt.expand(len(rows), *prompt.shape[1:]), rows], dim=1)
        offset, size = self.offset, self.size
        if offset is None:
            return both
        at = torch.arange(both.shape[1], device=rows.device)
        if self.lengths is None:
            return _taken(both, torch.where(at < offset, at + size, torch.where(at < offset + size, at - offset, at)))
        own, rest = self.lengths, size - self.lengths
        if self.first:
            before = torch.where(
                at < rest, own + at, torch.where(at < rest + offset, size + at - rest, at - rest - offset)
            )
            return _taken(both, torch.where(at < size + offset, before, at))
        end = own + rows.shape[1]
        index = torch.where(at < offset, size + at, torch.where(at < offset + own, at - offset, size + at - own))
        return _taken(both, torch.where(at < end, index, at - rows.shape[1]))

    def longer(self, rows: Tensor, value: int) -> Tensor:
        """(B, T) -> (B, l + T), with a value for the prompt, and 0 for what a shorter one leaves."""
        prompt = rows.new_full((len(rows), self.size), value)
        if self.lengths is not None:
            prompt = prompt.masked_fill(torch.arange(self.size, device=rows.device) >= self.lengths, 0)
        return self.joined(prompt, rows)

    def later(self, positions: Tensor, padding: int | None, begun: bool) -> Tensor:
        """Positions of the real tokens behind a prompt, and with them those of the prompt unless it is in the cache."""
        moved = positions + (self.size if self.lengths is None else self.lengths)
        if padding is not None:
            moved = torch.where(positions == padding, positions, moved)
        if begun:
            return moved
        if self.offset is not None:
            moved = moved.expand(len(self.offset), -1)
        start = 0 if padding is None else padding + 1
        own = torch.arange(start, start + self.size, device=positions.device, dtype=positions.dtype)
        return self.joined(own[None], moved)

    def without(self, states: Tensor) -> Tensor:
        """(B, l + T, *) -> (B, T, *)."""
        if self.offset is None:
            return states[:, self.size :]
        at = torch.arange(states.shape[1] - self.size, device=states.device)
        own = self.size if self.lengths is None or self.first else self.lengths
        before = self.size - self.lengths if self.lengths is not None and self.first else 0
        return _taken(states, torch.where(at < self.offset, at + before, at + own))


def embedded(stack: Any, ids: Int[Tensor, "*B T"]) -> Float[Tensor, "*B T d"]:
    """Tokens' embeddings as they enter a stack: Pegasus scales those in its encoder, and not those that it is given."""
    scale: float = getattr(stack, "embed_scale", 1.0)
    return stack.get_input_embeddings()(ids) * scale  # type: ignore[no-any-return]


def _take_past(kwargs: dict[str, Any], size: int) -> int | None:
    """How many tokens of the text are in the cache, behind a prompt's rows; None where nothing is. The stack is given
    the whole cache.

    Raises:
        SiteError: the cache has no room for the prompt: it was begun without it.
    """
    cache = kwargs.get("past_key_values")
    if isinstance(cache, TextCache):
        kwargs["past_key_values"] = cache = cache.whole
    rows = 0 if cache is None else int(cache.get_seq_length())
    if 0 < rows < size:
        raise SiteError(
            f"the cache has {rows} tokens, which cannot contain a prompt of {size}",
            expected="a cache made with the same adapters",
            change="past_key_values",
        )
    return rows - size if rows else None


def _padding_before(mask: Any) -> Int[Tensor, "B 1"]:
    """How much padding stands before each text: the prompt goes behind it."""
    if not isinstance(mask, Tensor) or mask.dim() != 2:
        raise SiteError(
            "a prompt needs the attention mask of the texts",
            expected="a tensor (B, T) of zeros and ones (a static cache changes it)",
        )
    return (mask.cumsum(dim=1) == 0).sum(dim=1, keepdim=True)


def _taken(rows: Tensor, index: Int[Tensor, "B n"]) -> Tensor:
    """Of each batch row the given ones, in that order."""
    return rows.gather(1, index.view(*index.shape, *[1] * (rows.dim() - 2)).expand(-1, -1, *rows.shape[2:]))


def _is_causal(place: Place) -> bool:
    """Whether a token sees those before it only."""
    return any(getattr(module, "is_causal", False) for module in place.module.modules())


def _padding_position(place: Place) -> int | None:
    """The position of padding in a stack that counts positions from the next one on, as RoBERTa's does."""
    table = getattr(getattr(place.module, "embeddings", None), "position_embeddings", None)
    return getattr(table, "padding_idx", None)


def _without(output: Any, layout: PromptLayout, place: Place) -> Any:
    """A stack's output without the prompt's rows."""
    output.last_hidden_state = layout.without(output.last_hidden_state)
    if output.get("hidden_states") is not None:
        output.hidden_states = tuple(layout.without(states) for states in output.hidden_states)
    if output.get("pooler_output") is not None:
        output.pooler_output = _pooled(place.module, output.last_hidden_state)
    return output


def _pooled(stack: Any, states: Tensor) -> Tensor:
    """What the stack's pooling layer makes of other states. ALBERT's is a linear map without its activation."""
    activation = getattr(stack, "pooler_activation", None)
    pooled: Tensor = stack.pooler(states) if activation is None else activation(stack.pooler(states[:, 0]))
    return pooled
