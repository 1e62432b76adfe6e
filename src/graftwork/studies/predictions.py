"""What an adapter says of the test split, row by row, as plain values in a file: what paired comparisons read."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from graftwork.adapters import Adapter
from graftwork.backbones import Backbone
from graftwork.kinds import KINDS
from graftwork.kinds.scoring import compute
from graftwork.model import AdaptedModel
from graftwork.studies.results import PREDICTIONS
from graftwork.tasks import Task, TaskData
from graftwork.training.scoring import Scorer

NOT_OF_PREDICTIONS = ("loss", "roc_auc")
"""Metrics that need more than what is predicted."""


def predict_test(adapter: Adapter, data: TaskData, backbone: Backbone, *, batch_size: int, examples: int | None) -> str:
    """The lines of `predictions.jsonl`: of each row of the test split its number, label and prediction. Classes, tags
    and labels are by name, numbers are numbers, and texts are texts. There are no lines without a test split.

    Args:
        adapter: tuned on the data.
        data: with the test split.
        batch_size: rows in a pass.
        examples: of generation, the number of sources that texts are made of.
    """
    if data.test is None:
        return ""
    model = AdaptedModel(backbone)
    try:
        model.add("adapter", adapter)
        options = {"batch_size": batch_size, "generation_examples": examples}
        scorer = Scorer(model, "adapter", data.task, data.test, split="test", **options)  # type: ignore[arg-type]
        scorer()
    finally:
        model.detach()
    if scorer.outcome is None:
        return ""
    said, there = plain(data.task, *scorer.outcome)
    lines = [
        {"row": i, "label": label, "prediction": own} for i, (own, label) in enumerate(zip(said, there, strict=True))
    ]
    return "".join(json.dumps(line) + "\n" for line in lines)


def plain(task: Task, predictions: Any, labels: Any) -> tuple[list[Any], list[Any]]:
    """Predictions and labels, as metrics take them, by name."""
    return KINDS[task.kind].plain(predictions, labels, task.labels)


def read_predictions(folder: Path) -> tuple[list[Any], list[Any]]:
    """Predictions and labels of a run's folder, row by row; empty lists where there is no test split."""
    lines = [json.loads(line) for line in (folder / PREDICTIONS).read_text(encoding="utf-8").splitlines()]
    return [line["prediction"] for line in lines], [line["label"] for line in lines]


def score(task: Mapping[str, Any], metric: str, predictions: Sequence[Any], labels: Sequence[Any]) -> float:
    """A metric of plain predictions.

    Args:
        task: as a recipe has it, with `kind` and `labels`.
        metric: it can be computed from them.
    """
    kind = str(task["kind"])
    return compute([metric], kind, *KINDS[kind].from_plain(predictions, labels, task.get("labels")))[metric]
