"""The interface of a head: a task's output layer, and what it reads of a pass of the backbone.

Notation: B rows, T tokens, d hidden size, V vocabulary, C outputs.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from math import sqrt
from typing import Any, ClassVar, Literal, get_args

import torch
import torch.nn.functional as F
from jaxtyping import Float
from pydantic import BaseModel, ConfigDict
from torch import Tensor

from graftwork.backbones import Backbone, Pooling
from graftwork.heads.losses import IGNORED, LABELS, Counts, Items, counted, mean, together
from graftwork.methods.parameters import Parameter, kaiming_uniform, normal, zeros


@dataclass(frozen=True, kw_only=True)
class States:
    """What a pass of the backbone says.

    Attributes:
        last: (B, T, d), the last layer's output; of an encoder-decoder, the decoder's, or the encoder's where the head
            reads one state a token of the text.
        pooled: (B, d), the pooling layer's output, where there is one.
        layers: (B, T, d) for the embeddings and each layer, where the head asked for them.
        scores: (B, T, V), the language-model head's, where the head asked for them.
        mask: (B, T), 1 for real tokens; None when all are real.
        segments: (B, T), 0 and 1 for the first and second text of a pair, where the backbone tells them apart.
        targets: (B, T), the tokens whose scores a head asks for, where there are any; -100 where there is none.
        choices: how many rows running are the choices of one question.
    """

    last: Float[Tensor, "B T d"] | None = None
    pooled: Float[Tensor, "B d"] | None = None
    layers: tuple[Tensor, ...] | None = None
    scores: Float[Tensor, "B T V"] | None = None
    mask: Tensor | None = None
    segments: Tensor | None = None
    targets: Tensor | None = None
    choices: int = 1

    def of(self, rows: slice) -> "States":
        """Those of some rows."""
        own = {field.name: getattr(self, field.name) for field in fields(self)}
        cut: dict[str, Any] = {name: value[rows] for name, value in own.items() if isinstance(value, Tensor)}
        layers = None if self.layers is None else tuple(layer[rows] for layer in self.layers)
        return replace(self, **cut, layers=layers)

    def shortened(self, length: int) -> "States":
        """Those of the first tokens only."""
        own = {name: getattr(self, name) for name in ("last", "mask", "segments")}
        cut: dict[str, Any] = {name: value[:, :length] for name, value in own.items() if value is not None}
        layers = None if self.layers is None else tuple(layer[:, :length] for layer in self.layers)
        return replace(self, **cut, layers=layers)


HEADS: dict[str, type["Head"]] = {}
"""Heads by their kind in files."""

Reading = Literal["text", "tokens", "layers", "vocabulary"]
"""What a head reads: one vector a text; one a token; all layers; or the language-model head's scores."""


