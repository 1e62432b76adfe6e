"""Scores of several adapters of one task, one after another, on rows that are read once."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from math import isfinite

from graftwork.adapters import Adapter
from graftwork.backbones import Backbone
from graftwork.kinds.scoring import METRICS
from graftwork.model import AdaptedModel
from graftwork.tasks import SplitName, load_split
from graftwork.training.display import SILENT, Display
from graftwork.training.evaluation import task_of
from graftwork.training.scoring import Scorer


class SplitScorer:
    """Scores adapters for one task on one split. Made by `scorer_for`."""

    def __init__(self, model: AdaptedModel, adapter: Adapter, split: SplitName, *, data: str | None, display: Display):
        self.model = model
        self.task = task_of(adapter, data=data)
        model.add("a", adapter)
        rows = load_split(self.task, split, grouped=True)
        self.rows = len(rows)
        self._scorer = Scorer(model, "a", self.task, rows, batch_size=64, split=split, display=display)

    def __call__(self, adapter: Adapter) -> dict[str, float]:
        """The task's metrics of an adapter with a head for it."""
        self.model.replace("a", adapter)
        scores = self._scorer()
        return {name: scores[name] for name in self.task.metrics}

    def worth(self, scores: dict[str, float]) -> float:
        """The main metric, as a number that is larger where it is better."""
        value = scores[self.task.main_metric]
        better = value if METRICS[self.task.main_metric].greater_is_better else -value
        return better if isfinite(better) else -float("inf")


@contextmanager
def scorer_for(
    adapter: Adapter,
    backbone: Backbone,
    split: SplitName = "validation",
    *,
    data: str | None = None,
    display: Display = SILENT,
) -> Iterator[SplitScorer]:
    """Inside, adapters can be scored for a task. The backbone is in use meanwhile.

    Args:
        adapter: says the task, and how its inputs are read.
        backbone: of all that is scored.
        split: the rows.
        data: other data than those that the adapter was tuned on.
        display: where it is shown how far each scoring is.

    Raises:
        DataError: the data are not known, cannot be read, or have no such split.
    """
    model = AdaptedModel(backbone)
    try:
        yield SplitScorer(model, adapter, split, data=data, display=display)
    finally:
        model.detach()


def scores_on(
    adapter: Adapter,
    backbone: Backbone,
    split: SplitName,
    places: Sequence[int],
    *,
    data: str | None = None,
    display: Display = SILENT,
) -> dict[str, float]:
    """The task's metrics of an adapter on some rows of a split.

    Args:
        adapter: the adapter.
        backbone: its backbone. It is in use meanwhile.
        split: the split.
        places: of the rows in it.
        data: other data than those that the adapter was tuned on.
        display: where it is shown how far it is.
    """
    task = task_of(adapter, data=data)
    rows = load_split(task, split, grouped=False).select(list(places))
    model = AdaptedModel(backbone)
    try:
        model.add("a", adapter)
        scores = Scorer(model, "a", task, rows, batch_size=64, split=split, display=display)()
    finally:
        model.detach()
    return {name: scores[name] for name in task.metrics}
