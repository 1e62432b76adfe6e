"""The head of feature extraction: a mix of all layers of the frozen backbone, and a task model over it.

Peters et al. 2019, "To Tune or Not to Tune?", section 3, with the mix of Peters et al. 2018 (ELMo, eq. 1):
    x_t = γ Σ_j softmax(w)_j h_tj over the embeddings (j = 0) and the L layers.

The mix acts on layer outputs and on nothing of the backbone, so it is realised here and not as an op at sites.

Shapes: w (L + 1), γ (1); B rows, T tokens, d hidden size, C outputs.
"""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt, model_validator
from torch import Tensor

from graftwork.backbones import Backbone, Pooling
from graftwork.errors import BackboneError, MethodError
from graftwork.heads.crf import declare_crf, log_likelihood, viterbi
from graftwork.heads.head import Head, OutputType, Reading, States, declare_linear, linear
from graftwork.heads.losses import IGNORED, LABELS, Counts
from graftwork.heads.numbers import Scale, count_of_numbers, of_numbers, on_scale, squared_errors
from graftwork.heads.pooled import pool
from graftwork.heads.taskmodels import BIATTENTION, BILSTM, ESIM, TaskModel
from graftwork.methods.parameters import Parameter, ones, zeros

FeatureModel = Literal["linear", "bilstm", "esim", "bilstm-crf"]
FeatureTask = Literal["classification", "regression", "multiple-choice", "token-classification"]

OF_TEXTS: Mapping[str, TaskModel | None] = {"linear": None, "bilstm": BIATTENTION, "esim": ESIM}
OF_TOKENS: Mapping[str, TaskModel | None] = {"linear": None, "bilstm": BILSTM, "bilstm-crf": BILSTM}
"""The task models that give one vector a text, or one a token; none where the features themselves are classified."""


ROWS = "rows"


