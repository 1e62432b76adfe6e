"""Scores of predictions: the metrics of all kinds of task in one table, and their values."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from typing import TYPE_CHECKING

from graftwork.errors import RecipeError, nearest
from graftwork.kinds import KINDS
from graftwork.kinds.metrics import Metric

if TYPE_CHECKING:
    import numpy


class Metrics(Mapping[str, Metric]):
    """The metrics of all kinds by name."""

    @cached_property
    def _known(self) -> dict[str, Metric]:
        found: dict[str, Metric] = {}
        for name, kind in KINDS.items():
            for own, metric in kind.metrics.items():
                known = found.get(own, metric)
                found[own] = replace(known, kinds=(*known.kinds, name))
        return found

    def __getitem__(self, name: str) -> Metric:
        return self._known[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._known)

    def __len__(self) -> int:
        return len(self._known)


METRICS = Metrics()
"""All metrics by name."""


def check_metrics(names: Sequence[str], kind: str, labels: Sequence[str] | None = None) -> None:
    """Refuse metrics that do not exist or do not suit a task.

    Args:
        names: the metrics' names.
        kind: the task's.
        labels: its classes or tags, where they are known.

    Raises:
        RecipeError: a name is unknown, of another kind, for two classes when there are more, or for spans when the
            tags mark none.
    """
    suitable = KINDS[kind].metrics
    for name in names:
        if name in suitable:
            continue
        if name not in METRICS:
            raise RecipeError(f"there is no metric {name!r}", expected=nearest(name, METRICS), change="metrics")
        raise RecipeError(
            f"metric {name!r} is for {' and '.join(METRICS[name].kinds)}, and the task's kind is {kind}",
            expected=nearest(name, suitable),
            change="metrics, or kind",
        )
    KINDS[kind].check_metrics(names, labels)


def compute(
    names: Sequence[str],
    kind: str,
    predictions: "numpy.ndarray | Sequence[str] | Sequence[Sequence[str]]",
    labels: "numpy.ndarray | Sequence[Sequence[str]]",
) -> dict[str, float]:
    """Compute metrics of predictions.

    | kind | predictions | labels |
    |---|---|---|
    | `classification`, `image-classification` | logits (N, C) | class ids (N,) |
    | `multi-label-classification` | logits (N, C) minus those of the thresholds | 0 and 1 (N, C) |
    | `multiple-choice` | logits (N, C), -inf where a row has fewer than C choices | ids of choices (N,) |
    | `regression` | numbers (N,) or (N, 1) | numbers (N,) |
    | `token-classification` | N lists of tags, one for each word | N lists of tags |
    | `generation` | N texts | N lists of one or more references |

    Args:
        names: keys of `METRICS`.
        kind: the kind of task.
        predictions: the predictions, as the table says.
        labels: the labels, as the table says.

    Returns:
        The value of each metric, in the given order, without `loss`, which cannot be computed from predictions. A
        correlation is 0.0 if the predictions or the labels are constant (up to rounding), and a score of spans is 0.0
        if there is no span.

    Raises:
        RecipeError: a name is unknown or does not suit the kind.
        DivergedError: the predictions are not finite.
        ValueError: the shapes do not fit, or there are no rows.
    """
    own = KINDS[kind]
    said, there = own.prepare(predictions, labels)
    check_metrics(names, kind, own.labels_in(predictions, labels))
    functions = {name: own.metrics[name].function for name in names}
    return {name: function(said, there) for name, function in functions.items() if function is not None}
