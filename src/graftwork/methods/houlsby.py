"""Bottleneck adapters as Houlsby et al. (2019) place them: twice a layer, after each sub-layer's output.

"Parameter-Efficient Transfer Learning for NLP", ICML 2019, section 2.1 and figure 2:
    A(h) = h + W_up · σ(W_down · h + b_down) + b_up,
with h the output of a sub-layer after its projection and dropout, before the skip connection and its layer norm.

Shapes: W_down (m, d), b_down (m), W_up (d, m), b_up (d) for bottleneck size m and hidden size d. A layer has two
bottlenecks of 2md + m + d parameters each; with `share_positions` one serves both, with `share_layers` = n one serves
n consecutive layers.
"""

from typing import ClassVar, Literal

from pydantic import PositiveFloat, PositiveInt

from graftwork.methods.placement import Placement, Sublayers
from graftwork.methods.projections import DenseBottleneck


class Houlsby(DenseBottleneck):
    """Houlsby adapters. Use them when quality comes first and a few megabytes per task are acceptable.

    The paper trains all layer norms, the embeddings' included. Its section 3.6 also tried other values of `depth`,
    `layer_norm`, `activation` and `sublayers`, which were no better.

    Attributes:
        init_std: standard deviation of the initial weights, whose distribution is cut at two standard deviations. The
            paper has 1e-2, its code 1e-3.
    """

    name: ClassVar[str] = "houlsby"
    paper: ClassVar[str] = "Houlsby et al. 2019, arXiv:1902.00751"
    when: ClassVar[str] = "quality first: two bottlenecks a layer"
    learning_rate: ClassVar[float] = 1e-3
    placement: ClassVar[Placement] = "result"
    truncated: ClassVar[bool] = True

    bottleneck: PositiveInt | None = 64
    init_std: PositiveFloat | None = 1e-2
    norms: Literal["all", "layers", "none"] = "all"
    sublayers: Sublayers = ("attention", "ffn")
