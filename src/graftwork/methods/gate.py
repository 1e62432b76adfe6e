"""Gates: each part is multiplied, at each token, by a number that a linear map of the hidden state gives.

With q the sub-layer's output and u_n what part n adds, y = h + Σ_n g_n u_n, where g = σ(W q + w) (one gate a part), or
g = softmax(W q + w) (a router, as of a mixture of experts: Shazeer et al. 2017, "Outrageously Large Neural Networks").

Shapes: W (N, d), w (N) at each place, for N parts.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, ClassVar, Literal

from torch import Tensor

from graftwork.backbones import Site
from graftwork.methods.gating import GatedComposition
from graftwork.methods.parameters import Parameter, normal, zeros
from graftwork.ops import Fused, PartGates

INIT_STD = 0.02
"""Of W: gates start near one half, and a router near equal shares."""


class Gate(GatedComposition):
    """Gated parts. Use it for a mixture of adapters at a fraction of the size of `fuse`.

    With new methods as parts (`parts=["lora", "lora"]`) it is a mixture of experts with a learned router per token.

    Attributes:
        normalise: `sigmoid`: each part has a gate of its own; `softmax`: the parts share 1.
    """

    name: ClassVar[str] = "gate"
    paper: ClassVar[str] = "Shazeer et al. 2017, arXiv:1701.06538"
    when: ClassVar[str] = "a learned router over adapters, one number a token"

    normalise: Literal["sigmoid", "softmax"] = "sigmoid"

    def declare_own(self, site: Site) -> dict[str, Parameter]:
        count = len(self.parts)
        return {
            f"gate.{site.name}.weight": Parameter(shape=(count, site.out_features), init=normal(INIT_STD)),
            f"gate.{site.name}.bias": Parameter(shape=(count,), init=zeros, decay=False),
        }

    def gated(self, site: Site, units: Fused, gates: Mapping[str, Any], parameters: Mapping[str, Tensor]) -> Fused:
        weight, bias = (parameters[f"gate.{site.name}.{name}"] for name in ("weight", "bias"))
        gate = PartGates(**gates, router=weight, router_bias=bias, normalise=self.normalise)
        return replace(units, gates=(*units.gates, gate))
