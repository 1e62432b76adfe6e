"""Scores of an adapter on a split of its task's data, or of other data of the same kind."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from graftwork.adapters import Adapter
from graftwork.backbones import Backbone
from graftwork.errors import DataError, RecipeError
from graftwork.kinds import KINDS
from graftwork.model import AdaptedModel
from graftwork.settings.checked import require_count
from graftwork.tasks import BUILTIN, SplitName, Task, load_split
from graftwork.tasks.task import HUB
from graftwork.training.display import Display, shown_on_stderr
from graftwork.training.run_summary import joined, of_backbone, of_loading, of_task
from graftwork.training.score_warnings import warn_of_scores
from graftwork.training.scoring import Scorer


def evaluate(
    adapter: Adapter,
    *,
    backbone: Backbone | None = None,
    split: SplitName | None = None,
    data: str | None = None,
    columns: Mapping[str, Any] | None = None,
    batch_size: int = 64,
    generation_examples: int | None = None,
    max_new_tokens: int | None = None,
    num_beams: int | None = None,
    allow_backbone_mismatch: bool = False,
    progress: bool = False,
) -> dict[str, float]:
    """Measure the scores of an adapter.

    Args:
        adapter: the adapter.
        backbone: the backbone that it was made for. None: it is loaded by the name stored in the adapter.
        split: the split. None: the validation split, or, if `data` is a single file, all its rows.
        data: other data than those that the adapter was tuned on, with the same labels.
        columns: the columns of those data if they have other names, by field of the task (`text`, `text_pair`, `image`,
            `choices`, `label`).
        batch_size: number of rows in a forward pass.
        generation_examples: for generation: generate texts for the first so many sources only. None: for all.
        max_new_tokens: for generation: maximum number of generated tokens. None: as in training.
        num_beams: for generation: number of beams. None: as in training.
        allow_backbone_mismatch: accept a backbone of the same shape with other weights.
        progress: report progress on standard error.

    Returns:
        The task's metrics by name.

    Raises:
        DataError: the split does not exist, has no labels, or has labels that the adapter does not know; or the adapter
            is an old one whose data cannot be found, and does not say whether they were a path or an id on the hub.
        AdapterError: the adapter was made for another backbone.
        RecipeError: generation settings for an adapter that does not generate; or a number of rows, tokens or beams
            that is not a positive whole number.
    """
    task = task_of(adapter, data=data, columns=columns)
    if data is None:
        _refuse_unsettled(task)
    options = {
        "generation_examples": generation_examples,
        "max_new_tokens": max_new_tokens,
        "num_beams": num_beams,
    }
    given = [name for name, value in options.items() if value is not None]
    if given and not KINDS[task.kind].generates:
        raise RecipeError(
            f"the adapter's task is {task.kind}, which has no {', '.join(given)}",
            change=", ".join("--" + name.replace("_", "-") for name in given),
        )
    require_count("batch size", batch_size)
    for name in given:
        require_count(name, options[name])
    if split is None and data is not None and Path(data).is_file():
        which, rows = (
            "given",
            load_split(task.override(validation_fraction=0.0, test_fraction=0.0), "train", grouped=True),
        )
    else:
        which, rows = split or "validation", load_split(task, split or "validation", grouped=True)
    with shown_on_stderr(shown=progress) as display:
        if backbone is None:
            display.say(of_loading(adapter.backbone.name))
            backbone = Backbone.load(adapter.backbone.name)
        model = AdaptedModel(backbone, allow_backbone_mismatch=allow_backbone_mismatch)
        scores, outcome = _scored(
            model,
            adapter,
            task,
            rows,
            split=which,
            display=display,
            batch_size=batch_size,
            generation_examples=generation_examples,
            max_new_tokens=max_new_tokens,
            num_beams=num_beams,
        )
    of_file = split is None and data is not None and Path(data).is_file()
    warn_of_scores(adapter.task.name, str(data) if of_file else split or "validation", task, len(rows), outcome)
    return {name: scores[name] for name in task.metrics}


def evaluate_on(task: Task, adapter: Adapter, *, backbone: Backbone, split: SplitName) -> dict[str, float]:
    """The scores of an adapter on a split of this task, whatever the data that it was tuned on.

    Args:
        task: of the adapter's kind and labels.
        adapter: the adapter.
        backbone: the one that it was made for, held by no model.
        split: the split.

    Returns:
        The task's metrics by name.

    Raises:
        DataError: the split does not exist, has no labels, or has labels that the adapter does not know.
    """
    task = task.override(labels=adapter.task.labels)
    rows = load_split(task, split, grouped=True)
    with shown_on_stderr(shown=False) as display:
        scores, outcome = _scored(AdaptedModel(backbone), adapter, task, rows, split=split, display=display)
    warn_of_scores(task.name, split, task, len(rows), outcome)
    return {name: scores[name] for name in task.metrics}


def _scored(
    model: AdaptedModel,
    adapter: Adapter,
    task: Task,
    rows: Any,
    *,
    split: str,
    display: Display,
    batch_size: int = 64,
    **generation: Any,
) -> tuple[dict[str, float], tuple[Any, Any] | None]:
    """The scores of an adapter on rows, and what they are computed from. The model is detached.

    Args:
        model: an empty one, which takes in the adapter.
        split: what the rows are called.
        generation: settings of generation, as of `Scorer`.
    """
    name = adapter.task.name
    try:
        model.add(name, adapter)
        pooling = adapter.pooling and f"pooling {adapter.pooling}"
        parts = (f"method {adapter.method.name}", pooling, of_task(task, {split: len(rows)}))
        display.say(joined(of_backbone(model.backbone), *parts))
        scorer = Scorer(model, name, task, rows, batch_size=batch_size, split=split, display=display, **generation)
        return scorer(), scorer.outcome
    finally:
        model.detach()


def _task_of_identity(adapter: Adapter, data: str, columns: Mapping[str, Any]) -> Task:
    """The task of an adapter that was trained in a custom loop, on data in a table."""
    usual = {field: field for field in KINDS[adapter.kind].needed}
    if adapter.task.pairs:
        usual["text_pair"] = "text_pair"
    fields = {"name": adapter.task.name, "kind": adapter.kind, "labels": adapter.task.labels, "data": data}
    return Task.parse({**fields, **usual, **columns}, origin="the adapter's task")


def task_of(adapter: Adapter, *, data: str | None = None, columns: Mapping[str, Any] | None = None) -> Task:
    """The task that an adapter was tuned on, with the adapter's labels, and with other data when they are given.

    Raises:
        DataError: the adapter holds no recipe, so that its data are not known.
        RecipeError: other columns without other data.
    """
    if not adapter.recipe:
        if data is None:
            raise DataError(
                "the adapter does not say on which data it was tuned",
                expected="an adapter made by tune, or data to score it on",
                change="--data",
            )
        return _task_of_identity(adapter, data, columns or {})
    task = Task.parse(adapter.recipe["task"], origin="the adapter's recipe").override(labels=adapter.task.labels)
    if data is None and columns:
        raise RecipeError(f"columns are given ({', '.join(columns)}) without data", change="--data")
    if data is None:
        return task
    changes: dict[str, object] = {"data": data, "max_rows": None, **(columns or {})}
    if columns:
        # They are those of an ordinary table, whatever the layout of the task's own data.
        changes |= {"layout": "table", "source": None, "subset": None, "splits": {}, "header": None}
        changes |= {"cleaning": None, "homepage": None}
    elif Path(data).is_file():
        changes |= {"splits": {}}
    return task.override(**changes)


def _refuse_unsettled(task: Task) -> None:
    """Refuse what may have been a folder, and would be looked for on the hub."""
    known = {other.data for other in BUILTIN.values()}
    if task.data is None or task.data in known or task.data.startswith(HUB) or Path(task.data).is_absolute():
        return
    if not Path(task.data).exists():
        raise DataError(
            f"the adapter was tuned on {task.data!r}, which is not a file or folder here; an older graftwork saved it "
            "without recording whether it was a path or a dataset's id on the hub",
            expected="an existing path, or a hub id",
            change=f"--data PATH, or --data {HUB}{task.data}",
        )
