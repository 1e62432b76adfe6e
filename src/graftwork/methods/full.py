"""Full fine-tuning: every weight of the backbone is trained (Devlin et al. 2019, section 4).

What is trained and kept is the difference to the frozen weights, ΔW = 0 at first, in float32; the backbone itself never
changes, so that a fully fine-tuned task is an adapter like any other, only larger.
"""

from collections.abc import Mapping, Sequence
from typing import ClassVar

from torch import Tensor

from graftwork.backbones import Site, Sites
from graftwork.methods.method import Method
from graftwork.methods.parameters import Parameter, zeros
from graftwork.ops import Dense, Op


class FullFineTuning(Method):
    """Full fine-tuning. Weight decay draws each weight to its pretrained value, since the difference is what decays."""

    name: ClassVar[str] = "full-fine-tuning"
    paper: ClassVar[str] = "Devlin et al. 2019, arXiv:1810.04805"
    learning_rate: ClassVar[float] = 5e-5
    num_train_epochs: ClassVar[int] = 3
    frozen_backbone: ClassVar[bool] = False
    lowers_to: ClassVar[tuple[type[Op], ...]] = (Dense,)

    def sites(self, sites: Sites) -> list[Site]:
        return [site for site in sites.values() if site.parameters]

    def declare(self, site: Site) -> dict[str, Parameter]:
        return {
            f"{site.owner}.{name}": Parameter(
                shape=shape,
                init=zeros,
                group="norms" if site.kind == "norm" else "adapter",
                decay=name == "weight" and site.kind != "norm",
            )
            for name, shape in site.parameters.items()
        }

    def lower(self, site: Site, parameters: Mapping[str, Tensor], frozen: Mapping[str, Tensor]) -> Sequence[Op]:
        return [Dense(differences={name: parameters[f"{site.owner}.{name}"] for name in site.parameters})]
