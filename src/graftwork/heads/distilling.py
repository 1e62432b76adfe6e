"""Losses of distillation: how far what a head says is from what teachers said of the same rows.

Notation: s student's logits, t teacher's, T temperature, σ sigmoid, C outputs. Each is a sum over rows, or over tokens
that have a label, so that a step over several batches has the mean over all of them; see `losses`.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal, cast

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from graftwork.errors import MethodError
from graftwork.heads.head import Head, OutputType
from graftwork.heads.losses import IGNORED, LABELS, counted, mean
from graftwork.heads.numbers import Scale
from graftwork.heads.objectives import LossInputs, supervised_loss
from graftwork.heads.pooled import pool
from graftwork.heads.projection import Projection

LossName = Literal["logits", "centred"]

TEACHER_LOGITS, TEACHER_VECTORS = "logits", "vectors"
"""The names of what teachers say: the logits of each row (or token, NaN where they say nothing), and its vector."""


def divergence_of_classes(
    student: Float[Tensor, "N C"], teacher: Float[Tensor, "N C"], temperature: float
) -> Float[Tensor, " N"]:
    """T²·KL(softmax(t/T) ‖ softmax(s/T)) (Hinton et al. 2015, "Distilling the Knowledge in a Neural Network")."""
    p, q = ((logits / temperature).log_softmax(dim=-1) for logits in (student, teacher))
    return temperature**2 * F.kl_div(p, q, reduction="none", log_target=True).sum(dim=-1)


def divergence_of_labels(
    student: Float[Tensor, "N C"], teacher: Float[Tensor, "N C"], temperature: float
) -> Float[Tensor, " N"]:
    """T²·Σ_c KL(σ(t_c/T) ‖ σ(s_c/T)): each label is a choice between two of its own."""
    s, t = student / temperature, teacher / temperature
    p, q = (torch.stack([F.logsigmoid(-logits), F.logsigmoid(logits)]) for logits in (s, t))
    return temperature**2 * F.kl_div(p, q, reduction="none", log_target=True).sum(dim=(0, -1))


def centred(logits: Float[Tensor, "N C"]) -> Float[Tensor, "N C"]:
    """Logits less their own mean over the outputs, which changes no softmax. A single output stays as it is: centred,
    it would say nothing."""
    return logits if logits.shape[-1] == 1 else logits - logits.mean(dim=-1, keepdim=True)


def squared_to_centred(
    student: Float[Tensor, "N C"], teacher: Float[Tensor, "N C"], temperature: float
) -> Float[Tensor, " N"]:
    """Mean over the outputs of (s - centred t)² (Ermis et al. 2022, "Memory Efficient Continual Learning with
    Transformers")."""
    return (student - centred(teacher)).square().mean(dim=-1)


def squared_of_labels(
    student: Float[Tensor, "N C"], teacher: Float[Tensor, "N C"], temperature: float
) -> Float[Tensor, " N"]:
    """Σ_c (s_c - t_c)². A label's logit has its meaning by itself, and is not centred."""
    return (student - teacher).square().sum(dim=-1)


def squared_of_numbers(
    student: Float[Tensor, "N C"], teacher: Float[Tensor, "N C"], temperature: float
) -> Float[Tensor, " N"]:
    """(s - t)²."""
    return (student - teacher).square().sum(dim=-1)


Difference = Callable[[Tensor, Tensor, float], Tensor]

DIFFERENCES: Mapping[tuple[LossName, OutputType], Difference] = {
    ("logits", "classes"): divergence_of_classes,
    ("logits", "labels"): divergence_of_labels,
    ("logits", "numbers"): squared_of_numbers,
    ("centred", "classes"): squared_to_centred,
    ("centred", "labels"): squared_of_labels,
    ("centred", "numbers"): squared_of_numbers,
}
"""How far logits are from a teacher's, by the loss and by what they stand for."""


def require_distillable(head: Head) -> OutputType:
    """What a head's logits stand for.

    Raises:
        MethodError: a student with this head cannot learn from a teacher.
    """
    if head.output_type is None:
        raise MethodError(
            f"a head of kind {head.kind!r} cannot learn from teachers: its outputs are no classes, labels or numbers "
            "of one text or word each",
            expected="a task of texts or words with classes, labels or numbers",
            change="--task, or --kind",
        )
    return head.output_type


@dataclass(frozen=True)
class DistillationLoss:
    """(1 - alpha) · the head's own loss + alpha · the difference from the teachers' logits + hidden · the mean squared
    difference from their vectors.

    Attributes:
        alpha: the teachers' share. With 1, labels are not read.
        temperature: T.
        loss: how logits are compared.
        hidden: the weight of the vectors: of texts, or of words where the head is over them.
        projection: of the student's vectors, where teachers have others; None: the widths are one.
    """

    alpha: float
    temperature: float = 2.0
    loss: LossName = "logits"
    hidden: float = 0.0
    projection: Projection | None = None

    def __call__(self, inputs: LossInputs) -> Tensor:
        terms = [self.alpha * self._mean(inputs, self._difference(inputs))]
        if self.alpha < 1:
            terms.append((1 - self.alpha) * supervised_loss(inputs))
        if self.hidden:
            terms.append(self.hidden * self._mean(inputs, self._vectors(inputs)))
        return torch.stack(terms).sum()

    def _mean(self, inputs: LossInputs, total: Tensor) -> Tensor:
        own = {LABELS: inputs.head.counts(inputs.labels)[LABELS]}
        return mean({LABELS: total}, counted(inputs.items, own, inputs.labels))

    def _difference(self, inputs: LossInputs) -> Float[Tensor, ""]:
        """Summed over rows, or over tokens that have a label and a teacher."""
        head, student, teacher = inputs.head, inputs.logits, inputs.teacher[TEACHER_LOGITS].to(inputs.logits)
        output_type = require_distillable(head)
        if head.by_token:
            student, teacher = _at_labels(inputs.labels, student, teacher)
        scale = cast(Scale | None, getattr(head, "scale", None))
        if scale is not None:
            student, teacher = ((own - scale.mean) / scale.deviation for own in (student, teacher))
        return DIFFERENCES[self.loss, output_type](student, teacher, self.temperature).sum()

    def _vectors(self, inputs: LossInputs) -> Float[Tensor, ""]:
        """Summed over what the loss is counted by, so that the mean is one over rows, or over tokens with a label."""
        head, teacher = inputs.head, inputs.teacher[TEACHER_VECTORS].to(inputs.logits)
        if head.by_token:
            assert inputs.states.last is not None
            student, teacher = _at_labels(inputs.labels, inputs.states.last.float(), teacher)
            counted_by: Tensor | float = 1.0
        else:
            assert head.pooled_by is not None
            student = pool(inputs.states, head.pooled_by)
            counted_by = head.counts(inputs.labels)[LABELS] / len(inputs.labels)
        if self.projection is not None:
            student = self.projection(student)
        return (student - teacher).square().mean(dim=-1).sum() * counted_by


def _at_labels(labels: Tensor, student: Tensor, teacher: Tensor) -> tuple[Float[Tensor, "N n"], Float[Tensor, "N m"]]:
    """What is said of the tokens that have a label and a teacher, of (B, T, n) and (B, T, m)."""
    student, teacher = student.flatten(0, 1), teacher.flatten(0, 1)
    there = (labels.flatten() != IGNORED) & teacher.isfinite().all(dim=-1)
    return student[there], teacher[there]
