"""The head over every token: sequence tagging."""

from collections.abc import Mapping
from typing import ClassVar, Literal

import torch.nn.functional as F
from jaxtyping import Float, Int
from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt
from torch import Tensor

from graftwork.backbones import Backbone
from graftwork.heads.head import Head, OutputType, Reading, States, declare_linear, linear
from graftwork.heads.losses import IGNORED, LABELS
from graftwork.methods.parameters import Parameter


class TokenHead(Head):
    """Token classification: logits_t = W · dropout(h_t) + b (Devlin et al. 2019, section 5.3).

    The tag of a word is that of its first word piece.

    Attributes:
        num_outputs: number of tags.
        dropout: dropout before the classifier, in training.
        init_std: the classifier is initialised with N(0, init_std²) and bias 0.
    """

    reads: ClassVar[Reading] = "tokens"

    kind: Literal["token-classification"] = "token-classification"
    num_outputs: PositiveInt
    dropout: NonNegativeFloat = Field(default=0.1, lt=1.0)
    init_std: PositiveFloat = 0.02

    @property
    def num_labels(self) -> int:
        return self.num_outputs

    @property
    def output_type(self) -> OutputType:
        return "classes"

    def unused_sites(self, backbone: Backbone) -> tuple[str, ...]:
        """Sites of a decoder, which is not run: in an encoder-decoder the encoder's states are used."""
        decoder = [site.name for site in backbone.sites.values() if site.stack == "decoder"]
        return ("lm_head", "pooler", *decoder)

    def declare(self, backbone: Backbone) -> dict[str, Parameter]:
        return declare_linear("head.classifier", backbone.hidden_size, self.num_outputs, std=self.init_std)

    def logits(self, states: States, parameters: Mapping[str, Tensor], *, training: bool) -> Float[Tensor, "B T C"]:
        assert states.last is not None
        return linear(F.dropout(states.last.float(), self.dropout, training), parameters, "head.classifier")

    def sums(
        self,
        logits: Float[Tensor, "B T C"],
        labels: Int[Tensor, "B T"],
        states: States,
        parameters: Mapping[str, Tensor],
    ) -> dict[str, Tensor]:
        """Cross-entropy over tokens with a tag."""
        return {LABELS: F.cross_entropy(*self.places(logits, labels), ignore_index=IGNORED, reduction="sum")}

    def places(self, logits: Tensor, labels: Tensor) -> tuple[Float[Tensor, "N C"], Tensor]:
        return logits.flatten(0, 1), labels.flatten()
