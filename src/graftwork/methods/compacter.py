"""Compacter: bottlenecks whose maps are sums of Kronecker products, with one factor for the whole model.

Karimi Mahabadi et al. 2021, "Compacter: Efficient Low-Rank Hypercomplex Adapter Layers", NeurIPS, section 3.
A map from k to d is y = x H + b with
    H = Σ_{i=1..n} A_i ⊗ (s_i t_iᵀ),
A_i (n × n), s_i (k/n × r), t_i (d/n × r), r = 1. A is one tensor for all maps of the model. The plain parametrised
hypercomplex map (PHM; Zhang et al. 2021, "Beyond Fully-Connected Layers with Quaternions", arXiv:2102.08597, eq. 3.2)
has a matrix B_i (k/n × d/n) instead of s_i t_iᵀ, and an A for each map.

Shapes: A (n, n, n), s (n, k/n, r), t (n, r, d/n), or B (n, k/n, d/n). A rank-1 map has k + d parameters, and d for
its bias.
"""

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

import torch
from pydantic import PositiveFloat, PositiveInt
from torch import Tensor

from graftwork.backbones import Site
from graftwork.errors import MethodError
from graftwork.methods.bottleneck import BottleneckMethod
from graftwork.methods.parameters import Parameter, glorot_uniform, normal, stacked, zeros
from graftwork.methods.placement import Placement, Sublayers

SHARED = "shared"
"""The owner of the A that all maps use."""


class Compacter(BottleneckMethod):
    """Compacter: bottlenecks made of Kronecker products, twice per layer. With other settings, Compacter++
    (`compacter++`), only after the feed-forward layer, and PHM adapters (`phm`).

    Use it when adapters must be very small: 0.05 % of the backbone.

    Attributes:
        init_std: standard deviation of the normal distribution of the initial A. The other factors are Glorot-uniform
            and the biases zero, so that the outputs are nearly unchanged at first.
        phm_dim: number n of products; it must divide d and m.
        phm_rank: rank r of the second factors; None: full matrices, as in PHM.
        share_rule: use one A for the whole model, instead of one per map.
    """

    name: ClassVar[str] = "compacter"
    paper: ClassVar[str] = "Karimi Mahabadi et al. 2021, arXiv:2106.04647"
    when: ClassVar[str] = "bottlenecks in some kilobytes"
    learning_rate: ClassVar[float] = 3e-3
    placement: ClassVar[Placement] = "result"

    reduction: PositiveInt | None = 32
    init_std: PositiveFloat = 1e-4
    norms: Literal["all", "layers", "none"] = "all"
    sublayers: Sublayers = ("attention", "ffn")
    phm_dim: PositiveInt = 4
    phm_rank: PositiveInt | None = 1
    share_rule: bool = True

    def declare_bottleneck(self, owner: str, d: int, m: int) -> dict[str, Parameter]:
        if d % self.phm_dim or m % self.phm_dim:
            raise MethodError(
                f"phm_dim={self.phm_dim} does not divide both the hidden size {d} and the bottleneck's {m}",
                expected="a divisor of both",
                change="--method.phm_dim, or --method.bottleneck or --method.reduction",
            )
        return {
            **self._declare_map(f"{owner}.down", d, m),
            **self._declare_map(f"{owner}.up", m, d),
        }

    def lower_bottleneck(self, site: Site, owner: str, parameters: Mapping[str, Tensor]) -> dict[str, Any]:
        fields: dict[str, Any] = {}
        for name in ("down", "up"):
            fields[name] = self._weight(f"{owner}.{name}", parameters)
            fields[f"{name}_bias"] = parameters[f"{owner}.{name}.bias"]
        return fields

    def _rule(self, name: str) -> str:
        return f"{SHARED if self.share_rule else name}.A"

    def _declare_map(self, name: str, k: int, d: int) -> dict[str, Parameter]:
        """A map from k to d."""
        n, r = self.phm_dim, self.phm_rank
        shapes = {"B": (n, k // n, d // n)} if r is None else {"s": (n, k // n, r), "t": (n, r, d // n)}
        return {
            self._rule(name): Parameter(shape=(n, n, n), init=normal(self.init_std)),
            **{f"{name}.{factor}": Parameter(shape=s, init=stacked(glorot_uniform)) for factor, s in shapes.items()},
            f"{name}.bias": Parameter(shape=(d,), init=zeros, decay=False),
        }

    def _weight(self, name: str, parameters: Mapping[str, Tensor]) -> Tensor:
        """Hᵀ, (d, k): n·k·d multiplications a pass, whatever the number of tokens."""
        A = parameters[self._rule(name)]
        low_rank = self.phm_rank is not None
        B = parameters[f"{name}.s"] @ parameters[f"{name}.t"] if low_rank else parameters[f"{name}.B"]
        n, rows, columns = B.shape
        return torch.einsum("iab,ipq->bqap", A, B).reshape(n * columns, n * rows)
