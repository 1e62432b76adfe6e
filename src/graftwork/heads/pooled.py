"""Heads over one vector a text or image: classification and regression."""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt
from torch import Tensor

from graftwork.backbones import Backbone, Pooling
from graftwork.errors import BackboneError
from graftwork.heads.head import Head, OutputType, Reading, States, declare_linear, linear
from graftwork.heads.losses import LABELS, Counts
from graftwork.heads.numbers import Scale, count_of_numbers, of_numbers, on_scale, squared_errors
from graftwork.methods.parameters import Parameter


class PooledHead(Head):
    """Classification or regression of texts: logits = W · dropout(pooled) + b.

    With `extra_layer`, `pooled` is first replaced by tanh(V · pooled + c), V (d, d).

    Attributes:
        kind: `classification` or `regression`.
        num_outputs: number of logits: one per class, or 1 for regression.
        pooling: how a text becomes one vector.
        extra_layer: add a dense layer with tanh.
        dropout: dropout before the classifier, in training.
        init_std: the classifier is initialised with N(0, init_std²) and bias 0.
        scale: for regression, mean and standard deviation of the labels; None: numbers are not standardised.
    """

    reads: ClassVar[Reading] = "text"

    kind: Literal["classification", "regression"]
    num_outputs: PositiveInt
    pooling: Pooling
    extra_layer: bool = False
    dropout: NonNegativeFloat = Field(default=0.1, lt=1.0)
    init_std: PositiveFloat = 0.02
    scale: Scale | None = None

    def fitted(self, labels: Sequence[Any]) -> "PooledHead":
        return self.model_copy(update={"scale": Scale.of(labels)}) if self.kind == "regression" else self

    @property
    def num_labels(self) -> int | None:
        return self.num_outputs if self.kind == "classification" else None

    @property
    def pooled_by(self) -> Pooling:
        return self.pooling

    @property
    def output_type(self) -> OutputType:
        return "numbers" if self.kind == "regression" else "classes"

    def check(self, backbone: Backbone) -> None:
        check_pooling(self.pooling, backbone)

    def unused_sites(self, backbone: Backbone) -> tuple[str, ...]:
        return unused_by(self.pooling)

    def declare(self, backbone: Backbone) -> dict[str, Parameter]:
        d, std = backbone.hidden_size, self.init_std
        extra = declare_linear("head.dense", d, d, std=std) if self.extra_layer else {}
        return {**extra, **declare_linear("head.classifier", d, self.num_outputs, std=std)}

    def logits(self, states: States, parameters: Mapping[str, Tensor], *, training: bool) -> Float[Tensor, "B C"]:
        pooled = pool(states, self.pooling)
        if self.extra_layer:
            pooled = torch.tanh(linear(pooled, parameters, "head.dense"))
        pooled = F.dropout(pooled, self.dropout, training)
        return on_scale(linear(pooled, parameters, "head.classifier"), self.scale)

    def sums(
        self, logits: Float[Tensor, "B C"], labels: Tensor, states: States, parameters: Mapping[str, Tensor]
    ) -> dict[str, Tensor]:
        """Cross-entropy over classes, or squared errors of standardised numbers."""
        if self.kind == "regression":
            return of_numbers(logits, labels, self.scale)
        return {LABELS: F.cross_entropy(logits, labels, reduction="sum")}

    def counts(self, labels: Tensor, targets: Tensor | None = None) -> Counts:
        return count_of_numbers(labels) if self.kind == "regression" else super().counts(labels)

    def decide(self, logits: Tensor, mask: Tensor | None, parameters: Mapping[str, Tensor]) -> Tensor:
        if self.kind == "regression":
            return logits.squeeze(-1)
        return super().decide(logits, mask, parameters)

    def apart(self, one: Tensor, other: Tensor, labels: Tensor) -> Float[Tensor, ""]:
        """For regression, the squared difference of standardised numbers."""
        if self.kind == "regression":
            return squared_errors(one.squeeze(-1), other.squeeze(-1), self.scale)
        return super().apart(one, other, labels)


def check_pooling(pooling: Pooling, backbone: Backbone) -> None:
    """Refuse a pooling that the backbone does not have.

    Raises:
        BackboneError: `pooler` on a backbone without a pooling layer.
    """
    if pooling == "pooler" and getattr(backbone.base, "pooler", None) is None:
        raise BackboneError(
            f"backbone {backbone.name!r} has no pooling layer",
            expected="pooling first, last or mean",
            change="--pooling",
        )


def unused_by(pooling: Pooling) -> tuple[str, ...]:
    """The sites that this pooling does not use."""
    return ("lm_head",) if pooling == "pooler" else ("lm_head", "pooler")


def pool(states: States, pooling: Pooling) -> Float[Tensor, "B d"]:
    """One float32 vector per text. The rows of a batch are pooled together, whatever heads read them."""
    if states.whole is not None:
        batch, rows = states.whole
        return pool(batch, pooling)[rows]
    if pooling not in states.vectors:
        states.vectors[pooling] = _pooled(states, pooling)
    return states.vectors[pooling]


def _pooled(states: States, pooling: Pooling) -> Float[Tensor, "B d"]:
    if pooling == "pooler":
        assert states.pooled is not None  # the head has been checked
        return states.pooled.float()
    assert states.last is not None
    hidden, mask = states.last.float(), states.mask
    if pooling == "first":
        return hidden[:, 0]
    if mask is None:
        return hidden.mean(dim=1) if pooling == "mean" else hidden[:, -1]
    if pooling == "last":
        positions = torch.arange(hidden.shape[1], device=hidden.device)
        last = (mask * positions).argmax(dim=1)
        return hidden[torch.arange(len(hidden), device=hidden.device), last]
    weights = mask.to(hidden).unsqueeze(-1)
    return (hidden * weights).sum(dim=1) / weights.sum(dim=1)
