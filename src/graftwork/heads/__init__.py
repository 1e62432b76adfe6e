"""Heads: a task's output layer, one file a kind."""

from typing import Annotated, Any

from pydantic import Field

from graftwork.backbones import Backbone, Pooling
from graftwork.errors import MethodError
from graftwork.heads.choice import ChoiceHead
from graftwork.heads.features import FeatureHead
from graftwork.heads.head import Head, States
from graftwork.heads.language import LanguageHead, LikelihoodHead
from graftwork.heads.losses import IGNORED, Counts, Items
from graftwork.heads.pooled import PooledHead
from graftwork.heads.tokens import TokenHead

AnyHead = Annotated[
    PooledHead | TokenHead | ChoiceHead | LanguageHead | LikelihoodHead | FeatureHead, Field(discriminator="kind")
]
"""Any head, as files have it: told by its kind."""

POOLED = ("classification", "regression", "image-classification")
"""The kinds of task whose head is over one vector a text or image."""

__all__ = [
    "IGNORED",
    "AnyHead",
    "ChoiceHead",
    "Counts",
    "FeatureHead",
    "Head",
    "Items",
    "LanguageHead",
    "LikelihoodHead",
    "PooledHead",
    "States",
    "TokenHead",
    "head_for",
]


def head_for(kind: str, backbone: Backbone, *, num_labels: int, pooling: Pooling, **fields: Any) -> Head:
    """The head for a kind of task.

    Args:
        kind: the task's.
        num_labels: classes or tags.
        pooling: how one vector is made of a text, where the head needs one.
        fields: more fields of the head, which a method decides; a task `model` makes it the head of feature extraction,
            which mixes layers and pools them itself: the pooling layer is of no use to it, and means are taken instead.

    Raises:
        MethodError: the head for this kind of task has no extra layer, or no such task model.
    """
    if fields.get("extra_layer") and ("model" in fields or kind not in POOLED):
        what = "the task model of feature extraction" if "model" in fields else f"the head for tasks of kind {kind}"
        raise MethodError(
            f"{what} has no extra layer before its classifier",
            expected=f"tasks of kind {' or '.join(POOLED)}",
            change="--method.extra_classifier",
        )
    if "model" in fields:
        return _feature_head(kind, num_labels=num_labels, pooling="mean" if pooling == "pooler" else pooling, **fields)
    if kind == "generation":
        return LanguageHead(shifted=not backbone.is_encoder_decoder, **fields)
    if kind == "multiple-choice" and backbone.generates:
        return LikelihoodHead(shifted=not backbone.is_encoder_decoder, **fields)
    if kind == "multiple-choice":
        return ChoiceHead(pooling=pooling, **fields)
    if kind == "token-classification":
        return TokenHead(num_outputs=num_labels, **fields)
    regression = kind == "regression"
    return PooledHead(
        kind="regression" if regression else "classification",
        num_outputs=1 if regression else num_labels,
        pooling=pooling,
        **fields,
    )


def _feature_head(kind: str, *, num_labels: int, **fields: Any) -> FeatureHead:
    if kind == "generation":
        raise MethodError(
            "feature extraction cannot generate text: its task models read the backbone's layers and not its "
            "language-model head",
            change="--method",
        )
    task = kind if kind in ("regression", "multiple-choice", "token-classification") else "classification"
    single = task in ("regression", "multiple-choice")
    return FeatureHead(task=task, num_outputs=1 if single else num_labels, **fields)  # type: ignore[arg-type]
