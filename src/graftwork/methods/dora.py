"""DoRA: LoRA on the direction of each weight row, with the row's magnitude trained separately.

Liu et al. 2024, "DoRA: Weight-Decomposed Low-Rank Adaptation", section 4, eq. 5 and 11, over output rows:
    W' = g ⊙ (W + s B A) / ‖W + s B A‖,    y = W' x + b,    s = α / r,
with g = ‖W‖ at first and the norm taken as a constant in the backward pass (section 4.3). The bias is not
scaled. Lowered to ops: with c = g / ‖W + s B A‖,
    y = c ⊙ (W x + b + s B A x) + (1 − c) ⊙ b.

Shapes: A (r, in), B (out, r), magnitude g (out). r (in + out) + out parameters per linear map.
"""

from collections.abc import Mapping, Sequence
from math import sqrt
from typing import ClassVar

import torch
from pydantic import Field, PositiveFloat, PositiveInt
from torch import Generator, Tensor

from graftwork.backbones import Site, Sites
from graftwork.methods.method import Method
from graftwork.methods.parameters import Parameter, kaiming_uniform, zeros
from graftwork.methods.targets import Targets
from graftwork.ops import Bias, LowRank, Op, Scale


class DoRA(Method):
    """DoRA: LoRA with a trained magnitude for each output. Use it instead of LoRA at small ranks, where it is closer to
    full fine-tuning. Training steps take longer, because the length of each row of the adapted weights is computed.

    Attributes:
        rank: rank r of the update.
        alpha: α; the low-rank update is scaled by α / r.
        dropout: dropout of the input of A, in training.
        targets: site patterns of the linear maps to adapt, as for `LoRA`. By default all linear maps in the layers.
    """

    name: ClassVar[str] = "dora"
    paper: ClassVar[str] = "Liu et al. 2024, arXiv:2402.09353"
    when: ClassVar[str] = "LoRA at small ranks, when training time matters less"
    learning_rate: ClassVar[float] = 5e-4
    lowers_to: ClassVar[tuple[type[Op], ...]] = (LowRank, Scale, Bias)

    rank: PositiveInt = 8
    alpha: PositiveFloat = 16.0
    dropout: float = Field(default=0.0, ge=0.0, lt=1.0)
    targets: Targets = Field(default=("layers.*",), min_length=1)

    def sites(self, sites: Sites) -> list[Site]:
        return sites.match(self.targets, "linear")

    def declare(self, site: Site) -> dict[str, Parameter]:
        return {
            f"{site.name}.A": Parameter(shape=(self.rank, site.in_features), init=kaiming_uniform(sqrt(5))),
            f"{site.name}.B": Parameter(shape=(site.out_features, self.rank), init=zeros),
            f"{site.name}.magnitude": Parameter(shape=(site.out_features,), init=_row_lengths, decay=False),
        }

    def lower(self, site: Site, parameters: Mapping[str, Tensor], frozen: Mapping[str, Tensor]) -> Sequence[Op]:
        A, scaled = parameters[f"{site.name}.A"], parameters[f"{site.name}.B"] * (self.alpha / self.rank)
        with torch.no_grad():
            lengths = _lengths(frozen["weight"] + scaled @ A)
        c = parameters[f"{site.name}.magnitude"] / lengths
        ops: list[Op] = [LowRank(A=A, B=scaled, dropout=self.dropout), Scale(v=c)]
        return [*ops, Bias(b=(1 - c) * frozen["bias"])] if site.biased else ops


def _lengths(weight: Tensor) -> Tensor:
    """‖W‖ of each row, in float32. A row of zeros has a length, however small, so that it can be divided by."""
    lengths: Tensor = weight.float().contiguous().norm(dim=1)
    return lengths.clamp_min(torch.finfo(torch.float32).tiny)


def _row_lengths(tensor: Tensor, frozen: Mapping[str, Tensor], generator: Generator) -> None:
    tensor.copy_(_lengths(frozen["weight"]))
