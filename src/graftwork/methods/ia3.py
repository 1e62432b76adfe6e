"""IA3: keys, values and the feed-forward's hidden activation multiplied by trained vectors.

Liu et al. 2022, "Few-Shot Parameter-Efficient Fine-Tuning is Better and Cheaper than In-Context Learning", section 3.3:
    softmax(Q (l_k ⊙ K)ᵀ / √d_k) (l_v ⊙ V),    (l_ff ⊙ γ(W_1 x)) W_2,
with γ the nonlinearity. In a gated feed-forward layer, l_ff multiplies the input of W_2. All vectors start at one, so
that the outputs are unchanged at first.

Shapes: output_scale (out) for keys and values, input_scale (in) for the second map of the feed-forward layer:
L (2d + f) parameters in an encoder. Cross-attention has separate vectors.
"""

from collections.abc import Mapping, Sequence
from typing import ClassVar

from pydantic import model_validator
from torch import Tensor

from graftwork.backbones import Site, Sites
from graftwork.errors import SiteError
from graftwork.methods.method import Method
from graftwork.methods.parameters import Parameter, ones
from graftwork.methods.targets import Targets
from graftwork.ops import Op, Scale


class IA3(Method):
    """IA3: trained scaling of keys, values and the feed-forward layer. Use it for few examples, or for adapters of some
    thousand parameters. Once merged, it adds no cost.

    Attributes:
        outputs: site patterns of the linear maps whose output is scaled. By default keys and values, including those of
            cross-attention.
        inputs: site patterns of the linear maps whose input is scaled. By default the second map of the feed-forward
            layer.
    """

    name: ClassVar[str] = "ia3"
    paper: ClassVar[str] = "Liu et al. 2022, arXiv:2205.05638"
    when: ClassVar[str] = "few examples, or a few kilobytes a task"
    learning_rate: ClassVar[float] = 1e-2
    lowers_to: ClassVar[tuple[type[Op], ...]] = (Scale,)

    outputs: Targets = ("key", "value")
    inputs: Targets = ("ffn.down",)

    @model_validator(mode="after")
    def _somewhere(self) -> "IA3":
        if not (self.outputs or self.inputs):
            raise ValueError("outputs and inputs are both empty: nothing would be trained")
        return self

    def sites(self, sites: Sites) -> list[Site]:
        chosen = {site.name for site in sites.match(self.outputs, "linear", "outputs")}
        for site in sites.match(self.inputs, "linear", "inputs"):
            if site.columns is not None:
                raise SiteError(
                    f"the input of site {site.name!r} cannot be scaled alone: one product computes it and others",
                    expected="in `inputs`, linear layers that are separate modules",
                    change="--method.inputs",
                )
            chosen.add(site.name)
        return [site for site in sites.values() if site.name in chosen]

    def declare(self, site: Site) -> dict[str, Parameter]:
        widths = {}
        if site.matches(self.inputs):
            widths["input_scale"] = site.in_features
        if site.matches(self.outputs):
            widths["output_scale"] = site.out_features
        return {
            f"{site.name}.{name}": Parameter(shape=(width,), init=ones, decay=False) for name, width in widths.items()
        }

    def lower(self, site: Site, parameters: Mapping[str, Tensor], frozen: Mapping[str, Tensor]) -> Sequence[Op]:
        into, out = parameters.get(f"{site.name}.input_scale"), parameters.get(f"{site.name}.output_scale")
        ops = [] if into is None else [Scale(v=into, at="input")]
        return ops if out is None else [*ops, Scale(v=out)]
