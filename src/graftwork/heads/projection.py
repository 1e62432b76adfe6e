"""The projection of a student's vectors to a wider or narrower teacher's, trained with the student and discarded."""

from collections.abc import Mapping
from math import sqrt
from typing import final

import torch
import torch.nn as nn
import torch.nn.functional as F
from jaxtyping import Float
from torch import Generator, Tensor

from graftwork.methods.parameters import Parameter, normal


@final
class Projection(nn.Module):
    """h ↦ P h, with P (d', d) from the student's width d to the teacher's d' (Jiao et al. 2020, "TinyBERT:
    Distilling BERT for Natural Language Understanding", eq. 8: W_h).

    P ~ N(0, 1/d) at first, so that the numbers of P h are about as large as those of h. It is trained as a head's
    weights are: at their rate, with their decay. It is no part of the adapter.

    Args:
        student, teacher: their widths.
        generator: the source of randomness.
    """

    def __init__(self, student: int, teacher: int, generator: Generator) -> None:
        super().__init__()
        self.declared = Parameter(shape=(teacher, student), init=normal(1 / sqrt(student)), group="head")
        weight = torch.empty(self.declared.shape)
        self.declared.init(weight, {}, generator)
        self.weight = nn.Parameter(weight)

    def forward(self, vectors: Float[Tensor, "*B d"]) -> Float[Tensor, "*B e"]:
        return F.linear(vectors, self.weight.to(vectors))

    def tensors(self) -> Mapping[str, Tensor]:
        """What a checkpoint has of it, by name."""
        return {"projection": self.weight}
