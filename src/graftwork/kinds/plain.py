"""Classes in files: by name where there are names, and as metrics take them again."""

from collections.abc import Sequence
from typing import Any


def plain_classes(
    predictions: Sequence[Any], labels: Sequence[Any], names: Sequence[str] | None
) -> tuple[list[Any], list[Any]]:
    """The class with the highest logit of each row, and its label; numbers where classes have no names.

    Args:
        predictions: logits, (N, C).
        labels: N ids.
        names: of the classes, by id.
    """
    import numpy as np

    each = np.asarray(predictions).argmax(axis=1), labels
    said, there = ([int(i) if names is None else names[int(i)] for i in own] for own in each)
    return said, there


def logits_of_classes(
    predictions: Sequence[Any], labels: Sequence[Any], names: Sequence[str] | None
) -> tuple[Any, Any]:
    """One-hot rows for what `plain_classes` gave, and the labels' ids."""
    import numpy as np

    index = {name: i for i, name in enumerate(names or range(1 + max([*predictions, *labels])))}
    logits = np.eye(len(index))[[index[own] for own in predictions]]
    return logits, np.asarray([index[own] for own in labels])
