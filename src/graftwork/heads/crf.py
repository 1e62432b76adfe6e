"""A linear-chain conditional random field over tags (Lafferty et al. 2001), as Lample et al. (2016, "Neural
Architectures for Named Entity Recognition", eq. 1 to 4) put it on a BiLSTM.

The score of tags y under emissions P is s(y) = start[y_1] + Σ_t P[t, y_t] + Σ_t A[y_t, y_t+1] + end[y_n], and their
probability is its softmax over all sequences of tags. The chain runs over the tokens of the mask alone (the first
word-pieces of the words), wherever they stand.

Notation: B rows, T tokens, C tags; n tokens of a row in the mask.
"""

from collections.abc import Mapping

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from graftwork.methods.parameters import Parameter, zeros


def declare_crf(tags: int) -> dict[str, Parameter]:
    """Shapes: transitions (C, C), from and to; start (C); end (C)."""
    return {
        "head.crf.transitions": Parameter(shape=(tags, tags), init=zeros, group="head", decay=False),
        "head.crf.start": Parameter(shape=(tags,), init=zeros, group="head", decay=False),
        "head.crf.end": Parameter(shape=(tags,), init=zeros, group="head", decay=False),
    }


def log_likelihood(
    emissions: Float[Tensor, "B T C"],
    tags: Int[Tensor, "B T"],
    mask: Bool[Tensor, "B T"],
    parameters: Mapping[str, Tensor],
) -> Float[Tensor, " B"]:
    """log p(y) = s(y) - log Σ_y' exp s(y'), 0 for a row without tokens."""
    transitions, start, end = _read(emissions, parameters)
    order, real = _close_up(mask)
    emissions = emissions.gather(1, order.unsqueeze(-1).expand_as(emissions))
    tags = tags.gather(1, order).clamp(min=0)
    last = tags.gather(1, _last(real).unsqueeze(1)).squeeze(1)
    said = (emissions.gather(2, tags.unsqueeze(-1)).squeeze(-1) * real).sum(dim=1)
    moved = (transitions[tags[:, :-1], tags[:, 1:]] * real[:, 1:]).sum(dim=1)
    score = start[tags[:, 0]] + said + moved + end[last]

    reached = start + emissions[:, 0]
    for t in range(1, emissions.shape[1]):
        further = (reached.unsqueeze(2) + transitions).logsumexp(dim=1) + emissions[:, t]
        reached = torch.where(real[:, t : t + 1], further, reached)
    return (score - (reached + end).logsumexp(dim=1)) * real[:, 0]


def viterbi(
    emissions: Float[Tensor, "B T C"], mask: Bool[Tensor, "B T"], parameters: Mapping[str, Tensor], *, elsewhere: int
) -> Int[Tensor, "B T"]:
    """The tags with the highest score, and `elsewhere` at tokens outside the mask."""
    transitions, start, end = _read(emissions, parameters)
    order, real = _close_up(mask)
    emissions = emissions.gather(1, order.unsqueeze(-1).expand_as(emissions))
    best, before = start + emissions[:, 0], []
    for t in range(1, emissions.shape[1]):
        further, source = (best.unsqueeze(2) + transitions).max(dim=1)
        best = torch.where(real[:, t : t + 1], further + emissions[:, t], best)
        before.append(source)
    tag = (best + end).argmax(dim=1)
    path = [tag]
    for t in range(emissions.shape[1] - 1, 0, -1):
        # A tag is carried back unchanged over what stands behind the last real token.
        tag = torch.where(real[:, t], before[t - 1].gather(1, tag.unsqueeze(1)).squeeze(1), tag)
        path.append(tag)
    found = torch.stack(path[::-1], dim=1).masked_fill(~real, elsewhere)
    return torch.zeros_like(found).scatter(1, order, found)


def _close_up(mask: Bool[Tensor, "B T"]) -> tuple[Int[Tensor, "B T"], Bool[Tensor, "B T"]]:
    """Where the tokens of the mask stand, and behind them the rest; and which of those are of the mask."""
    order = (~mask).long().argsort(dim=1, stable=True)
    return order, mask.gather(1, order)


def _last(real: Bool[Tensor, "B T"]) -> Int[Tensor, " B"]:
    return (real.sum(dim=1) - 1).clamp(min=0)


def _read(like: Tensor, parameters: Mapping[str, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
    transitions, start, end = (parameters[f"head.crf.{name}"].to(like) for name in ("transitions", "start", "end"))
    return transitions, start, end
