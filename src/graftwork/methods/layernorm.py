"""Layer-norm tuning: only the gains and biases of the normalisations are trained.

Houlsby et al. 2019, "Parameter-Efficient Transfer Learning for NLP", section 3.4, as the smallest of its baselines:
    y = x̂ ⊙ (γ + Δγ) + β + Δβ,
with x̂ the normalised input. The differences to the frozen values are trained. They are zero at first, so that the
outputs are unchanged, in any precision.

Shapes: Δγ (d), and Δβ (d) if the norm has a bias: 2d (2L + 1) parameters on BERT.
"""

from collections.abc import Mapping, Sequence
from typing import ClassVar

from pydantic import Field
from torch import Tensor

from graftwork.backbones import Site, Sites
from graftwork.methods.method import Method
from graftwork.methods.parameters import Parameter, zeros
from graftwork.methods.targets import Targets
from graftwork.ops import Norm, Op


class LayerNormTuning(Method):
    """Layer-norm tuning: only norms are trained. A baseline with few parameters. Once merged, it adds no cost.

    Attributes:
        targets: site patterns of the norms that are trained (`layers.*`, `ffn.norm`); by default all of them.
    """

    name: ClassVar[str] = "layer-norm-tuning"
    paper: ClassVar[str] = "Houlsby et al. 2019, arXiv:1902.00751"
    when: ClassVar[str] = "the smallest baseline that acts in the layers"
    learning_rate: ClassVar[float] = 3e-3
    lowers_to: ClassVar[tuple[type[Op], ...]] = (Norm,)

    targets: Targets = Field(default=("*",), min_length=1)

    def sites(self, sites: Sites) -> list[Site]:
        return sites.match(self.targets, "norm")

    def declare(self, site: Site) -> dict[str, Parameter]:
        return {
            f"{site.name}.{name}": Parameter(shape=shape, init=zeros, group="norms", decay=False)
            for name, shape in site.parameters.items()
        }

    def replaces(self, site: Site) -> bool:
        return True

    def lower(self, site: Site, parameters: Mapping[str, Tensor], frozen: Mapping[str, Tensor]) -> Sequence[Op]:
        trained = {name: frozen[name] + parameters[f"{site.name}.{name}"] for name in site.parameters}
        return [Norm(gain=trained["weight"], bias=trained.get("bias"))]
