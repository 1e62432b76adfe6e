"""AdapterFusion: attention over the outputs of several adapters, at each place where they act.

Pfeiffer et al. 2021, "AdapterFusion: Non-Destructive Task Composition for Transfer Learning", EACL. With
q the sub-layer's output and u_n what adapter n adds, without its residual,
    p = softmax over n of (Q q + b_q)·(K u_n + b_k), without a factor 1/√d,
    o = Σ_n p_n V u_n,
which takes the place of u_n. In training the scores have dropout, and the loss has r · Σ ‖I − V‖²_F.

Where the adapters act behind the sum with the residual, q is that sum: normalised where a norm follows it, as x of the
adapters is. Elsewhere q is what the adapters are added to.

Shapes: Q, K, V (d, d), b_q, b_k (d) at each place: 3d² + 2d parameters; L(3d² + 2d) with one place a layer, 21,252,096
on BERT-base. What runs has no d x d product: see `graftwork.ops.fused`.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, ClassVar

import torch
from pydantic import Field, NonNegativeFloat
from torch import Generator, Tensor

from graftwork.backbones import Site
from graftwork.methods.gating import GatedComposition
from graftwork.methods.parameters import Parameter, normal, zeros
from graftwork.ops import Fused, PartGates

INIT_STD = 0.02
"""Of Q and K."""

OFF_DIAGONAL = 1e-6
"""What V starts with beside its diagonal of ones."""


class Fuse(GatedComposition):
    """AdapterFusion: attention over adapters. Use it when other tasks' adapters may help a task with little data.

    The parts are bottlenecks without trained norms, or LoRA; their sizes may differ, and their sites may not. With
    `train_parts` the parts are trained as well, at the same rate.

    Attributes:
        regularization: r, which keeps V near the identity.
        attention_dropout: dropout of the scores, as BERT's attention has it.
    """

    name: ClassVar[str] = "fuse"
    paper: ClassVar[str] = "Pfeiffer et al. 2021, arXiv:2005.00247"
    when: ClassVar[str] = "other tasks' adapters may help: attention over them"
    learning_rate: ClassVar[float] = 5e-5

    regularization: NonNegativeFloat = 0.01
    attention_dropout: float = Field(default=0.1, ge=0.0, lt=1.0)

    def declare_own(self, site: Site) -> dict[str, Parameter]:
        d = site.out_features
        square = Parameter(shape=(d, d), init=normal(INIT_STD))
        bias = Parameter(shape=(d,), init=zeros, decay=False)
        own = {
            "query": square,
            "query_bias": bias,
            "key": square,
            "key_bias": bias,
            "value": Parameter(shape=(d, d), init=_near_identity, decay=False),
        }
        return {f"fusion.{site.name}.{name}": parameter for name, parameter in own.items()}

    def gated(self, site: Site, units: Fused, gates: Mapping[str, Any], parameters: Mapping[str, Tensor]) -> Fused:
        Q, b_q, K, b_k, V = (
            parameters[f"fusion.{site.name}.{name}"] for name in ("query", "query_bias", "key", "key_bias", "value")
        )
        keys = K @ units.up
        gate = PartGates(
            **gates,
            score=keys.T @ Q,
            score_bias=keys.T @ b_q,
            common=(b_k @ Q)[None],
            common_bias=(b_k @ b_q)[None],
            dropout=self.attention_dropout,
        )
        return replace(units, up=V @ units.up, gates=(*units.gates, gate))

    def penalty(self, parameters: Mapping[str, Tensor]) -> Tensor | None:
        """r · Σ ‖I − V‖²_F over the places."""
        own = [t for name, t in parameters.items() if name.startswith("fusion.") and name.endswith(".value")]
        distances = [(torch.eye(len(V), dtype=V.dtype, device=V.device) - V).square().sum() for V in own]
        inner = super().penalty(parameters)
        found = self.regularization * torch.stack(distances).sum()
        return found if inner is None else found + inner


def _near_identity(tensor: Tensor, frozen: Mapping[str, Tensor], generator: Generator) -> None:
    tensor.fill_(OFF_DIAGONAL)
    tensor.fill_diagonal_(1.0)
