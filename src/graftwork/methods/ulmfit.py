"""ULMFiT's fine-tuning: a lower rate for each lower layer, one more layer each epoch, and slanted triangular rates.

Howard & Ruder 2018, "Universal Language Model Fine-tuning for Text Classification", sections 3.2 and 3.3. It is full
fine-tuning with other settings and another schedule; the embeddings of a model with L layers are trained from
epoch L + 1 on.
"""

from typing import ClassVar

from pydantic import Field

from graftwork.methods.full import FullFineTuning


class ULMFiT(FullFineTuning):
    """ULMFiT: discriminative fine-tuning, gradual unfreezing and slanted triangular learning rates. Settings as for
    `FullFineTuning`.
    """

    name: ClassVar[str] = "ulmfit"
    paper: ClassVar[str] = "Howard & Ruder 2018, arXiv:1801.06146"
    when: ClassVar[str] = "full fine-tuning that forgets less of the lower layers"
    lr_scheduler_type: ClassVar[str] = "slanted_triangular"

    layer_decay: float = Field(default=2.6, ge=1.0, allow_inf_nan=False)
    gradual_unfreezing: bool = True
