"""HyperFormer: a hypernetwork that several tasks share makes each task's bottlenecks from the task's embedding.

Karimi Mahabadi et al. 2021, "Parameter-efficient Multi-task Fine-tuning for Transformers via Shared Hypernetworks",
ACL, arXiv:2106.04489. With a task's embedding z and generators of its own for each bottleneck:
    I = MLP(z).
HyperFormer++ (`hyperformer++`) has one set of generators for a whole stack, which tells its places apart
by embeddings l of the layer and p of the position:
    I = LN(MLP([z; l; p])).
What is made of I is in `generated`.

Shapes: z, l, p and I (t); the MLP's layers (h, t) or (h, 3t), and (t, h). On T5-base with reduction 32 (m 24), t 64 and
h 128, HyperFormer++ has 2,581,464 parameters a stack, and 64 for each task; T5's norms, 47,616, are trained besides.
"""

from collections.abc import Mapping, Sequence
from typing import ClassVar, Literal

from torch import Tensor

from graftwork.methods.generated import (
    NETWORK,
    GeneratedBottleneck,
    Spot,
    declare_network,
    declare_trunk,
    network,
    trunk_codes,
    trunk_of,
)
from graftwork.methods.parameters import Parameter, normal

TASK = "task.embedding"
"""The name of z, the one parameter that each task has of its own."""


class HyperFormer(GeneratedBottleneck):
    """HyperFormer. Use it to train one hypernetwork over several tasks (`tune_tasks`), from which small tasks gain, and
    in which a task takes as little room as its embedding and head. With other settings, HyperFormer++
    (`hyperformer++`), which is much smaller.

    Attributes:
        generators: which bottlenecks have generators in common: none (`bottleneck`, as in HyperFormer), or all of a
            `stack` (HyperFormer++).
    """

    name: ClassVar[str] = "hyperformer"
    paper: ClassVar[str] = "Karimi Mahabadi et al. 2021, arXiv:2106.04489"
    when: ClassVar[str] = "many tasks that learn from one another"

    norms: Literal["all", "layers", "none"] = "all"
    generators: Literal["bottleneck", "stack"] = "bottleneck"

    def generator(self, owner: str) -> str:
        return owner if self.generators == "bottleneck" else trunk_of(Spot.of(owner))

    def declare_code(self, spot: Spot, d: int) -> dict[str, Parameter]:
        t, hidden = self.code_size, self.hidden_size
        task = {TASK: Parameter(shape=(t,), init=normal(1.0), decay=False, of_task=True)}
        if self.generators == "bottleneck":
            return task | declare_network(NETWORK, t, hidden, t)
        return task | declare_trunk(spot, t, t, hidden)

    def codes(self, parameters: Mapping[str, Tensor], owners: Sequence[str]) -> dict[str, Tensor]:
        if self.generators == "stack":
            return trunk_codes(parameters, owners, parameters[TASK])
        return dict.fromkeys(owners, network(parameters[TASK][None], parameters, NETWORK))
