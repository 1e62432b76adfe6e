"""The interface of a head: a task's output layer, and what it reads of a pass of the backbone.

Notation: B rows, T tokens, d hidden size, V vocabulary, C outputs.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
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
    """The outputs of a forward pass of the backbone, as heads read them.

    Attributes:
        last: (B, T, d), output of the last layer; for an encoder-decoder that of the decoder, or of the encoder if the
            head reads one state per token of the text.
        pooled: (B, d), output of the pooling layer, if there is one.
        layers: (B, T, d) for the embeddings and each layer, if the head reads them.
        scores: (B, T, V), logits of the language-model head, if the head reads them.
        mask: (B, T), 1 for tokens, 0 for padding; None if there is no padding.
        segments: (B, T), 0 and 1 for the first and second text of a pair, if the backbone distinguishes them.
        targets: (B, T), the tokens whose scores are needed, -100 elsewhere.
        choices: number of consecutive rows that are the choices of one question.
        whole: the outputs of the whole batch and which of its rows these are; None: these are the whole batch.
        vectors: what was pooled of these, by the pooling.
    """

    last: Float[Tensor, "B T d"] | None = None
    pooled: Float[Tensor, "B d"] | None = None
    layers: tuple[Tensor, ...] | None = None
    scores: Float[Tensor, "B T V"] | None = None
    mask: Tensor | None = None
    segments: Tensor | None = None
    targets: Tensor | None = None
    choices: int = 1
    whole: "tuple[States, slice] | None" = None
    vectors: dict[str, Tensor] = field(default_factory=dict, compare=False)

    def of(self, rows: slice) -> "States":
        """The outputs of some rows."""
        cut: dict[str, Any] = {name: value[rows] for name, value in vars(self).items() if isinstance(value, Tensor)}
        layers = None if self.layers is None else tuple(layer[rows] for layer in self.layers)
        return replace(self, **cut, layers=layers, whole=(self, rows), vectors={})

    def shortened(self, length: int) -> "States":
        """The outputs of the first tokens only."""
        own = {name: getattr(self, name) for name in ("last", "mask", "segments")}
        cut: dict[str, Any] = {name: value[:, :length] for name, value in own.items() if value is not None}
        layers = None if self.layers is None else tuple(layer[:, :length] for layer in self.layers)
        return replace(self, **cut, layers=layers, whole=None, vectors={})


HEADS: dict[str, type["Head"]] = {}
"""The classes of heads by the kind that files name."""

OutputType = Literal["classes", "labels", "numbers"]
"""What logits stand for: one of several classes, several labels each by itself, or a number."""

Reading = Literal["text", "tokens", "layers", "vocabulary"]
"""What a head reads: one vector per text, one per token, all layers, or the logits of the language-model head."""


class Head(BaseModel, ABC):
    """A task's output layer, computed in float32.

    Attributes:
        kind: the head's name in files.
        reads: what the head reads: one vector per text, one per token, all layers, or the logits of the language-model
            head.
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
        """The kind of task that the head is for."""
        return self.kind

    @property
    def over_choices(self) -> bool:
        """Whether consecutive rows are the choices of one question."""
        return False

    @property
    def labels_are_tokens(self) -> bool:
        """Whether the labels are the tokens of a target text."""
        return False

    @property
    def by_token(self) -> bool:
        """Whether each token has its own logits and label."""
        return self.reads in ("tokens", "vocabulary")

    @property
    def num_labels(self) -> int | None:
        """Number of labels; None if the task has none."""
        return None

    @property
    def pooled_by(self) -> Pooling | None:
        """How the head pools a text into one vector; None if it does not."""
        return None

    @property
    def output_type(self) -> OutputType | None:
        """What the logits stand for, where a student can learn them from a teacher; None where it cannot."""
        return None

    def check(self, backbone: Backbone) -> None:
        """Check that the backbone has what the head reads.

        Raises:
            BackboneError: names what is missing.
        """

    def unused_sites(self, backbone: Backbone) -> tuple[str, ...]:
        """Names of sites whose output does not affect the head, so that training them would have no effect."""
        return ()

    @abstractmethod
    def declare(self, backbone: Backbone) -> dict[str, Parameter]:
        """The parameters of the head, by their names in an adapter, which begin with `head.`."""

    def fitted(self, labels: Sequence[Any]) -> "Head":
        """The head fitted to the training labels: for regression, with their mean and standard deviation."""
        return self

    def calibrated(self, predictions: Any, labels: Any) -> "Head":
        """The head with settings chosen on validation rows after training, such as thresholds.

        Args:
            predictions: predictions, as for `graftwork.tasks.compute`.
            labels: labels, as for `graftwork.tasks.compute`.
        """
        return self

    @abstractmethod
    def logits(self, states: States, parameters: Mapping[str, Tensor], *, training: bool) -> Tensor:
        """The logits, in float32."""

    def loss(
        self,
        logits: Tensor,
        labels: Tensor,
        states: States,
        parameters: Mapping[str, Tensor],
        items: Items | None = None,
    ) -> Float[Tensor, ""]:
        """The loss: the sum of its terms, each of which is a mean.

        Args:
            logits: the logits.
            labels: the labels.
            states: the outputs of the backbone.
            parameters: the parameters of the adapter.
            items: the numbers of items to average over, if a step has several batches. None: the `counts` of this
                batch.

        Raises:
            AdapterError: `items` is a single number, and the head's terms are averaged over different items.
        """
        return mean(
            self.sums(logits, labels, states, parameters), counted(items, self.counts(labels, states.targets), labels)
        )

    @abstractmethod
    def sums(
        self, logits: Tensor, labels: Tensor, states: States, parameters: Mapping[str, Tensor]
    ) -> dict[str, Tensor]:
        """The terms of the loss by name, each as a sum over the items that `counts` counts under that name."""

    def counts(self, labels: Tensor, targets: Tensor | None = None) -> Counts:
        """The number of items that each term of the loss is averaged over, from the labels and targets of a batch."""
        return {LABELS: (labels != IGNORED).sum()}

    def step_counts(self, batches: Iterable[Mapping[str, Any]]) -> Counts:
        """The numbers of items to average over in a step with several batches, for `num_items_in_batch`.

        Args:
            batches: the batches, each with `labels` and, if it has any, `targets`.
        """
        return together(self.counts(batch["labels"], batch.get("targets")) for batch in batches)

    def decide(self, logits: Tensor, mask: Tensor | None, parameters: Mapping[str, Tensor]) -> Tensor:
        """The prediction from logits: a class, a choice, a tag for each token, a token, or a number.

        Args:
            logits: the logits, with the classes in the last dimension.
            mask: (B, T), 1 for the tokens to predict (the first word piece of each word), if each token has logits;
                None: all. Predictions for other tokens are meaningless.
            parameters: the parameters of the adapter.
        """
        return logits.argmax(dim=-1)

    def places(self, logits: Tensor, labels: Tensor) -> tuple[Float[Tensor, "N C"], Tensor]:
        """The logits and labels of all positions that can have a label; the label is `IGNORED` where there is none."""
        return logits, labels

    def divergence(self, one: Tensor, other: Tensor, labels: Tensor, items: Items | None = None) -> Float[Tensor, ""]:
        """The divergence of two passes over the same rows: half the sum of the two Kullback-Leibler divergences, each
        with its target detached (Wang et al. 2022, "AdaMix", section 3.2), averaged over positions with a label.

        Args:
            one: the logits of one pass.
            other: the logits of the other pass.
            labels: the labels.
            items: as for `loss`.

        Raises:
            MethodError: the head has no divergence.
        """
        return mean({LABELS: self.apart(one, other, labels)}, counted(items, self.counts(labels), labels))

    def apart(self, one: Tensor, other: Tensor, labels: Tensor) -> Float[Tensor, ""]:
        """The divergence, summed over positions with a label."""
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
