"""`distill`: an adapter that learns from teachers, as a tuning run."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from graftwork.adapters import Adapter
from graftwork.backbones import Backbone
from graftwork.heads.distilling import LossName
from graftwork.methods import Method
from graftwork.tasks import Task
from graftwork.training.callbacks import Callback
from graftwork.training.recipe import recipe_of
from graftwork.training.tuning import tune_recipe


def distill(
    backbone: Backbone,
    *,
    teachers: str | Path | Sequence[str | Path],
    task: str | Task,
    method: Method | str | None = None,
    output: str | Path | None = None,
    data: str | None = None,
    alpha: float | None = None,
    temperature: float = 2.0,
    loss: LossName = "logits",
    hidden: float = 0.0,
    pooling: str = "auto",
    add_tokens: Sequence[str] | None = None,
    resume: bool = False,
    overwrite: bool = False,
    progress: bool = False,
    callbacks: Sequence[Callback] = (),
    **training: Any,
) -> Adapter:
    """Tune an adapter that learns from teachers (Hinton et al. 2015), on texts with labels or without.

    Without labels the teachers' own answers stand for them in validation: scores are then agreement with the teachers.
    The teachers are asked once for each text, before training.

    Args:
        backbone: the student's frozen model. It is unchanged when the call returns.
        teachers: folder of an adapter of any method, on this backbone or another one; or of a fine-tuned Hugging Face
            model for sequence or token classification; or several of them, whose probabilities are averaged. Their
            labels are the task's.
        task: as for `tune`. Its data may lack the column of labels.
        method: the student's method or its name. None: `Houlsby()`.
        output, data, pooling, add_tokens, resume, overwrite, progress, callbacks, training: as for `tune`.
        alpha: the teachers' share of the loss: (1 - alpha) · the labels' loss + alpha · the difference from the
            teachers' logits. None: 0.5, or 1 without labels.
        temperature: T of the loss `logits`.
        loss: `logits`: T²·KL(softmax(t/T) ‖ softmax(s/T)); `centred`: the mean over outputs of (s - (t - mean of t))²
            (Ermis et al. 2022). Of numbers, the squared difference.
        hidden: weight of the mean squared difference of the pooled vectors of texts, of tags of the words' last states;
            0: none. To the vectors of teachers of another width, the student's are projected: by a linear map that is
            trained with the student, and is no part of it.

    Returns:
        The adapter, as `tune` returns it.

    Raises:
        GraftworkError: as `tune`; or a teacher is none, has other labels, or needs a backbone that cannot be had.
    """
    recipe = recipe_of(
        backbone,
        task=task,
        method=method,
        data=data,
        pooling=pooling,
        add_tokens=add_tokens,
        training=training,
        origin="the arguments of distill",
        distill={
            "teachers": str(teachers) if isinstance(teachers, str | Path) else [str(one) for one in teachers],
            "alpha": alpha,
            "temperature": temperature,
            "loss": loss,
            "hidden": hidden,
        },
    )
    return tune_recipe(
        recipe,
        output=output,
        backbone=backbone,
        resume=resume,
        overwrite=overwrite,
        progress=progress,
        callbacks=callbacks,
    )
