"""The `distill` section of a recipe: who teaches, and how the student's outputs are compared with theirs."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, NonNegativeFloat, PositiveFloat

from graftwork.distillation.contents import digest_of_teacher
from graftwork.errors import RecipeError
from graftwork.folders import resolved_path
from graftwork.heads.distilling import LossName
from graftwork.kinds import KINDS
from graftwork.settings.checked import Checked
from graftwork.settings.problems import describe, flags

LABELLED_ALPHA = 0.5
"""The teachers' share where rows have labels too, and none is given."""


class TeacherSource(BaseModel):
    """Where a teacher is.

    Attributes:
        folder: an adapter's folder, or that of a Hugging Face model with a task head.
        digest: of its contents; written by `resolved`. A teacher that has changed since is an error.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    folder: str
    digest: str | None = None


def _sources(value: object) -> object:
    """One folder, or several, as sources."""
    several = [value] if isinstance(value, str | Path | dict) else value
    if not isinstance(several, Sequence):
        return value
    return [{"folder": str(one)} if isinstance(one, str | Path) else one for one in several]


class Distillation(Checked):
    """How an adapter learns from teachers. The loss is (1 - alpha) · the labels' loss + alpha · the difference from
    the teachers' logits + hidden · the difference from their vectors.

    Several teachers teach as one: their probabilities are averaged (of numbers, the numbers; of vectors, the vectors).

    Attributes:
        teachers: folders of adapters, or of Hugging Face models with a task head.
        alpha: the teachers' share of the loss, from 0 to 1. None: 0.5, or 1 where the rows have no labels.
        temperature: T of the loss `logits`, which divides logits before the softmax.
        loss: `logits`: T²·KL(softmax(t/T) ‖ softmax(s/T)), student's logits s and teacher's t; `centred`: the mean over
            outputs of (s - (t - mean of t))². For numbers both are the squared difference.
        hidden: weight of the mean squared difference of the vectors into which texts are pooled, or of the last states
            of words; 0: none. Where a teacher is wider or narrower, the student's are projected, by a map that is
            trained and then discarded.
    """

    teachers: Annotated[tuple[TeacherSource, ...], BeforeValidator(_sources), Field(min_length=1)]
    alpha: float | None = Field(default=None, ge=0.0, le=1.0)
    temperature: PositiveFloat = 2.0
    loss: LossName = "logits"
    hidden: NonNegativeFloat = 0.0

    @classmethod
    def refusal(cls, details: Sequence[Any]) -> RecipeError:
        return RecipeError(f"invalid settings of distillation: {describe(details, cls)}", change=flags(details, ""))

    def refuse_idle(self, kind: str) -> None:
        """Refuse settings without effect for a kind of task, unless they have their default values.

        Raises:
            RecipeError: there is one.
        """
        numbers = "numbers are compared by their squared difference" if not KINDS[kind].named else ""
        alone = "alpha is 0, so the teachers' logits have no share of the loss" if self.alpha == 0 else ""
        centred = "the loss 'centred' has no temperature" if self.loss == "centred" else ""
        for name, why in {"temperature": numbers or alone or centred, "loss": numbers or alone}.items():
            value = getattr(self, name)
            if why and value != type(self).model_fields[name].default:
                raise RecipeError(f"{name}={value!r} would do nothing: {why}", change=f"--{name}")

    def resolved(self) -> "Distillation":
        """With paths that are valid from any folder, and the digest of each teacher.

        Raises:
            RecipeError: a teacher is no folder, or has other contents than its digest says.
        """
        return self.model_copy(update={"teachers": tuple(map(_resolved, self.teachers))})

    def share(self, *, labelled: bool) -> float:
        """The teachers' share of the loss.

        Raises:
            RecipeError: labels have a share, and there are none.
        """
        if self.alpha is None:
            return LABELLED_ALPHA if labelled else 1.0
        if self.alpha < 1 and not labelled:
            raise RecipeError(
                f"alpha is {self.alpha:g}, so that labels have a share of the loss, and the data have none",
                expected="alpha 1, or data with labels",
                change="--alpha, or --label",
            )
        return self.alpha


def _resolved(source: TeacherSource) -> TeacherSource:
    folder = Path(source.folder).expanduser()
    found = digest_of_teacher(folder)
    if source.digest not in (None, found):
        raise RecipeError(
            f"teacher {source.folder!r} has changed: its contents are {found}, and were {source.digest}",
            expected="the teacher that the run began with",
            change="the folder, or --teacher",
        )
    return TeacherSource(folder=resolved_path(folder), digest=found)
