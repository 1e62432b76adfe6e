"""Stacks: parts that act one after the other.

Pfeiffer et al. 2020, "MAD-X", EMNLP: a task's adapter on top of a frozen language's adapter. Where two parts
act at one site, the later one changes the output of the earlier one.
"""

from collections.abc import Mapping, Sequence
from typing import ClassVar

from pydantic import Field
from torch import Tensor

from graftwork.backbones import Site
from graftwork.errors import MethodError
from graftwork.methods.composition import Composition
from graftwork.methods.parameters import Parameter
from graftwork.methods.parts import Parts
from graftwork.ops import Op
from graftwork.ops.prompt import as_one


class Stack(Composition):
    """Adapters one on top of the other, the first one innermost. Use it to train a new method on top of an adapter.

    Any methods can be stacked, at any sites: `gw.Stack(parts=[domain_adapter, "pfeiffer"])` trains a new bottleneck on
    top of a frozen adapter.
    """

    name: ClassVar[str] = "stack"
    paper: ClassVar[str] = "Pfeiffer et al. 2020, arXiv:2005.00052"
    when: ClassVar[str] = "a new adapter on top of a frozen one"

    parts: Parts = Field(default=("lora", "pfeiffer"), min_length=1, validate_default=True)

    @property
    def lowers_to(self) -> tuple[type[Op], ...]:
        return tuple(dict.fromkeys(op for part in self.parts for op in part.method.lowers_to))

    def check_sites(self, chosen: Mapping[str, Mapping[str, Site]]) -> None:
        for name, own in chosen.items():
            replacing = [p.name for p in self.parts if p.name in own and p.method.replaces(own[p.name])]
            if len(replacing) > 1:
                raise MethodError(
                    f"parts {replacing[0]!r} and {replacing[1]!r} both replace what site {name!r} computes",
                    expected="parts that do not train the same weights",
                    change="the parts",
                )

    def declare_own(self, site: Site) -> dict[str, Parameter]:
        return {}

    def combine(
        self,
        site: Site,
        ops: Mapping[str, Sequence[Op]],
        parameters: Mapping[str, Tensor],
        frozen: Mapping[str, Tensor],
    ) -> Sequence[Op]:
        return as_one([op for acting in ops.values() for op in acting])
