"""Head-only tuning: the backbone is unchanged, and only the task's output layer is trained."""

from abc import ABC
from collections.abc import Mapping, Sequence
from typing import ClassVar

from torch import Tensor

from graftwork.backbones import Site, Sites
from graftwork.methods.method import Method
from graftwork.methods.parameters import Parameter
from graftwork.ops import Op


class HeadMethod(Method, ABC):
    """A method that acts at no site: what is trained is the head."""

    lowers_to: ClassVar[tuple[type[Op], ...]] = ()

    def sites(self, sites: Sites) -> list[Site]:
        return []

    def declare(self, site: Site) -> dict[str, Parameter]:
        raise AssertionError("it acts at no site")

    def lower(self, site: Site, parameters: Mapping[str, Tensor], frozen: Mapping[str, Tensor]) -> Sequence[Op]:
        raise AssertionError("it acts at no site")


class HeadOnly(HeadMethod):
    """Head only: a linear classifier over the pooled output of the frozen backbone. The lower baseline."""

    name: ClassVar[str] = "head-only"
    paper: ClassVar[str] = "the feature-based baseline of Peters et al. 2019, arXiv:1903.05987"
    when: ClassVar[str] = "the lower baseline: a linear layer on frozen features"
    learning_rate: ClassVar[float] = 1e-2