class FeatureHead(Head):
    """Feature extraction: a weighted sum of the layers, a task model, and a linear classifier.

    Attributes:
        task: the kind of task.
        model: the task model; see `graftwork.methods.FeatureExtraction`.
        num_outputs: number of classes or tags; 1 for regression and multiple choice.
        pooling: how the linear model makes one vector of a text.
        hidden_size: hidden size h of the task model.
        dropout: dropout of the weighted sum and before the classifier, in training.
        init_std: the classifier is initialised with N(0, init_std²) and bias 0.
        scale: for regression, mean and standard deviation of the labels; None: numbers are not standardised.
    """

    reads: ClassVar[Reading] = "layers"

    kind: Literal["features"] = "features"
    task: FeatureTask
    model: FeatureModel = "linear"
    num_outputs: PositiveInt
    pooling: Literal["first", "last", "mean"] = "mean"
    hidden_size: PositiveInt = 200
    dropout: NonNegativeFloat = Field(default=0.1, lt=1.0)
    init_std: PositiveFloat = 0.02
    scale: Scale | None = None

    def fitted(self, labels: Sequence[Any]) -> "FeatureHead":
        return self.model_copy(update={"scale": Scale.of(labels)}) if self.task == "regression" else self

    @model_validator(mode="after")
    def _suitable_model(self) -> "FeatureHead":
        if self.model not in self._models:
            raise MethodError(
                f"the task model {self.model!r} is not for tasks of kind {self.task}",
                expected=", ".join(self._models),
                change="--method.model",
            )
        return self

    @property
    def by_token(self) -> bool:
        return self.task == "token-classification"

    @property
    def num_labels(self) -> int | None:
        return self.num_outputs if self.task in ("classification", "token-classification") else None

    @property
    def task_kind(self) -> str:
        return self.task

    @property
    def over_choices(self) -> bool:
        return self.task == "multiple-choice"

    @property
    def pooled_by(self) -> Pooling | None:
        return self.pooling if self.model == "linear" and self.task != "token-classification" else None

    @property
    def output_type(self) -> OutputType | None:
        if self.model == "bilstm-crf" or self.over_choices:
            return None
        return "numbers" if self.task == "regression" else "classes"

    def check(self, backbone: Backbone) -> None:
        if any(site.kind == "convolution" and site.layer is not None for site in backbone.sites.values()):
            raise BackboneError(
                f"the layers of backbone {backbone.name!r} have different widths and cannot be mixed",
                expected="a transformer",
                change="--backbone, or --method",
            )

    def unused_sites(self, backbone: Backbone) -> tuple[str, ...]:
        """Sites of a decoder, which is not run: in an encoder-decoder the encoder's layers are used."""
        decoder = [site.name for site in backbone.sites.values() if site.stack == "decoder"]
        return ("lm_head", "pooler", *decoder)

    def declare(self, backbone: Backbone) -> dict[str, Parameter]:
        d, model = backbone.hidden_size, self._models[self.model]
        # An encoder-decoder's number is its encoder's.
        layers = backbone.config.num_hidden_layers
        return {
            "head.mix.weight": Parameter(shape=(layers + 1,), init=zeros, group="head", decay=False),
            "head.mix.gain": Parameter(shape=(1,), init=ones, group="head", decay=False),
            **(model.declare(d, self.hidden_size) if model else {}),
            **declare_linear(
                "head.classifier",
                model.width(d, self.hidden_size) if model else d,
                self.num_outputs,
                std=self.init_std,
            ),
            **(declare_crf(self.num_outputs) if self.model == "bilstm-crf" else {}),
        }

    def logits(self, states: States, parameters: Mapping[str, Tensor], *, training: bool) -> Float[Tensor, "..."]:
        """(B, C); (B, T, C) for tags, of a conditional random field its emissions."""
        assert states.layers is not None
        layers = [layer.float() for layer in states.layers]
        x = F.dropout(mix(layers, parameters["head.mix.weight"], parameters["head.mix.gain"]), self.dropout, training)
        model = self._models[self.model]
        if model is not None:
            mask = (
                torch.ones(x.shape[:2], dtype=torch.bool, device=x.device) if states.mask is None else states.mask > 0
            )
            x = F.dropout(model.run(x, mask, states.segments, parameters), self.dropout, training)
        elif self.task != "token-classification":
            x = pool(States(last=x, mask=states.mask), self.pooling)
        said = on_scale(linear(x, parameters, "head.classifier"), self.scale)
        return said.view(-1, states.choices) if self.task == "multiple-choice" else said

    def sums(
        self, logits: Tensor, labels: Tensor, states: States, parameters: Mapping[str, Tensor]
    ) -> dict[str, Tensor]:
        """Squared errors of standardised numbers; of a conditional random field, the negative log-likelihood of a row's
        tags, of which the mean is over rows; else cross-entropy over what has a label.
        """
        if self.task == "regression":
            return of_numbers(logits, labels, self.scale)
        if self.model == "bilstm-crf":
            return {ROWS: -log_likelihood(logits, labels, labels != IGNORED, parameters).sum()}
        return {LABELS: F.cross_entropy(*self.places(logits, labels), ignore_index=IGNORED, reduction="sum")}

    def counts(self, labels: Tensor, targets: Tensor | None = None) -> Counts:
        if self.model == "bilstm-crf":
            return {ROWS: torch.tensor(len(labels), device=labels.device)}
        return count_of_numbers(labels) if self.task == "regression" else super().counts(labels)

    def places(self, logits: Tensor, labels: Tensor) -> tuple[Float[Tensor, "N C"], Tensor]:
        return logits.flatten(0, -2), labels.flatten()

    def decide(self, logits: Tensor, mask: Tensor | None, parameters: Mapping[str, Tensor]) -> Tensor:
        if self.task == "regression":
            return logits.squeeze(-1)
        if self.model == "bilstm-crf":
            real = torch.ones_like(logits[..., 0]) if mask is None else mask
            return viterbi(logits, real > 0, parameters, elsewhere=IGNORED)
        return super().decide(logits, mask, parameters)

    def apart(self, one: Tensor, other: Tensor, labels: Tensor) -> Float[Tensor, ""]:
        """Of two numbers, the squared difference, standardised."""
        if self.model == "bilstm-crf":
            raise MethodError(
                "a conditional random field gives the probability of all tags of a row together, not of each tag, so "
                "two passes have no divergence",
                expected=", ".join(model for model in self._models if model != self.model),
                change="--method.model, or a method with one pass per step",
            )
        if self.task == "regression":
            return squared_errors(one.squeeze(-1), other.squeeze(-1), self.scale)
        return super().apart(one, other, labels)

    @property
    def _models(self) -> Mapping[str, TaskModel | None]:
        return OF_TOKENS if self.task == "token-classification" else OF_TEXTS


def mix(
    layers: Sequence[Float[Tensor, "B T d"]], weight: Float[Tensor, " L"], gain: Float[Tensor, " 1"]
) -> Float[Tensor, "B T d"]:
    """γ Σ_j softmax(w)_j h_j."""
    shares = weight.to(layers[0]).softmax(dim=0)
    return gain.to(layers[0]) * torch.stack([s * h for s, h in zip(shares, layers, strict=True)]).sum(dim=0)
