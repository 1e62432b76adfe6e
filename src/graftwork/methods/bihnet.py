"""A bi-level hypernetwork: what it makes a task's bottlenecks from is read off the task's examples, and not trained.

After BiHNet (Jin et al. 2021, "Learn Continually, Generalize Rapidly: Lifelong Knowledge Accumulation for Few-shot
Learning", arXiv:2104.08808), which has a long-term vector z_l of a task, the mean feature of its examples in the frozen
backbone, and a few-shot one z_s, that of the last 64. Here one trunk reads both, and one set of generators serves a
stack as in HyperFormer++, where the original has a network larger than its backbone:
    I = LN(MLP([n(z_l); n(z_s); l; p])),
with n a layer norm without parameters. What is made of I is in `generated`.

Shapes: z_l and z_s (d); l, p and I (t); the MLP's layers (h, 2d + 2t) and (t, h).
"""

from collections.abc import Mapping, Sequence
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from graftwork.methods.generated import GeneratedBottleneck, Spot, declare_trunk, trunk_codes, trunk_of
from graftwork.methods.parameters import Parameter, normal

LONG, SHORT = "task.long", "task.short"
"""The names of z_l and z_s."""

LAST = 64
"""Examples of which z_s is the mean."""


class BiHNet(GeneratedBottleneck):
    """A hypernetwork that reads a task's examples. Use it to train one over several tasks (`tune_tasks`), and to make
    adapters for others from a few examples, of which only the head is then trained.

    `tune` and `tune_tasks` read the examples. In a training loop of your own, a new adapter's vectors are random until
    they are replaced by `from_features`.
    """

    name: ClassVar[str] = "bihnet"
    paper: ClassVar[str] = "Jin et al. 2021, arXiv:2104.08808"
    when: ClassVar[str] = "many tasks, and later ones with few examples"
    reads_examples: ClassVar[bool] = True

    norms: Literal["all", "layers", "none"] = "none"

    def generator(self, owner: str) -> str:
        return trunk_of(Spot.of(owner))

    def declare_code(self, spot: Spot, d: int) -> dict[str, Parameter]:
        vector = Parameter(shape=(d,), init=normal(1.0), decay=False, trained=False, of_task=True)
        return {LONG: vector, SHORT: vector, **declare_trunk(spot, 2 * d, self.code_size, self.hidden_size)}

    def codes(self, parameters: Mapping[str, Tensor], owners: Sequence[str]) -> dict[str, Tensor]:
        vectors = [parameters[name] for name in (LONG, SHORT)]
        return trunk_codes(parameters, owners, torch.cat([F.layer_norm(z, z.shape) for z in vectors]))

    def from_features(self, features: Float[Tensor, "N d"]) -> dict[str, Tensor]:
        return {LONG: features.mean(dim=0), SHORT: features[-LAST:].mean(dim=0)}
