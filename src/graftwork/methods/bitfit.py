"""BitFit: only the biases are trained.

Ben Zaken et al. 2022, "BitFit: Simple Parameter-efficient Fine-tuning for Transformer-based Masked Language-models",
section 3:
    y = W x + b + Δb,
at every linear layer and norm that has a bias. The trained parameter is the difference Δb to the frozen bias. It starts
at zero, which leaves the backbone unchanged in any precision.

Shapes: Δb as the bias. The parts of a fused product have a part of its bias each.
"""

from collections.abc import Mapping, Sequence
from typing import ClassVar

from torch import Tensor

from graftwork.backbones import Site, Sites
from graftwork.errors import SiteError
from graftwork.methods.method import Method
from graftwork.methods.parameters import Group, Parameter, zeros
from graftwork.ops import Bias, Dense, Op


class BitFit(Method):
    """BitFit: only biases are trained. A strong baseline with few parameters, for models with biases. Once merged, it
    adds no cost.
    """

    name: ClassVar[str] = "bitfit"
    paper: ClassVar[str] = "Ben Zaken et al. 2022, arXiv:2106.10199"
    when: ClassVar[str] = "a small baseline, for backbones that have biases"
    learning_rate: ClassVar[float] = 3e-3
    lowers_to: ClassVar[tuple[type[Op], ...]] = (Bias, Dense)

    def sites(self, sites: Sites) -> list[Site]:
        sites.require("linear")
        biased = [s for s in sites.values() if s.biased or "bias" in s.parameters]
        # A fused product's bias is its parts'.
        chosen = [site for site in biased if site.kind != "fused"]
        if not chosen:
            raise SiteError(
                "BitFit trains biases, and the backbone has none",
                expected="a backbone with biases (BERT's layout, GPT-2), or another method with few parameters "
                "(layer-norm-tuning, ia3)",
                change="--method",
            )
        return chosen

    def declare(self, site: Site) -> dict[str, Parameter]:
        shape = (site.out_features,) if site.kind == "linear" else site.parameters["bias"]
        group: Group = "norms" if site.kind == "norm" else "adapter"
        return {f"{site.name}.bias": Parameter(shape=shape, init=zeros, group=group, decay=False)}

    def replaces(self, site: Site) -> bool:
        return site.kind not in Bias.kinds

    def lower(self, site: Site, parameters: Mapping[str, Tensor], frozen: Mapping[str, Tensor]) -> Sequence[Op]:
        difference = parameters[f"{site.name}.bias"]
        return [Dense(differences={"bias": difference}) if self.replaces(site) else Bias(b=difference)]
