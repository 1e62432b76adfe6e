"""Heads that read the backbone's own language-model head: generation, and multiple choice by likelihood.

Notation: B rows, C choices, T tokens, V vocabulary.
"""

from collections.abc import Mapping
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from graftwork.backbones import Backbone
from graftwork.errors import BackboneError
from graftwork.heads.head import Head, Reading, States
from graftwork.heads.losses import IGNORED, LABELS, Counts
from graftwork.methods.parameters import Parameter

WRONG = "tokens_of_wrong_choices"


class LanguageHead(Head):
    """Generation with the backbone's own language-model head, without new parameters.

    Attributes:
        shifted: whether the logits at a position are those of the next token, as in a causal model. In an
            encoder-decoder the decoder's inputs are already shifted.
    """

    reads: ClassVar[Reading] = "vocabulary"

    kind: Literal["generation"] = "generation"
    shifted: bool

    @property
    def labels_are_tokens(self) -> bool:
        return True

    def check(self, backbone: Backbone) -> None:
        require_language_model(backbone)

    def unused_sites(self, backbone: Backbone) -> tuple[str, ...]:
        return ("pooler",)

    def declare(self, backbone: Backbone) -> dict[str, Parameter]:
        return {}

    def logits(self, states: States, parameters: Mapping[str, Tensor], *, training: bool) -> Float[Tensor, "B T V"]:
        assert states.scores is not None
        return states.scores.float()

    def sums(
        self,
        logits: Float[Tensor, "B T V"],
        labels: Int[Tensor, "B T"],
        states: States,
        parameters: Mapping[str, Tensor],
    ) -> dict[str, Tensor]:
        """Cross-entropy over the tokens that have a label."""
        return {LABELS: F.cross_entropy(*self.places(logits, labels), ignore_index=IGNORED, reduction="sum")}

    def counts(self, labels: Tensor, targets: Tensor | None = None) -> Counts:
        """The number of tokens with a label, except the first of each row, which a causal model does not predict."""
        return super().counts(labels[:, 1:] if self.shifted else labels)

    def places(self, logits: Tensor, labels: Tensor) -> tuple[Float[Tensor, "N V"], Tensor]:
        """Logits beyond the labels are ignored: other rows of a pass may be longer."""
        logits = logits[:, : labels.shape[1]]
        if self.shifted:
            logits, labels = logits[:, :-1], labels[:, 1:]
        return logits.flatten(0, 1), labels.flatten()


class LikelihoodHead(Head):
    """Multiple choice by the likelihood of each choice under the language model, trained with the three losses of T-Few
    (Liu et al. 2022, section 3.2): L_LM + L_UL + L_LN.

    The logit of a choice is its mean log-probability per token.

    Attributes:
        shifted: as for `LanguageHead`.
        unlikelihood: whether to add L_UL.
        length_normalised: whether to add L_LN.
    """

    reads: ClassVar[Reading] = "vocabulary"

    kind: Literal["likelihood"] = "likelihood"
    shifted: bool
    unlikelihood: bool = True
    length_normalised: bool = True

    @property
    def task_kind(self) -> str:
        return "multiple-choice"

    @property
    def over_choices(self) -> bool:
        return True

    def check(self, backbone: Backbone) -> None:
        require_language_model(backbone)

    def unused_sites(self, backbone: Backbone) -> tuple[str, ...]:
        return ("pooler",)

    def declare(self, backbone: Backbone) -> dict[str, Parameter]:
        return {}

    def logits(self, states: States, parameters: Mapping[str, Tensor], *, training: bool) -> Float[Tensor, "B C"]:
        found, real = self._log_probabilities(states)
        # A choice that is all padding has no tokens.
        return (found.sum(-1) / real.sum(-1).clamp(min=1)).view(-1, states.choices)

    def sums(
        self, logits: Float[Tensor, "B C"], labels: Int[Tensor, " B"], states: States, parameters: Mapping[str, Tensor]
    ) -> dict[str, Tensor]:
        """L_LM and L_LN over the questions, L_UL over the tokens of all wrong choices."""
        right = F.one_hot(labels, states.choices).bool()
        # L_LM is the mean over the right choice's tokens, which is what its logit is.
        of_questions = -logits[right].sum()
        if self.length_normalised:
            of_questions = of_questions + F.cross_entropy(logits, labels, reduction="sum")
        if not self.unlikelihood:
            return {LABELS: of_questions}
        found, real = self._log_probabilities(states)
        wrong = ~right.flatten()
        unlikely = -torch.log1p(-found[wrong].exp().clamp(max=1 - 1e-6)) * real[wrong]
        return {LABELS: of_questions, WRONG: unlikely.sum()}

    def counts(self, labels: Tensor, targets: Tensor | None = None) -> Counts:
        questions = {LABELS: torch.tensor(len(labels), device=labels.device)}
        if not self.unlikelihood or targets is None:
            return questions
        real = targets.view(len(labels), -1, targets.shape[-1]) != IGNORED
        if self.shifted:
            real = real[..., 1:]
        wrong = ~F.one_hot(labels, real.shape[1]).bool()
        return {**questions, WRONG: (real & wrong[..., None]).sum()}

    def _log_probabilities(self, states: States) -> tuple[Float[Tensor, "N T"], Float[Tensor, "N T"]]:
        """Of each target token, 0 where there is none, and 1 where there is one."""
        assert states.scores is not None
        assert states.targets is not None
        scores, targets = states.scores.float(), states.targets
        if self.shifted:
            scores, targets = scores[:, :-1], targets[:, 1:]
        real = (targets != IGNORED).to(scores)
        chosen = scores.gather(-1, targets.clamp(min=0).unsqueeze(-1)).squeeze(-1) - scores.logsumexp(dim=-1)
        return chosen * real, real


def require_language_model(backbone: Backbone) -> None:
    """Refuse a backbone without a language-model head.

    Raises:
        BackboneError: it has none.
    """
    if not backbone.generates:
        raise BackboneError(
            f"backbone {backbone.name!r} has no language-model head, so it cannot generate text",
            expected="a causal or an encoder-decoder language model (GPT-2, Llama, T5, BART, ...)",
            change="--backbone",
        )
