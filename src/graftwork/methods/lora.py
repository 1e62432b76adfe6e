"""LoRA: a low-rank difference beside the frozen linear maps.

Hu et al. 2021, "LoRA: Low-Rank Adaptation of Large Language Models", section 4.1, eq. 3:
    y = W x + b + (α / r) · B A x.

Shapes: A (r, in), B (out, r). A starts Kaiming-uniform, B zero, so that nothing is changed at first.
"""

from collections.abc import Mapping, Sequence
from math import sqrt
from typing import Annotated, ClassVar

from pydantic import BeforeValidator, Field, PositiveFloat, PositiveInt
from torch import Tensor

from graftwork.backbones import Site, Sites
from graftwork.methods.method import Method
from graftwork.methods.parameters import Parameter, kaiming_uniform, zeros
from graftwork.ops import LowRank, Op


def _as_patterns(value: object) -> object:
    return value.split(",") if isinstance(value, str) else value


class LoRA(Method):
    """LoRA.

    Settings:
        rank: r.
        alpha: α; the difference is scaled by α / r.
        dropout: of the input to A, in training.
        targets: site patterns (`query`, `attention.*`, `layers.[0-5].ffn.up`), a list or separated by commas; by
            default all linear maps in the layers.
    """

    name: ClassVar[str] = "lora"
    paper: ClassVar[str] = "Hu et al. 2021, arXiv:2106.09685"
    learning_rate: ClassVar[float] = 5e-4

    rank: PositiveInt = 8
    alpha: PositiveFloat = 16.0
    dropout: float = Field(default=0.0, ge=0.0, lt=1.0)
    targets: Annotated[tuple[str, ...], BeforeValidator(_as_patterns)] = Field(default=("layers.*",), min_length=1)

    def sites(self, sites: Sites) -> list[Site]:
        return sites.match(self.targets, "linear")

    def declare(self, site: Site) -> dict[str, Parameter]:
        return {
            f"{site.name}.A": Parameter(shape=(self.rank, site.in_features), init=kaiming_uniform(sqrt(5))),
            f"{site.name}.B": Parameter(shape=(site.out_features, self.rank), init=zeros),
        }

    def lower(self, site: Site, parameters: Mapping[str, Tensor], frozen: Mapping[str, Tensor]) -> Sequence[Op]:
        scaled = parameters[f"{site.name}.B"] * (self.alpha / self.rank)
        return [LowRank(A=parameters[f"{site.name}.A"], B=scaled, dropout=self.dropout)]
