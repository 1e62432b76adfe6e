"""Scores of an adapter on a split of its task's data, or of other data of the same kind."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from graftwork.adapters import Adapter
from graftwork.backbones import Backbone
from graftwork.errors import DataError
from graftwork.model import AdaptedModel
from graftwork.prediction import Prediction
from graftwork.tasks import SplitName, Task, compute, load_split
from graftwork.training.examples import texts_of


def evaluate(
    adapter: Adapter,
    *,
    backbone: Backbone | None = None,
    split: SplitName = "validation",
    task: Task | None = None,
    batch_size: int = 64,
    allow_backbone_mismatch: bool = False,
) -> dict[str, float]:
    """An adapter's scores.

    Args:
        backbone: the backbone it was made for; loaded by the name in the adapter when left out.
        split: which split.
        task: other data than those it was tuned on; their labels must be among the adapter's.

    Returns:
        The task's metrics by name.

    Raises:
        DataError: the split is not there, has no labels, or has labels that the adapter does not know.
        AdapterError: the adapter was made for another backbone.
    """
    backbone = backbone or Backbone.load(adapter.backbone.name)
    task = task or task_of(adapter)
    rows = load_split(task, split)
    model = AdaptedModel(backbone, allow_backbone_mismatch=allow_backbone_mismatch)
    try:
        model.add(adapter.task.name, adapter)
        found = model.predict(texts_of(rows), batch_size=batch_size)
    finally:
        model.detach()
    return compute(task.metrics, task.kind, outputs(found, task), np.asarray(rows["label"]))


def task_of(adapter: Adapter, changes: Mapping[str, Any] | None = None) -> Task:
    """The task that an adapter was tuned on, with the adapter's labels and with changes to where its data are.

    Raises:
        DataError: the adapter holds no recipe, so that its data are not known.
    """
    if not adapter.recipe:
        raise DataError("the adapter does not say on which data it was tuned", change="--task, or --data with --text")
    task = Task.parse(adapter.recipe["task"], origin="the adapter's recipe")
    return task.override(**{"labels": adapter.task.labels, **(changes or {})})


def outputs(found: list[Prediction], task: Task) -> np.ndarray:
    """What the metrics are computed on: a row of class probabilities a text, or a number."""
    if task.kind == "regression":
        return np.asarray([prediction.label for prediction in found])
    return np.asarray([list((prediction.scores or {}).values()) for prediction in found])
