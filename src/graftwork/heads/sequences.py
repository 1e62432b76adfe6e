"""What task models over sequences are made of: BiLSTMs, attention and pooling, in which padding takes no part.

A mask says which tokens of a row belong to the sequence; they need not stand side by side, nor at the start. Notation:
B rows, T tokens, i and h sizes of a layer's input and of one direction's state.
"""

from collections.abc import Mapping
from math import sqrt

import torch
from jaxtyping import Bool, Float, Int
from torch import Generator, Tensor

from graftwork.methods.parameters import Parameter, kaiming_uniform

DIRECTIONS = (("forwards", 1), ("backwards", -1))


def declare_bilstm(name: str, inputs: int, hidden: int) -> dict[str, Parameter]:
    """Shapes, each direction: input (4h, i), recurrent (4h, h), bias (4h), the gates in PyTorch's order; 8h(i + h + 1)
    numbers. Forget gates start open (Jozefowicz et al. 2015, section 2.2).
    """
    found: dict[str, Parameter] = {}
    for direction, _ in DIRECTIONS:
        uniform = kaiming_uniform(sqrt(5))
        found |= {
            f"{name}.{direction}.input": Parameter(shape=(4 * hidden, inputs), init=uniform, group="head"),
            f"{name}.{direction}.recurrent": Parameter(shape=(4 * hidden, hidden), init=uniform, group="head"),
            f"{name}.{direction}.bias": Parameter(shape=(4 * hidden,), init=_open_forget, group="head", decay=False),
        }
    return found


def bilstm(
    x: Float[Tensor, "B T i"], mask: Bool[Tensor, "B T"], parameters: Mapping[str, Tensor], name: str
) -> Float[Tensor, "B T e"]:
    """The states of both directions at each token of the sequence, e = 2h, and 0 elsewhere."""
    found = []
    for direction, sign in DIRECTIONS:
        order = _reading_order(mask, sign).unsqueeze(-1)
        states = _lstm(x.gather(1, order.expand_as(x)), parameters, f"{name}.{direction}")
        found.append(torch.zeros_like(states).scatter(1, order.expand_as(states), states))
    return torch.cat(found, dim=-1) * mask.unsqueeze(-1)


def attend(
    queries: Float[Tensor, "B T e"], states: Float[Tensor, "B T e"], mask: Bool[Tensor, "B T"]
) -> Float[Tensor, "B T e"]:
    """Σ_s softmax_s(q_t · k_s) k_s over the tokens s of the sequence."""
    scores = queries @ states.transpose(1, 2)
    return scores.masked_fill(~mask.unsqueeze(1), float("-inf")).softmax(dim=-1) @ states


def maximum(x: Float[Tensor, "B T e"], mask: Bool[Tensor, "B T"]) -> Float[Tensor, "B e"]:
    """Over the tokens of the sequence."""
    return x.masked_fill(~mask.unsqueeze(-1), float("-inf")).amax(dim=1)


def mean(x: Float[Tensor, "B T e"], mask: Bool[Tensor, "B T"]) -> Float[Tensor, "B e"]:
    """Over the tokens of the sequence."""
    return (x * mask.unsqueeze(-1)).sum(dim=1) / mask.sum(dim=1, keepdim=True)


def _reading_order(mask: Bool[Tensor, "B T"], sign: int) -> Int[Tensor, "B T"]:
    """Where the tokens of the sequence stand, in reading order or from the last to the first, and behind them the rest,
    which an LSTM therefore meets too late to matter.
    """
    positions = torch.arange(mask.shape[1], device=mask.device).expand_as(mask)
    return torch.where(mask, sign * positions, mask.shape[1] + positions).argsort(dim=1)


def _lstm(x: Float[Tensor, "B T i"], parameters: Mapping[str, Tensor], name: str) -> Float[Tensor, "B T h"]:
    """One direction (Hochreiter & Schmidhuber 1997), from a state of zeros."""
    given, recurrent, bias = (parameters[f"{name}.{leaf}"].to(x) for leaf in ("input", "recurrent", "bias"))
    start = x.new_zeros(1, len(x), recurrent.shape[1])
    # PyTorch's has two biases, which are added.
    weights = [given, recurrent, bias, torch.zeros_like(bias)]
    states, _, _ = torch.lstm(x, (start, start), weights, True, 1, 0.0, False, False, True)
    return states


def _open_forget(tensor: Tensor, frozen: Mapping[str, Tensor], generator: Generator) -> None:
    tensor.zero_()
    quarter = len(tensor) // 4
    tensor[quarter : 2 * quarter] = 1.0
