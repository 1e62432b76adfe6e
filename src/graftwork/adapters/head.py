"""The head: a task's output layer over the backbone's pooled output."""

from collections.abc import Mapping
from typing import Any, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from pydantic import BaseModel, ConfigDict, Field, NonNegativeFloat, PositiveFloat, PositiveInt
from torch import Tensor

from graftwork.backbones import Backbone, Pooling
from graftwork.errors import BackboneError
from graftwork.methods.parameters import Parameter, normal, zeros


class Head(BaseModel):
    """A classifier or a regressor: logits = W · dropout(pooled) + b, computed in float32.

    With `extra_layer`, pooled is first sent through tanh(V · pooled + c), V (d, d).

    Attributes:
        kind: `classification` gives num_outputs logits, `regression` one number.
        pooling: how one vector is made of a text.
        dropout: before the classifier, in training.
        init_std: the classifier starts N(0, init_std²) with bias 0.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Literal["classification", "regression"]
    num_outputs: PositiveInt
    pooling: Pooling
    extra_layer: bool = False
    dropout: NonNegativeFloat = Field(default=0.1, lt=1.0)
    init_std: PositiveFloat = 0.02

    def check(self, backbone: Backbone) -> None:
        """Refuse a pooling that the backbone does not have.

        Raises:
            BackboneError: `pooler` on a backbone without a pooling layer.
        """
        if self.pooling == "pooler" and backbone.family.pooler not in backbone.sites:
            raise BackboneError(
                f"backbone {backbone.name!r} has no pooling layer", expected="pooling first or mean", change="--pooling"
            )

    def unused_sites(self, backbone: Backbone) -> tuple[str, ...]:
        """Sites whose output the head does not read, so that training them would do nothing."""
        return () if self.pooling == "pooler" else (backbone.family.pooler,)

    def declare(self, hidden_size: int) -> dict[str, Parameter]:
        """The head's parameters, by name in an adapter."""
        d, c = hidden_size, self.num_outputs
        weight = normal(self.init_std)
        extra = {
            "head.dense.weight": Parameter(shape=(d, d), init=weight, group="head"),
            "head.dense.bias": Parameter(shape=(d,), init=zeros, group="head", decay=False),
        }
        return {
            **(extra if self.extra_layer else {}),
            "head.classifier.weight": Parameter(shape=(c, d), init=weight, group="head"),
            "head.classifier.bias": Parameter(shape=(c,), init=zeros, group="head", decay=False),
        }

    def pool(self, output: Any, attention_mask: Tensor | None) -> Float[Tensor, "B d"]:
        """One float32 vector a text, from the backbone's output."""
        if self.pooling == "pooler":
            pooled: Tensor = output.pooler_output
            return pooled.float()
        hidden: Tensor = output.last_hidden_state.float()
        if self.pooling == "first":
            return hidden[:, 0]
        if attention_mask is None:
            return hidden.mean(dim=1)
        weights = attention_mask.to(hidden).unsqueeze(-1)
        return (hidden * weights).sum(dim=1) / weights.sum(dim=1)

    def logits(
        self, pooled: Float[Tensor, "B d"], parameters: Mapping[str, Tensor], *, training: bool
    ) -> Float[Tensor, "B C"]:
        """What the head says of each text."""
        if self.extra_layer:
            pooled = torch.tanh(_linear(pooled, parameters, "head.dense"))
        pooled = F.dropout(pooled, self.dropout, training)
        return _linear(pooled, parameters, "head.classifier")

    def loss(self, logits: Float[Tensor, "B C"], labels: Tensor) -> Float[Tensor, ""]:
        """Cross-entropy over class ids, or mean squared error over numbers."""
        if self.kind == "regression":
            return F.mse_loss(logits.squeeze(-1), labels.to(logits))
        return F.cross_entropy(logits, labels)


def _linear(x: Tensor, parameters: Mapping[str, Tensor], name: str) -> Tensor:
    """In the precision of x: whoever calls `.to(dtype)` on a whole model casts the head's parameters too."""
    return F.linear(x, parameters[f"{name}.weight"].to(x), parameters[f"{name}.bias"].to(x))
