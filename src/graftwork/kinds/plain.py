"""What kinds with one class a row have in common: their predictions in files, by the names of the classes."""

from collections.abc import Sequence
from typing import Any, ClassVar


class OneClass:
    """A part of a kind: each row has one class. Where classes have no names, files have their numbers."""

    one_class: ClassVar[bool] = True

    def plain(
        self, predictions: Sequence[Any], labels: Sequence[Any], names: Sequence[str] | None
    ) -> tuple[list[Any], list[Any]]:
        """The class with the highest logit of each row, and its label.

        Args:
            predictions: logits, (N, C).
            labels: N ids.
            names: of the classes, by id.
        """
        import numpy as np

        each = np.asarray(predictions).argmax(axis=1), labels
        said, there = ([int(i) if names is None else names[int(i)] for i in own] for own in each)
        return said, there

    def from_plain(
        self, predictions: Sequence[Any], labels: Sequence[Any], names: Sequence[str] | None
    ) -> tuple[Any, Any]:
        """One-hot rows for what `plain` gave, (N, C), and the labels' ids."""
        import numpy as np

        index = {name: i for i, name in enumerate(names or range(1 + max([*predictions, *labels])))}
        logits = np.eye(len(index))[[index[own] for own in predictions]]
        return logits, np.asarray([index[own] for own in labels])
