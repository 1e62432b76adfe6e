"""The head of multiple choice on a backbone without a language-model head: a score for each choice."""

from collections.abc import Mapping
from typing import ClassVar, Literal

import torch.nn.functional as F
from jaxtyping import Float, Int
from pydantic import Field, NonNegativeFloat, PositiveFloat
from torch import Tensor

from graftwork.backbones import Backbone, Pooling
from graftwork.heads.head import Head, Reading, States, declare_linear, linear
from graftwork.heads.losses import LABELS
from graftwork.heads.pooled import check_pooling, pool, unused_by
from graftwork.methods.parameters import Parameter


class ChoiceHead(Head):
    """Multiple choice by a classifier: one number for each pair of question and choice. The logits of a question are
    the numbers of its choices (Devlin et al. 2019, section 4.4).

    Attributes:
        pooling, dropout, init_std: as for `PooledHead`.
    """

    reads: ClassVar[Reading] = "text"

    kind: Literal["multiple-choice"] = "multiple-choice"
    pooling: Pooling
    dropout: NonNegativeFloat = Field(default=0.1, lt=1.0)
    init_std: PositiveFloat = 0.02

    @property
    def pooled_by(self) -> Pooling:
        return self.pooling

    @property
    def over_choices(self) -> bool:
        return True

    def check(self, backbone: Backbone) -> None:
        check_pooling(self.pooling, backbone)

    def unused_sites(self, backbone: Backbone) -> tuple[str, ...]:
        return unused_by(self.pooling)

    def declare(self, backbone: Backbone) -> dict[str, Parameter]:
        return declare_linear("head.classifier", backbone.hidden_size, 1, std=self.init_std)

    def logits(self, states: States, parameters: Mapping[str, Tensor], *, training: bool) -> Float[Tensor, "B C"]:
        pooled = F.dropout(pool(states, self.pooling), self.dropout, training)
        return linear(pooled, parameters, "head.classifier").view(-1, states.choices)

    def sums(
        self, logits: Float[Tensor, "B C"], labels: Int[Tensor, " B"], states: States, parameters: Mapping[str, Tensor]
    ) -> dict[str, Tensor]:
        return {LABELS: F.cross_entropy(logits, labels, reduction="sum")}
