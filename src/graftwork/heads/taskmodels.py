"""The task models of feature extraction (Peters et al. 2019, section 3): what makes one vector a text or a token out of
the mixed layers, under a linear classifier.

Notation: B rows, T tokens, d width of the features, h `hidden_size`, σ relu, [;] concatenation.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from graftwork.errors import DataError
from graftwork.heads.head import declare_linear, linear
from graftwork.heads.sequences import attend, bilstm, declare_bilstm, maximum, mean
from graftwork.methods.parameters import Parameter, normal

Parameters = Mapping[str, Tensor]
Segments = Int[Tensor, "B T"] | None


@dataclass(frozen=True, kw_only=True)
class TaskModel:
    """A task model.

    Attributes:
        declare: its parameters, of d and h.
        width: of the vectors that it gives, of d and h.
        run: (B, T, d), mask, segments and parameters to (B, width), or (B, T, width) of one a token.
    """

    declare: Callable[[int, int], dict[str, Parameter]]
    width: Callable[[int, int], int]
    run: Callable[[Tensor, Tensor, Tensor | None, Parameters], Tensor]


def bilstm_states(
    x: Float[Tensor, "B T d"], mask: Bool[Tensor, "B T"], segments: Segments, parameters: Parameters
) -> Float[Tensor, "B T e"]:
    """One BiLSTM, its two states a token: e = 2h."""
    return bilstm(x, mask, parameters, "head.encoder")


def biattention(
    x: Float[Tensor, "B T d"], mask: Bool[Tensor, "B T"], segments: Segments, parameters: Parameters
) -> Float[Tensor, "B h"]:
    """The bi-attentive classification network of McCann et al. (2017, "Learned in Translation", section 5), of one text
    with itself:
        X = biLSTM(σ(W x + b));  C_t = Σ_s softmax_s(X_t · X_s) X_s;  Z = biLSTM([X; X - C; X ⊙ C])
        pooled = [max Z; mean Z; min Z; Σ_t softmax_t(v · Z_t) Z_t].

    Simplified: the two texts are one here, tanh(V pooled + c) stands for the three maxout layers, and v has no bias,
    which would change no softmax.
    """
    states = bilstm(torch.relu(linear(x, parameters, "head.project")), mask, parameters, "head.encoder")
    context = attend(states, states, mask)
    integrated = torch.cat([states, states - context, states * context], dim=-1)
    z = bilstm(integrated, mask, parameters, "head.integrator")
    scores = (z @ parameters["head.attention"].to(z)).masked_fill(~mask, float("-inf"))
    own = torch.einsum("bt,bte->be", scores.softmax(dim=1), z)
    pooled = torch.cat([maximum(z, mask), mean(z, mask), -maximum(-z, mask), own], dim=-1)
    return torch.tanh(linear(pooled, parameters, "head.dense"))


def _declare_biattention(d: int, h: int) -> dict[str, Parameter]:
    return {
        **declare_linear("head.project", d, h),
        **declare_bilstm("head.encoder", h, h),
        **declare_bilstm("head.integrator", 6 * h, h),
        "head.attention": Parameter(shape=(2 * h,), init=normal(0.02), group="head"),
        **declare_linear("head.dense", 8 * h, h),
    }


def esim(
    x: Float[Tensor, "B T d"], mask: Bool[Tensor, "B T"], segments: Segments, parameters: Parameters
) -> Float[Tensor, "B h"]:
    """ESIM, the sequential model of Chen et al. (2017, "Enhanced LSTM for Natural Language Inference", section 3):
        a_i, b_j = biLSTM of each text;  e_ij = a_i · b_j                          (eq. 1, 2, 11)
        a'_i = Σ_j softmax_j(e_ij) b_j;  b'_j = Σ_i softmax_i(e_ij) a_i                (12, 13)
        m = [a; a'; a - a'; a ⊙ a'], and so of b;  v = biLSTM(σ(W m + b))              (14-17)
        [mean v_a; max v_a; mean v_b; max v_b]                                        (18-20), then tanh(V · + c).

    Both texts stand in one row, and their special tokens with them: each text is what its segment marks.

    Raises:
        DataError: there are no pairs.
    """
    marks = torch.zeros_like(mask, dtype=torch.long) if segments is None else segments
    first, second = mask & (marks == 0), mask & (marks == 1)
    if not bool((first.any(dim=1) & second.any(dim=1)).all()):
        raise DataError(
            "the task model esim compares two texts, and "
            + ("the backbone does not tell which is which" if segments is None else "a row has only one"),
            expected="a task over pairs of texts, and a backbone whose tokenizer marks or separates them",
            change="--method.model, or the task's text_pair",
        )
    a, b = (bilstm(x, part, parameters, "head.encoder") for part in (first, second))
    pooled: list[Tensor] = []
    for own, other, part, rest in ((a, b, first, second), (b, a, second, first)):
        aligned = attend(own, other, rest)
        enhanced = torch.cat([own, aligned, own - aligned, own * aligned], dim=-1)
        projected = torch.relu(linear(enhanced, parameters, "head.project"))
        v = bilstm(projected, part, parameters, "head.composer")
        pooled += [mean(v, part), maximum(v, part)]
    return torch.tanh(linear(torch.cat(pooled, dim=-1), parameters, "head.dense"))


def _declare_esim(d: int, h: int) -> dict[str, Parameter]:
    return {
        **declare_bilstm("head.encoder", d, h),
        **declare_linear("head.project", 8 * h, h),
        **declare_bilstm("head.composer", h, h),
        **declare_linear("head.dense", 8 * h, h),
    }


BILSTM = TaskModel(
    declare=lambda d, h: declare_bilstm("head.encoder", d, h), width=lambda d, h: 2 * h, run=bilstm_states
)
BIATTENTION = TaskModel(declare=_declare_biattention, width=lambda d, h: h, run=biattention)
ESIM = TaskModel(declare=_declare_esim, width=lambda d, h: h, run=esim)
