"""What a head's outputs say of each example, as numbers whose squared gradients make the Fisher information.

The diagonal of an example's Fisher information is F = E_{y ~ p(y|x)} (∂ log p(y|x) / ∂θ)². It is the sum of the squared
gradients of the numbers below, by kind of outputs (Matena & Raffel 2022, "Merging Models with Fisher-Weighted
Averaging"; p, and what stands before a product, are constants in the gradient):

| outputs | exact | sampled, y ~ p | empirical |
|---|---|---|---|
| one of C classes, or choices | √p_c · log p_c for each c | log p_y | log p of the label |
| labels, each by itself | √(p_l (1 - p_l)) · z_l for each l | Σ_l log p(y_l) | Σ_l log p of the labels |
| a number f, N(f, 1) in the labels' deviations | f | ε f with ε ~ N(0, 1) | (f - label) f |
| a token or tag at each of several positions | none | Σ_t log p(y_t) | Σ_t log p of the tokens |

For classes, labels and numbers the mean of the sampled kind over draws is the exact one. Over tokens, the scores at
different positions of one text are uncorrelated when each is sampled, so that the square of their sum has the mean of
the sum of their squares.
"""

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Generator, Tensor

from graftwork.arithmetic.data.settings import FisherKind
from graftwork.errors import MethodError
from graftwork.heads import Head
from graftwork.heads.language import LanguageHead
from graftwork.heads.losses import IGNORED
from graftwork.heads.tokens import TokenHead


def scores_of(
    head: Head, logits: Tensor, labels: Tensor | None, kind: FisherKind, generator: Generator
) -> list[Tensor]:
    """For each answer that counts, a number for each example, (B,); F is the sum of the squares of their gradients.

    Args:
        head: what the logits are of.
        logits: (B, C), or (B, T, C) of tokens or tags, with a graph.
        labels: (B,), (B, C) of several labels, or (B, T); of tokens also where they are sampled, to say where they are.
        kind: over which answers.
        generator: what is sampled comes from it, on the CPU.

    Raises:
        MethodError: the head has no such kind.
    """
    answers = _ANSWERS[answer_type(head)]
    if kind == "exact" and answer_type(head) == "tokens":
        raise MethodError(
            f"the exact Fisher information of a head of kind {head.kind!r} is a sum over all texts",
            expected="sampled or empirical",
            change="--method.kind",
        )
    return answers(head, logits, labels, kind, generator)


def kind_for(head: Head, kind: FisherKind | None) -> FisherKind:
    """A kind, or the one that a head has unless another is asked for."""
    return kind or ("sampled" if answer_type(head) == "tokens" else "exact")


def answer_type(head: Head) -> Literal["classes", "labels", "numbers", "tokens"]:
    """What a head's answers are.

    Raises:
        MethodError: they have no likelihood that is known here.
    """
    if head.over_choices:
        return "classes"
    if isinstance(head, TokenHead | LanguageHead):
        return "tokens"
    if head.output_type is not None:
        return head.output_type
    raise MethodError(
        f"a head of kind {head.kind!r} has no likelihood of single answers",
        expected="a head for classes, labels, numbers, tags or texts",
    )


def entropies(head: Head, logits: Tensor) -> Tensor:
    """The entropy of what a head says of each example, (B,); of several labels, the sum of theirs.

    Args:
        head: what the logits are of.
        logits: (B, C).

    Raises:
        MethodError: the answers have no entropy without labels: they are numbers or texts.
    """
    kind = answer_type(head)
    if kind == "classes":
        log_p = logits.log_softmax(dim=-1)
        return -(log_p.exp() * log_p.masked_fill(logits == -torch.inf, 0.0)).sum(dim=-1)
    if kind == "labels":
        p = logits.sigmoid()
        return -(p * F.logsigmoid(logits) + (1 - p) * F.logsigmoid(-logits)).sum(dim=-1)
    what = "one number" if kind == "numbers" else "tokens"
    raise MethodError(
        f"the answers of a head of kind {head.kind!r} are {what}, which have no entropy over classes",
        expected="tasks of classification, multi-label classification or multiple choice",
    )


def _of_classes(
    head: Head, logits: Tensor, labels: Tensor | None, kind: FisherKind, generator: Generator
) -> list[Tensor]:
    log_p = logits.log_softmax(dim=-1)
    p = log_p.detach().exp()
    if kind == "exact":
        # A choice that is none has the logit -inf: its share is 0, and so is its gradient.
        finite = log_p.masked_fill(logits == -torch.inf, 0.0)
        return list((p.sqrt() * finite).unbind(dim=-1))
    chosen = _sampled(p, generator) if kind == "sampled" else _required(labels)
    return [log_p.gather(-1, chosen[:, None]).squeeze(-1)]


def _of_labels(
    head: Head, logits: Tensor, labels: Tensor | None, kind: FisherKind, generator: Generator
) -> list[Tensor]:
    p = logits.detach().sigmoid()
    if kind == "exact":
        return list(((p * (1 - p)).sqrt() * logits).unbind(dim=-1))
    if kind == "sampled":
        given = (torch.rand(p.shape, generator=generator) < p.cpu()).to(p)
        return [-F.binary_cross_entropy_with_logits(logits, given, reduction="none").sum(dim=-1)]
    there = _required(labels)
    each = F.binary_cross_entropy_with_logits(logits, there.to(logits), reduction="none")
    return [-(each * (there != IGNORED)).sum(dim=-1)]


def _of_numbers(
    head: Head, logits: Tensor, labels: Tensor | None, kind: FisherKind, generator: Generator
) -> list[Tensor]:
    deviation = getattr(getattr(head, "scale", None), "deviation", 1.0)
    said = logits.squeeze(-1) / deviation
    if kind == "exact":
        return [said]
    if kind == "sampled":
        return [torch.randn(said.shape, generator=generator).to(said) * said]
    return [(said.detach() - _required(labels).to(said) / deviation) * said]


def _of_tokens(
    head: Head, logits: Tensor, labels: Tensor | None, kind: FisherKind, generator: Generator
) -> list[Tensor]:
    # A row at a time: where the labels stand among the logits is the head's to say.
    each = []
    for row in range(len(logits)):
        own, there = head.places(logits[row : row + 1], _required(labels)[row : row + 1])
        own, there = own[there != IGNORED], there[there != IGNORED]
        log_p = own.log_softmax(dim=-1)
        chosen = _sampled(log_p.detach().exp(), generator) if kind == "sampled" else there
        each.append(log_p.gather(-1, chosen[:, None]).sum())
    return [torch.stack(each)]


_ANSWERS = {"classes": _of_classes, "labels": _of_labels, "numbers": _of_numbers, "tokens": _of_tokens}


def _sampled(p: Tensor, generator: Generator) -> Tensor:
    """A class for each row of probabilities."""
    if not len(p):
        return torch.zeros(0, dtype=torch.long, device=p.device)
    return torch.multinomial(p.float().cpu(), 1, generator=generator).squeeze(-1).to(p.device)


def _required(labels: Tensor | None) -> Tensor:
    assert labels is not None  # the rows have them
    return labels
