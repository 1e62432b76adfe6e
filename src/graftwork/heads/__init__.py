"""Heads: a task's output layer, one file a kind."""

from typing import Annotated, Any

from pydantic import Field

from graftwork.backbones import Backbone, Pooling
from graftwork.heads.choice import ChoiceHead
from graftwork.heads.head import Head, States
from graftwork.heads.language import LanguageHead, LikelihoodHead
from graftwork.heads.pooled import PooledHead
from graftwork.heads.tokens import IGNORED, TokenHead

AnyHead = Annotated[PooledHead | TokenHead | ChoiceHead | LanguageHead | LikelihoodHead, Field(discriminator="kind")]
"""Any head, as files have it: told by its kind."""

__all__ = [
    "IGNORED",
    "AnyHead",
    "ChoiceHead",
    "Head",
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
        fields: more fields of the head, which a method decides.

    Raises:
        pydantic.ValidationError: the head has no such fields.
    """
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
