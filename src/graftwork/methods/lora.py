"""LoRA: a low-rank update of the frozen linear layers.

Hu et al. 2021, "LoRA: Low-Rank Adaptation of Large Language Models", section 4.1, eq. 3:
    y = W x + b + s · B A x,    s = α / r.
A starts Kaiming-uniform and B zero, so that nothing is changed at first. r (in + out) numbers a linear map.

With other settings it is:
- rsLoRA (Kalajdzievski 2023, arXiv:2312.03732, theorem 3.2): s = α / √r, so that large ranks learn as small ones do.
- LoRA+ (Hayou et al. 2024, arXiv:2402.12354, section 5): B learns at 16 times the rate of A.
- PiSSA (Meng et al. 2024, arXiv:2404.02948, eq. 2-4): with W = U S Vᵀ, A0 = √S_r V_rᵀ and B0 = U_r √S_r / s are what is
  trained, from the residual W − s B0 A0 on. That is the difference s (B A − B0 A0) to W itself, which is run as
      s [B − B0, B0] · [A; A − A0],
  of rank 2r: both factors of a zero are zeros at first, so the difference is exactly zero, in any precision.

Shapes: A, A0 (r, in), B, B0 (out, r).
"""

from collections.abc import Mapping, Sequence
from math import sqrt
from typing import ClassVar, Literal

import torch
from pydantic import Field, PositiveFloat, PositiveInt
from torch import Generator, Tensor

from graftwork.backbones import Site, Sites
from graftwork.errors import MethodError
from graftwork.methods.method import Method
from graftwork.methods.parameters import Init, Parameter, kaiming_uniform, zeros
from graftwork.methods.targets import Targets
from graftwork.ops import LowRank, Op


class LoRA(Method):
    """Low-rank adaptation (LoRA). A good default: small adapters that can be merged into the weights, after which they
    add no cost.

    Attributes:
        rank: rank r of the update.
        alpha: α; the update is scaled by s = α / r.
        rank_stabilised: scale the update by α / √r instead (rsLoRA).
        dropout: dropout of the input of A, in training.
        targets: site patterns of the linear maps to adapt (`query`, `attention.*`, `layers.[0-5].ffn.up`), as a list or
            separated by commas. By default all linear maps in the layers.
        b_rate: learning rate of B as a multiple of that of A (LoRA+: 16).
        init: `default`, or `pissa`, which starts from the principal singular vectors of each weight.
    """

    name: ClassVar[str] = "lora"
    paper: ClassVar[str] = "Hu et al. 2021, arXiv:2106.09685"
    when: ClassVar[str] = "a good default: small, and no cost once merged"
    lowers_to: ClassVar[tuple[type[Op], ...]] = (LowRank,)

    rank: PositiveInt = 8
    alpha: PositiveFloat = 16.0
    rank_stabilised: bool = False
    dropout: float = Field(default=0.0, ge=0.0, lt=1.0)
    targets: Targets = Field(default=("layers.*",), min_length=1)
    b_rate: PositiveFloat = 1.0
    init: Literal["default", "pissa"] = "default"

    @property
    def learning_rate(self) -> float:
        """Learning rate of A: 5e-4, or less if that of B, which is a multiple of it (LoRA+), would exceed 1.6e-3."""
        return min(5e-4, 1.6e-3 / self.b_rate)

    @property
    def scale(self) -> float:
        """The factor s of the update."""
        return self.alpha / (sqrt(self.rank) if self.rank_stabilised else self.rank)

    def sites(self, sites: Sites) -> list[Site]:
        return sites.match(self.targets, "linear")

    def declare(self, site: Site) -> dict[str, Parameter]:
        a_shape, b_shape = (self.rank, site.in_features), (site.out_features, self.rank)
        if self.init == "default":
            return {
                f"{site.name}.A": Parameter(shape=a_shape, init=kaiming_uniform(sqrt(5))),
                f"{site.name}.B": Parameter(shape=b_shape, init=zeros, rate=self.b_rate),
            }
        if self.rank > min(site.in_features, site.out_features):
            raise MethodError(
                f"PiSSA of rank {self.rank} does not fit site {site.name!r}, whose weight is {site.out_features} x "
                f"{site.in_features}",
                expected=f"a rank of at most {min(site.in_features, site.out_features)}",
                change="--method.rank or --method.targets",
            )
        a_init, b_init = _principal(self.rank, self.scale)
        return {
            f"{site.name}.A": Parameter(shape=a_shape, init=a_init),
            f"{site.name}.B": Parameter(shape=b_shape, init=b_init, rate=self.b_rate),
            f"{site.name}.A0": Parameter(shape=a_shape, init=a_init, trained=False),
            f"{site.name}.B0": Parameter(shape=b_shape, init=b_init, trained=False),
        }

    def lower(self, site: Site, parameters: Mapping[str, Tensor], frozen: Mapping[str, Tensor]) -> Sequence[Op]:
        A, B = parameters[f"{site.name}.A"], parameters[f"{site.name}.B"]
        if self.init == "pissa":
            A0, B0 = parameters[f"{site.name}.A0"], parameters[f"{site.name}.B0"]
            A, B = torch.cat([A, A - A0]), torch.cat([B - B0, B0], dim=1)
        return [LowRank(A=A, B=B * self.scale, dropout=self.dropout)]


def _principal(rank: int, scale: float) -> tuple[Init, Init]:
    """How A and B start at the r largest singular values of one site's weight, which is decomposed once for both."""
    factors: dict[str, Tensor] = {}

    def decompose(weight: Tensor) -> None:
        if not factors:
            # By the smaller of WᵀW and WWᵀ in float64, which is an order faster than a decomposition of W and as
            # good for the largest singular values.
            wide = weight.shape[0] < weight.shape[1]
            tall = weight.double().T if wide else weight.double()
            values, vectors = torch.linalg.eigh(tall.T @ tall)
            near = vectors[:, -rank:].flip(1)
            root = values[-rank:].flip(0).clamp_min(torch.finfo(torch.float32).tiny) ** 0.25
            near, far = near * root, tall @ near / root
            A, B = (far, near) if wide else (near, far)
            factors.update(A=A.T, B=B / scale)

    def fill_a(tensor: Tensor, frozen: Mapping[str, Tensor], generator: Generator) -> None:
        decompose(frozen["weight"])
        tensor.copy_(factors["A"])

    def fill_b(tensor: Tensor, frozen: Mapping[str, Tensor], generator: Generator) -> None:
        decompose(frozen["weight"])
        tensor.copy_(factors["B"])

    return fill_a, fill_b
