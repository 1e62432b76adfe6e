"""AdaMix: several experts instead of one bottleneck during training, which are averaged afterwards.

Wang et al. 2022, "AdaMix: Mixture-of-Adaptations for Parameter-efficient Model Tuning", EMNLP, section 3. The position
is Pfeiffer's, once per layer, with E down projections and one shared up projection:
    f_e(x) = W_up · σ(W_down,e · x + b_down,e) + b_up.
Each training pass draws e uniformly in every layer. A step has two passes, and its loss is
    CE(p_1) + ½ [KL(p_2 ‖ p_1) + KL(p_1 ‖ p_2)],
with detached targets (section 3.2). The average of the experts' weights and biases is used and saved (section 3.3).

Shapes: W_down (E, m, d), b_down (E, m), W_up (d, m), b_up (d): each expert has a down projection with its bias; the up
projection and its bias are shared. That is E (md + m) + md + d per layer in training, 2md + m + d when finished:
2,223,360 and 894,528 on BERT-base with E 4 and m 48.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar

import torch
from pydantic import PositiveFloat, PositiveInt
from torch import Tensor

from graftwork.backbones import Site
from graftwork.methods.bottleneck import BottleneckMethod
from graftwork.methods.method import Method
from graftwork.methods.parameters import Parameter, stacked
from graftwork.methods.pfeiffer import Pfeiffer
from graftwork.methods.placement import Placement

EXPERTS = ("down", "down_bias")
"""What each expert has of its own."""


class AdaMix(BottleneckMethod):
    """AdaMix. Use it for better quality from an adapter of Pfeiffer's size, at twice the training time.

    Attributes:
        experts: number E of experts.
        init_std: standard deviation of the normal distribution of the initial projections. None: W_down is
            Kaiming-uniform (a = √5) and W_up zero.
    """

    name: ClassVar[str] = "adamix"
    paper: ClassVar[str] = "Wang et al. 2022, arXiv:2205.12410"
    when: ClassVar[str] = "Pfeiffer's size, better for twice the training time"
    learning_rate: ClassVar[float] = 1e-3
    placement: ClassVar[Placement] = Pfeiffer.placement
    passes: ClassVar[int] = 2

    reduction: PositiveInt | None = 16
    activation: str = "relu"
    init_std: PositiveFloat | None = 0.02
    experts: PositiveInt = 4

    @property
    def finished(self) -> Pfeiffer:
        """The method of the adapter that is kept."""
        return Pfeiffer(**self.model_dump(exclude={"experts"}))

    def declare_bottleneck(self, owner: str, d: int, m: int) -> dict[str, Parameter]:
        declared = self.finished.declare_bottleneck(owner, d, m)
        one = {name: declared[name] for name in (f"{owner}.{expert}" for expert in EXPERTS)}
        return declared | {n: replace(p, shape=(self.experts, *p.shape), init=stacked(p.init)) for n, p in one.items()}

    def draw(self, parameters: Mapping[str, Tensor], sites: Sequence[Site], *, training: bool) -> dict[str, Tensor]:
        places = [site for site in sites if self.acts_at(site)]
        drawn = torch.randint(self.experts, (len(places),)).tolist() if training else [None] * len(places)
        return {
            f"{site.name}.{name}": _average(experts) if expert is None else experts[expert]
            for site, expert in zip(places, drawn, strict=True)
            for name in EXPERTS
            for experts in [parameters[f"{self.owner(site)}.{name}"]]
        }

    def lower_bottleneck(self, site: Site, owner: str, parameters: Mapping[str, Tensor]) -> dict[str, Any]:
        own = {f"{owner}.{name}": parameters[f"{site.name}.{name}"] for name in EXPERTS}
        return self.finished.lower_bottleneck(site, owner, {**parameters, **own})

    def finish(self, parameters: Mapping[str, Tensor], sites: Sequence[Site]) -> tuple[Method, dict[str, Tensor]]:
        """`finished`, with the average of the experts."""
        owners = {self.owner(site) for site in sites if self.acts_at(site)}
        averaged = {f"{owner}.{name}": _average(parameters[f"{owner}.{name}"]) for owner in owners for name in EXPERTS}
        return self.finished, {**parameters, **averaged}


def _average(experts: Tensor) -> Tensor:
    return experts.mean(dim=0)
