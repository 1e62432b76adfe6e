"""Scores of several adapters of one task, one after another, on rows that are read once."""

from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from math import isfinite

from graftwork.adapters import Adapter
from graftwork.arithmetic.adapters.merging import MergedAdapters
from graftwork.backbones import Backbone
from graftwork.errors import AdapterError
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


def score_table(
    adapters: Mapping[str, Adapter],
    merged: MergedAdapters,
    backbone: Backbone,
    *,
    split: SplitName = "validation",
    data: Mapping[str, str] | None = None,
    display: Display = SILENT,
) -> dict[str, dict[str, float]]:
    """The scores of a merge and of what was merged, on the task of each.

    On the task of one adapter, the others are scored with that adapter's head over what they change.

    Args:
        adapters: what was merged, by name.
        merged: the result.
        backbone: of all of them. It is in use meanwhile.
        split: the rows.
        data: other data than those that an adapter was tuned on, by its name.
        display: where it is shown how far it is.

    Returns:
        By name, the result first under `merged`, then by `task metric`. What cannot be scored on a task is left out.
    """
    found: dict[str, dict[str, float]] = {"merged": {}, **{name: {} for name in adapters}}
    heads = {name: adapter for head, adapter in merged.adapters.items() for name in merged.members[head]}
    for name, adapter in adapters.items():
        if name not in heads:
            continue
        with scorer_for(adapter, backbone, split, data=(data or {}).get(name), display=display) as scorer:
            rows = {"merged": heads[name], **{other: with_head_of(own, adapter) for other, own in adapters.items()}}
            for other, own in rows.items():
                with suppress(AdapterError):  # it lacks layers that the head reads
                    own.check(backbone)
                    found[other] |= {f"{name} {metric}": value for metric, value in scorer(own).items()}
    return {name: scores for name, scores in found.items() if scores}


def scores_of_merged(
    adapters: Mapping[str, Adapter],
    merged: MergedAdapters,
    backbone: Backbone,
    *,
    names: Collection[str] | None = None,
    display: Display = SILENT,
) -> tuple[dict[str, float], float]:
    """The scores of a merge on the tasks of adapters, by `task metric`; and how good their first metrics are in the
    mean, the more the better. On the task of an adapter whose head it has not, it is scored with that head.

    Args:
        adapters: what was merged, by name.
        merged: the result.
        backbone: of all of them. It is in use meanwhile.
        names: of the adapters; None: those whose head it has.
        display: where it is shown how far it is.
    """
    heads = {name: merged.adapters[head] for head, own in merged.members.items() for name in own}
    body = next(iter(merged.adapters.values()))
    found: dict[str, float] = {}
    worth = []
    for name in heads if names is None else names:
        with scorer_for(adapters[name], backbone, display=display) as scorer:
            scores = scorer(heads[name] if name in heads else with_head_of(body, adapters[name]))
            found |= {f"{name} {metric}": value for metric, value in scores.items()}
            worth.append(METRICS[scorer.task.main_metric].goodness(scores[scorer.task.main_metric]))
    return found, sum(worth) / len(worth)


def goodness_on_all(
    adapters: Mapping[str, Adapter],
    merged: MergedAdapters,
    backbone: Backbone,
    *,
    data: Mapping[str, str] | None = None,
    display: Display = SILENT,
) -> float:
    """How good a merge of some adapters is on the tasks of all of them: the mean over the tasks of how good their first
    metrics are, at most 1. On a task it is scored with the heads of the adapters of that task that are in it; where
    none is, with those that they have by themselves.

    Args:
        adapters: those that could be merged, by name. Two that were tuned on one task have one task in common.
        merged: the result.
        backbone: of all of them. It is in use meanwhile.
        data: other data than those that an adapter was tuned on, by its name.
        display: where it is shown how far it is.

    Raises:
        AdapterError: it lacks layers that the head of another task reads.
        DataError: the data of an adapter are not known, or cannot be read.
    """
    in_it = {name: merged.adapters[head] for head, names in merged.members.items() for name in names}
    body = next(iter(merged.adapters.values()))
    found = []
    for names in _by_task(adapters, data or {}):
        own = {id(in_it[name]): in_it[name] for name in names if name in in_it}
        tried = [*own.values()] or [with_head_of(body, adapters[name]) for name in names]
        with scorer_for(adapters[names[0]], backbone, data=(data or {}).get(names[0]), display=display) as scorer:
            metric = scorer.task.main_metric
            each = [METRICS[metric].goodness(scorer(adapter)[metric]) for adapter in tried]
        found.append(sum(each) / len(each))
    return sum(found) / len(found)


def _by_task(adapters: Mapping[str, Adapter], data: Mapping[str, str]) -> list[list[str]]:
    """The names of adapters, those of one task together. Two tasks that differ in nothing but their names are one."""
    groups: dict[str, list[str]] = {}
    for name, adapter in adapters.items():
        task = task_of(adapter, data=data.get(name)).resolved()
        groups.setdefault(task.model_dump_json(exclude={"name"}), []).append(name)
    return [*groups.values()]


def with_head_of(body: Adapter, head: Adapter) -> Adapter:
    """The method of one adapter with the head of another one."""
    if body is head:
        return head
    own = {name: tensor for name, tensor in body.tensors.items() if not name.startswith("head.")}
    theirs = {name: tensor for name, tensor in head.tensors.items() if name.startswith("head.")}
    return replace(body, head=head.head, task=head.task, tensors={**own, **theirs})
