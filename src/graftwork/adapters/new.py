"""A new adapter's task and pooling, checked: what `Adapter.new` is given, and what a tuning run settles."""

from collections.abc import Sequence
from typing import Any, get_args

from graftwork.backbones import Backbone, Pooling
from graftwork.backbones.tokenizers import pair_separator
from graftwork.encoding.identity import TaskIdentity
from graftwork.errors import AdapterError, nearest
from graftwork.kinds import KINDS


def identity_of(
    backbone: Backbone,
    *,
    kind: str,
    pairs: bool,
    separator: str | None,
    max_length: int | None,
    max_target_length: int | None = None,
    **others: Any,
) -> TaskIdentity:
    """What an adapter stores of its task. Pairs, and questions with their choices, are parted by the backbone's
    tokenizer, or by a separator where it puts nothing between two texts.

    Args:
        separator, max_length, max_target_length: None: as `TaskIdentity` has them.
        others: more of its fields.
    """
    paired = (pairs or "choices" in KINDS[kind].inputs) and backbone.tokenizer is not None
    given: dict[str, Any] = {"separator": separator, "max_length": max_length, "max_target_length": max_target_length}
    return TaskIdentity(
        kind=kind,
        pairs=pairs,
        pair_separator=pair_separator(backbone.require_tokenizer()) if paired else None,
        **{name: value for name, value in given.items() if value is not None},
        **others,
    )


def check_new(
    backbone: Backbone,
    *,
    kind: str,
    labels: Sequence[str] | None,
    pairs: bool,
    name: str,
    pooling: str,
    separator: str | None,
    max_length: int,
) -> None:
    """Refuse arguments from which no adapter can be made. See `Adapter.new`.

    Raises:
        AdapterError: what is wrong, and the argument to change.
    """
    if kind not in KINDS:
        raise AdapterError(f"unknown kind {kind!r}", expected=nearest(kind, KINDS), change="kind")
    own = KINDS[kind]
    images = backbone.model.main_input_name == "pixel_values"
    if images != ("image" in own.inputs):
        takes = ("text", "images")[images]
        raise AdapterError(
            f"an adapter for {kind} cannot be made for backbone {backbone.name!r}, whose inputs are {takes}",
            expected=f"kind {' or '.join(_of_images())}" if images else "a kind of task over texts",
            change="kind, or the backbone",
        )
    _check_labels(kind, labels)
    if pairs and "text_pair" not in own.inputs:
        paired = [name for name, other in KINDS.items() if "text_pair" in other.inputs]
        raise AdapterError(
            f"an adapter for {kind} does not take pairs of texts", expected=" or ".join(paired), change="pairs"
        )
    if separator is not None and ("separator" not in own.options or not isinstance(separator, str)):
        separated = [name for name, other in KINDS.items() if "separator" in other.options]
        raise AdapterError(
            f"separator {separator!r} does not fit kind {kind}",
            expected=f"a text, with kind {' or '.join(separated)}",
            change="separator",
        )
    poolings = ("auto", *get_args(Pooling))
    if pooling not in poolings:
        raise AdapterError(f"unknown pooling {pooling!r}", expected=f"one of {', '.join(poolings)}", change="pooling")
    if not isinstance(name, str) or not name:
        raise AdapterError(f"the task's name is {name!r}", expected="a non-empty text", change="name")
    if not isinstance(max_length, int) or isinstance(max_length, bool) or max_length < 1:
        raise AdapterError(f"max_length is {max_length!r}", expected="a whole number, 1 or more", change="max_length")


def _of_images() -> list[str]:
    return [name for name, kind in KINDS.items() if "image" in kind.inputs]


def _check_labels(kind: str, labels: Sequence[str] | None) -> None:
    if labels is None:
        if KINDS[kind].named:
            raise AdapterError(f"an adapter for {kind} needs labels", expected="two or more", change="labels")
        return
    if "labels" not in KINDS[kind].options:
        raise AdapterError(f"an adapter for {kind} has no labels", expected="none", change="labels")
    expected = "two or more different names, such as ['bad', 'good']"
    if isinstance(labels, str):
        raise AdapterError(f"labels are one text, {labels!r}", expected=expected, change="labels")
    wrong = [label for label in labels if not isinstance(label, str)]
    if wrong:
        what = f"labels contain {wrong[0]!r}, which is not a text"
        raise AdapterError(what, expected=f"{expected}; numbers are written as texts ('0', '1')", change="labels")
    twice = [label for i, label in enumerate(labels) if label in labels[:i]]
    if twice:
        raise AdapterError(f"labels contain {twice[0]!r} more than once", expected=expected, change="labels")
    if len(labels) < 2:
        raise AdapterError(f"an adapter for {kind} was given {len(labels)} labels", expected=expected, change="labels")
