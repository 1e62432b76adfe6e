"""Prompt op: trained vectors before the input embeddings of a stack (prompt tuning and P-tuning lower to it).

Notation: B batch, T tokens, l prompt vectors, d width of the embeddings.
"""

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from graftwork.backbones import SiteKind
from graftwork.errors import SiteError
from graftwork.ops.op import Forward, Op, Place


@dataclass(frozen=True, kw_only=True)
class Prompt(Op):
    """The stack run over [P; E(x)] (Lester et al. 2021, section 2). Real tokens stand l positions later; what a head
    reads of the stack's output begins at the first real token again.

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
            length = len(self.vectors)
            cache = kwargs.get("past_key_values")
            begun = cache is not None and cache.get_seq_length() > 0
            if attention_mask is not None:
                kwargs["attention_mask"] = _longer(attention_mask, length, 1)
            if kwargs.get("position_ids") is not None:
                kwargs["position_ids"] = _later(kwargs["position_ids"], length, begun=begun)
            if begun:
                # The prompt's own keys and values are in the cache.
                return forward(input_ids=input_ids, **kwargs)
            if kwargs.get("token_type_ids") is not None:
                kwargs["token_type_ids"] = _longer(kwargs["token_type_ids"], length, 0)
            embeddings = kwargs.pop("inputs_embeds", None)
            if embeddings is None:
                embeddings = place.inner.get_input_embeddings()(input_ids)  # type: ignore[operator]
            vectors = self.vectors.to(embeddings).expand(len(embeddings), -1, -1)
            output = forward(inputs_embeds=torch.cat([vectors, embeddings], dim=1), **kwargs)
            return output if self.keeps else _without(output, length, place)

        return prompted


@dataclass(frozen=True, kw_only=True)
class PromptedEncoder(Op):
    """A decoder told that its encoder's output begins with the rows of a prompt.

    Attributes:
        length: l.
    """

    length: int

    kinds: ClassVar[frozenset[SiteKind]] = frozenset({"stack"})
    unmergeable: ClassVar[str] = Prompt.unmergeable

    def around(self, forward: Forward, place: Place) -> Forward:
        def decode(*args: Any, encoder_attention_mask: Tensor | None = None, **kwargs: Any) -> Any:
            if encoder_attention_mask is not None:
                encoder_attention_mask = _longer(encoder_attention_mask, self.length, 1)
            return forward(*args, encoder_attention_mask=encoder_attention_mask, **kwargs)

        return decode


def _longer(rows: Any, length: int, value: int) -> Tensor:
    """(B, T) -> (B, l + T), with a value before each row."""
    if not isinstance(rows, Tensor) or rows.dim() != 2:
        raise SiteError("a prompt needs the attention mask of the texts", expected="a tensor (B, T) of zeros and ones")
    return torch.cat([rows.new_full((len(rows), length), value), rows], dim=1)


def _later(positions: Tensor, length: int, *, begun: bool) -> Tensor:
    """Positions of the real tokens behind a prompt, and before them those of the prompt unless it is in the cache."""
    moved = positions + length
    if begun:
        return moved
    own = torch.arange(length, device=positions.device, dtype=positions.dtype)
    return torch.cat([own.expand(*positions.shape[:-1], length), moved], dim=-1)


def _without(output: Any, length: int, place: Place) -> Any:
    """A stack's output from the first real token on."""
    output.last_hidden_state = output.last_hidden_state[:, length:]
    if output.get("hidden_states") is not None:
        output.hidden_states = tuple(states[:, length:] for states in output.hidden_states)
    if output.get("pooler_output") is not None:
        output.pooler_output = place.inner.pooler(output.last_hidden_state)  # type: ignore[operator]
    return output
