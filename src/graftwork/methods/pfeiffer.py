"""Bottleneck adapters as Pfeiffer et al. (2021) place them: once a layer, after the feed-forward.

"AdapterFusion: Non-Destructive Task Composition for Transfer Learning", EACL 2021, figure 5 and appendix A. Where a
layer norm follows the residual, with s the sum of the feed-forward's output and its input,
    y = LN(s + W_up · σ(W_down · LN(s) + b_down) + b_up),
the same pretrained norm twice. Where the norm comes before the sub-layer, with o the feed-forward's output,
    y = o + W_up · σ(W_down · o + b_down) + b_up, before the residual is added.

Shapes: W_down (m, d), b_down (m), W_up (d, m), b_up (d): 2md + m + d parameters a layer, half of Houlsby's.
"""

from typing import ClassVar

from pydantic import PositiveFloat, PositiveInt

from graftwork.methods.placement import Placement
from graftwork.methods.projections import DenseBottleneck


class Pfeiffer(DenseBottleneck):
    """Pfeiffer adapters: about Houlsby's quality at half its size and time, and what most shared adapters are.

    The backbone's norms stay frozen by default.
    """

    name: ClassVar[str] = "pfeiffer"
    paper: ClassVar[str] = "Pfeiffer et al. 2021, arXiv:2005.00247"
    when: ClassVar[str] = "near Houlsby's quality with one bottleneck a layer"
    learning_rate: ClassVar[float] = 1e-3
    placement: ClassVar[Placement] = "norm"

    reduction: PositiveInt | None = 16
    activation: str = "relu"
    init_std: PositiveFloat | None = 0.02
