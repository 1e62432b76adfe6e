"""Feature extraction: the backbone is unchanged, and a task model is trained on a weighted sum of its layers.

Peters et al. 2019, "To Tune or Not to Tune? Adapting Pretrained Representations to Diverse Tasks", section 3. All
trained parameters belong to the head (`graftwork.heads.FeatureHead`): the weights of the sum, the task model and the
classifier.
"""

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

from pydantic import Field, PositiveInt, model_validator

from graftwork.methods.headonly import HeadMethod


class FeatureExtraction(HeadMethod):
    """Feature extraction: a task model is trained on a weighted sum of the frozen backbone's layers.

    Attributes:
        model: the task model. `linear`: a classifier of the pooled text, or of each token. `bilstm`: for texts, BiLSTMs
            with bi-attention (McCann et al. 2017); for tokens, a BiLSTM. `esim`: for pairs of texts (Chen et al. 2017).
            `bilstm-crf`: for tokens, a BiLSTM with a conditional random field (Lample et al. 2016).
        hidden_size: hidden size of each direction of the LSTMs.
        dropout: dropout of the weighted sum and before the classifier, in training.
    """

    name: ClassVar[str] = "feature-extraction"
    paper: ClassVar[str] = "Peters et al. 2019, arXiv:1903.05987"
    when: ClassVar[str] = "a task model (BiLSTM, ESIM, CRF) over frozen layers"
    learning_rate: ClassVar[float] = 1e-3

    model: Literal["linear", "bilstm", "esim", "bilstm-crf"] = "linear"
    hidden_size: PositiveInt = 200
    dropout: float = Field(default=0.1, ge=0.0, lt=1.0)

    @model_validator(mode="after")
    def _nothing_idle(self) -> "FeatureExtraction":
        if self.model == "linear":
            self.refuse_idle("hidden_size", "the model linear has no LSTM")
        return self

    @property
    def head_fields(self) -> Mapping[str, Any]:
        return {"model": self.model, "hidden_size": self.hidden_size, "dropout": self.dropout}
