"""Parallel adapters: a bottleneck beside a sub-layer, which reads the sub-layer's own input.

He et al. 2022, "Towards a Unified View of Parameter-Efficient Transfer Learning", ICLR, table 1 and section 3.3:
    y = F(x) + s · (W_up · σ(W_down · x + b_down) + b_up),
with F the feed-forward (or attention) without its residual and x what enters it, normed where the norm comes first.

Shapes: W_down (m, d), b_down (m), W_up (d, m), b_up (d): 2md + m + d parameters a layer.
"""

from typing import ClassVar

from pydantic import PositiveInt

from graftwork.methods.placement import Placement
from graftwork.methods.projections import DenseBottleneck
from graftwork.ops import Bottleneck, Norm, Op, Remember


class Parallel(DenseBottleneck):
    """Parallel adapters: the best place for a large bottleneck (m 512), and with a prefix MAM's half of the work.

    The up projection starts at zero, as LoRA's B does. Houlsby et al. 2019, section 3.6, tried parallel bottlenecks
    beside both sub-layers (`sublayers`), and with a product in place of the sum (`interaction`).

    Attributes:
        scale: s, a number, or `learned`, which starts at 1. In the paper 4 for scaled parallel adapters
            (`scaled-parallel`), 2 in a GLUE setting with m 16, and 1 for plain ones.
    """

    name: ClassVar[str] = "parallel"
    paper: ClassVar[str] = "He et al. 2022, arXiv:2110.04366"
    when: ClassVar[str] = "a wide bottleneck beside the feed-forward layer"
    learning_rate: ClassVar[float] = 1e-3
    lowers_to: ClassVar[tuple[type[Op], ...]] = (Remember, Bottleneck, Norm)
    placement: ClassVar[Placement] = "parallel"

    bottleneck: PositiveInt | None = 64
    activation: str = "relu"