class Head(BaseModel, ABC):
    """A task's output layer, computed in float32.

    Attributes:
        kind: the head's name in files.
        reads: what the head reads: one vector a text, one a token, all layers, or the language-model head's scores.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: str
    reads: ClassVar[Reading]

    @classmethod
    def __pydantic_init_subclass__(cls, **options: Any) -> None:
        super().__pydantic_init_subclass__(**options)
        HEADS.update((str(name), cls) for name in get_args(cls.model_fields["kind"].annotation))

    @property
    def task_kind(self) -> str:
        """The kind of task that it is for."""
        return self.kind

    @property
    def over_choices(self) -> bool:
        """Whether rows running are the choices of one question."""
        return False

    @property
    def labels_are_tokens(self) -> bool:
        """Whether its labels are the tokens of a text to be generated."""
        return False

    @property
    def by_token(self) -> bool:
        """Whether it says something of each token, and labels are as long as texts."""
        return self.reads in ("tokens", "vocabulary")

    @property
    def num_labels(self) -> int | None:
        """How many labels its task has; None when it has none."""
        return None

    @property
    def pooled_by(self) -> Pooling | None:
        """How it makes one vector of an input; None where it does not."""
        return None

    def check(self, backbone: Backbone) -> None:
        """Refuse a backbone that does not have what the head reads.

        Raises:
            BackboneError: what it lacks.
        """

    def unused_sites(self, backbone: Backbone) -> tuple[str, ...]:
        """Sites whose output the head does not read, so that training them would do nothing."""
        return ()

    @abstractmethod
    def declare(self, backbone: Backbone) -> dict[str, Parameter]:
        """The head's parameters, by name in an adapter; each begins with `head.`."""

    def fitted(self, labels: Sequence[Any]) -> "Head":
        """The head for labels that are to be trained on: of numbers, with the scale that they are on."""
        return self

    def calibrated(self, predictions: Any, labels: Any) -> "Head":
        """The head with what is chosen on validation rows when training has ended.

        Args:
            predictions, labels: as `compute` takes them.
        """
        return self

    @abstractmethod
    def logits(self, states: States, parameters: Mapping[str, Tensor], *, training: bool) -> Tensor:
        """What the head says, in float32."""

    def loss(
        self,
        logits: Tensor,
        labels: Tensor,
        states: States,
        parameters: Mapping[str, Tensor],
        items: Items | None = None,
    ) -> Float[Tensor, ""]:
        """How far that is from the labels: the mean of each term of the loss, added up.

        Args:
            items: what the terms are means over, where a step goes over more batches than this one; None: this batch's
                own `counts`.

        Raises:
            AdapterError: `items` is one number, and that does not say what each term is a mean over.
        """
        return mean(
            self.sums(logits, labels, states, parameters), counted(items, self.counts(labels, states.targets), labels)
        )

    @abstractmethod
    def sums(
        self, logits: Tensor, labels: Tensor, states: States, parameters: Mapping[str, Tensor]
    ) -> dict[str, Tensor]:
        """The terms of the loss, each summed over what `counts` counts under its name."""

    def counts(self, labels: Tensor, targets: Tensor | None = None) -> Counts:
        """What each term of the loss is a mean over, told from a batch's labels and targets before any pass."""
        return {LABELS: (labels != IGNORED).sum()}

    def step_counts(self, batches: Iterable[Mapping[str, Any]]) -> Counts:
        """What the loss of a step over several micro-batches is a mean over.

        Args:
            batches: each with its `labels`, and its `targets` where it has some.
        """
        return together(self.counts(batch["labels"], batch.get("targets")) for batch in batches)

    def decide(self, logits: Tensor, mask: Tensor | None, parameters: Mapping[str, Tensor]) -> Tensor:
        """What the head chooses: a class, a choice, a tag for each token, a token, or a number.

        Args:
            logits: what it said, with its classes last.
            mask: (B, T), 1 for the tokens that are judged (the first word-piece of each word), where each token is
                judged; None for all. What is chosen for the others says nothing.
            parameters: the adapter's.
        """
        return logits.argmax(dim=-1)

    def places(self, logits: Tensor, labels: Tensor) -> tuple[Float[Tensor, "N C"], Tensor]:
        """The logits of each place that can be judged, and its label, `IGNORED` where it is not."""
        return logits, labels

    def divergence(self, one: Tensor, other: Tensor, labels: Tensor, items: Items | None = None) -> Float[Tensor, ""]:
        """How far apart two passes over the same rows are: half the sum of the two Kullback-Leibler divergences, each
        target detached (Wang et al. 2022, "AdaMix", section 3.2), averaged over the places that are judged.

        Args:
            items: as for `loss`.

        Raises:
            MethodError: the head has no divergence.
        """
        return mean({LABELS: self.apart(one, other, labels)}, counted(items, self.counts(labels), labels))

    def apart(self, one: Tensor, other: Tensor, labels: Tensor) -> Float[Tensor, ""]:
        """The divergence, summed over the places that are judged."""
        (one, judged), (other, _) = self.places(one, labels), self.places(other, labels)
        real = judged != IGNORED
        # A choice that is none has the logit -inf, and -inf less -inf would be NaN.
        least = torch.finfo(one.dtype).min
        p, q = one.log_softmax(dim=-1).clamp(min=least), other.log_softmax(dim=-1).clamp(min=least)
        both = [F.kl_div(a, b.detach(), reduction="none", log_target=True).sum(-1) for a, b in ((p, q), (q, p))]
        return ((both[0] + both[1]) / 2 * real).sum()


def declare_linear(name: str, inputs: int, outputs: int, *, std: float | None = None) -> dict[str, Parameter]:
    """Shapes: weight (outputs, inputs), bias (outputs).

    The weight is N(0, std²), or uniform as PyTorch's; the bias is 0.
    """
    weight = kaiming_uniform(sqrt(5)) if std is None else normal(std)
    return {
        f"{name}.weight": Parameter(shape=(outputs, inputs), init=weight, group="head"),
        f"{name}.bias": Parameter(shape=(outputs,), init=zeros, group="head", decay=False),
    }


def linear(x: Tensor, parameters: Mapping[str, Tensor], name: str) -> Tensor:
    """In the precision of x: whoever calls `.to(dtype)` on a whole model casts the head's parameters too."""
    return F.linear(x, parameters[f"{name}.weight"].to(x), parameters[f"{name}.bias"].to(x))
