"""The head of a kind of task, and any head out of a file."""

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import BeforeValidator, SerializeAsAny, ValidationError
from pydantic_core import PydanticCustomError

from graftwork.backbones import Backbone, Pooling
from graftwork.errors import MethodError
from graftwork.heads import HEADS, Head
from graftwork.kinds import KINDS
from graftwork.settings.problems import describe


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
    own = KINDS[kind]
    if fields.get("extra_layer") and ("model" in fields or not own.pooled):
        what = "the task model of feature extraction" if "model" in fields else f"the head for tasks of kind {kind}"
        raise MethodError(
            f"{what} has no extra layer before its classifier",
            expected=f"tasks of kind {' or '.join(name for name, other in KINDS.items() if other.pooled)}",
            change="--method.extra_classifier",
        )
    if "model" in fields:
        return own.feature_head(num_labels=num_labels, pooling="mean" if pooling == "pooler" else pooling, **fields)
    return own.head(backbone, num_labels=num_labels, pooling=pooling, **fields)


def as_head(value: object) -> Head:
    """A head out of itself, or of a mapping of its `kind` and fields."""
    if isinstance(value, Head):
        return value
    kind = value.get("kind") if isinstance(value, Mapping) else None
    if isinstance(kind, str) and kind not in HEADS and kind in KINDS:
        KINDS[kind]  # which may have a head of its own
    if not isinstance(kind, str) or kind not in HEADS:
        raise PydanticCustomError(
            "head", "there is no head of kind {kind}; expected {known}", {"kind": repr(kind), "known": ", ".join(HEADS)}
        )
    try:
        return HEADS[kind].model_validate(value)
    except ValidationError as error:
        problems = describe(error.errors(), HEADS[kind])
        raise PydanticCustomError("head", "{problems}", {"problems": problems}) from None


AnyHead = Annotated[SerializeAsAny[Head], BeforeValidator(as_head)]
"""Any head, as files have it: told by its kind."""
