"""Landscapes of adapters' losses on the rows of a task."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import datasets
from torch import Tensor

from graftwork.adapters import Adapter
from graftwork.arithmetic.adapters.finetuned import finetuned_adapter, is_model_folder
from graftwork.arithmetic.alignment.activations import put_statistics, recompute_statistics, statistics_of
from graftwork.arithmetic.landscapes.files import Line, Surface, Values
from graftwork.arithmetic.landscapes.landscape import Measure, Weights, around, line, plane
from graftwork.arithmetic.landscapes.points import Points
from graftwork.backbones import Backbone
from graftwork.errors import AdapterError, RecipeError
from graftwork.model import AdaptedModel
from graftwork.tasks import SplitName, Task, find_task, load, load_split
from graftwork.training.display import SILENT, Display, shown_on_stderr
from graftwork.training.evaluation import task_of
from graftwork.training.run_summary import of_loading
from graftwork.training.scoring import Scorer

SEEN = 256
"""Training rows on which the statistics of batch norms are computed, the first ones."""

POINTS = {1: 11, 2: 25, 3: 11}
"""By number of adapters, the points of a line, or along each side of a grid."""


def landscape(
    adapters: Mapping[str, Adapter],
    *,
    backbone: Backbone | None = None,
    task: str | None = None,
    data: str | None = None,
    columns: Mapping[str, Any] | None = None,
    split: SplitName = "validation",
    rows: int | None = None,
    points: int | None = None,
    align: bool = False,
    fixed: Sequence[str] = (),
    span: float = 1.0,
    margin: float = 0.2,
    seed: int = 0,
    batch_size: int = 64,
    progress: bool = False,
) -> Line | Surface:
    """Measure loss and scores along the line between two adapters, over the plane of three, or around one.

    Args:
        adapters: one, two or three adapters by name, of one method with the same settings, head and labels.
        backbone: theirs. None: it is loaded by the name stored in the first.
        task: name of a built-in task or path of a task file. None: the one that the first adapter was tuned on.
        data: other data than it was tuned on.
        columns: their columns, by field of the task.
        split: the split to measure on.
        rows: number of rows, the first ones. None: all.
        points: points of the line, ends included (25), or along each side of a grid (11).
        align: permute the units of the others to match the first one's weights (Git Re-Basin); on a line there are then
            two curves. For adapters of full fine-tuning.
        fixed: groups of units that are not permuted, such as `residual`.
        span: around one adapter, how far the grid goes in each direction; at 1, as far as filters of its own length.
        margin: over a plane, how far the grid goes beyond the adapters, relative to their extent.
        seed: of random directions, and of the order of matching.
        batch_size: number of rows in a forward pass.
        progress: report progress on standard error.

    Raises:
        AdapterError: the adapters differ in more than their numbers, were made for another backbone, or cannot be
            aligned; or there are not one to three.
        RecipeError: the task is unknown or of another kind; or data are given with a task, or columns without data.
        DataError: the data are not known or have no such split.
        WeightsError: three adapters on one line; fewer than 2 points; or `fixed` names no group.
        DivergedError: a loss or score is not finite.
    """
    if not 1 <= len(adapters) <= 3:
        raise AdapterError(f"{len(adapters)} adapters are given", expected="one, two or three adapters")
    names, own = [*adapters], [*adapters.values()]
    found, measured = rows_of(own[0], task=task, data=data, columns=columns, split=split, count=rows)
    with shown_on_stderr(shown=progress) as display:
        if backbone is None:
            display.say(of_loading(own[0].backbone.name))
            backbone = Backbone.load(own[0].backbone.name)
        space = Points(own, backbone, names)
        first, *others = (space.weights(adapter) for adapter in own)
        moved = [space.aligned(first, other, fixed=fixed, seed=seed) for other in others] if align else others
        count = POINTS[len(own)] if points is None else points
        about: dict[str, Any] = {"task": found.name, "split": split, "rows": len(measured)}
        if align:
            about |= {"aligned": True, "fixed": [*fixed], "seed": seed}
        if space.batch_norms:
            about |= {"statistics": f"of batch norms, at each point anew on up to {SEEN} training rows"}
        with measuring(space, found, measured, batch_size=batch_size) as measure:
            made: Line | Surface
            if len(own) == 1:
                made = around(
                    first,
                    measure,
                    points=count,
                    span=span,
                    seed=seed,
                    columns=space.columns,
                    name=names[0],
                    display=display,
                )
            elif len(own) == 2:
                curves = {"aligned": moved[0]} if align else {}
                ends = (names[0], names[1])
                made = line(first, others[0], measure, others=curves, points=count, names=ends, display=display)
            else:
                b, c = moved
                three = (names[0], names[1], names[2])
                made = plane(first, b, c, measure, points=count, margin=margin, names=three, display=display)
    return replace(made, about=about)


def rows_of(
    adapter: Adapter,
    *,
    task: str | None = None,
    data: str | None = None,
    columns: Mapping[str, Any] | None = None,
    split: SplitName = "validation",
    count: int | None = None,
) -> tuple[Task, datasets.Dataset]:
    """A task with an adapter's labels, and rows of it.

    Args:
        adapter: the adapter.
        task: name of a built-in task or path of a task file. None: the one that the adapter was tuned on.
        data: other data.
        columns: their columns, by field of the task.
        split: the split.
        count: number of rows, the first ones. None: all.

    Raises:
        RecipeError: the task is unknown or of another kind; or columns are given without data, or data with a task.
        DataError: the data are not known or have no such split.
    """
    if task is None:
        found = task_of(adapter, data=data, columns=columns)
    else:
        if data is not None or columns:
            raise RecipeError("data and a task are given", expected="one of both", change="--data, or --task")
        named = find_task(task)
        if named.kind != adapter.kind:
            raise RecipeError(
                f"task {task!r} is of kind {named.kind}, and the adapter of kind {adapter.kind}",
                expected=f"a task of kind {adapter.kind}",
                change="--task",
            )
        found = _with_labels(named, adapter)
    rows = load_split(found, split, grouped=True)
    return found, rows if count is None else rows.select(range(min(count, len(rows))))


def read_operands(
    folders: Sequence[Path], *, task: str | None = None, backbone: str | None = None, dtype: str = "auto"
) -> tuple[dict[str, Adapter], Backbone]:
    """Saved adapters, or fine-tuned Hugging Face models as adapters of full fine-tuning; and their backbone.

    Args:
        folders: of either.
        task: name or file of the task, which says whether texts come in pairs: a model's own folder does not.
        backbone: folder or hub id of the backbone. None: the name that the first adapter has stored, or the first of
            the models.
        dtype: precision of the backbone.

    Returns:
        The adapters by the names of their folders, or by their paths where names are not different.

    Raises:
        AdapterError: a folder holds neither, is damaged, or holds a model that was not tuned from the backbone.
        RecipeError: there is a model, and no task is given; the task is unknown; or a folder is given twice.
        BackboneError: the backbone cannot be loaded.
    """
    if len({*folders}) < len(folders):
        raise RecipeError("a result is given twice", expected="different folders")
    named = None if task is None else find_task(task)
    held = {folder: None if is_model_folder(folder) else Adapter.load(folder) for folder in folders}
    first, own = next(iter(held.items()))
    models = [folder for folder, adapter in held.items() if adapter is None]
    if models and named is None:
        raise RecipeError(
            f"{str(models[0])!r} is a model, which does not say what it was tuned on",
            expected="the name of a built-in task, or a task file",
            change="--task",
        )
    frozen = Backbone.load(backbone or (str(first) if own is None else own.backbone.name), dtype=dtype)
    short = len({folder.name for folder in folders}) == len(folders)
    pairs = named is not None and named.text_pair is not None
    return {
        folder.name if short else str(folder): adapter
        or finetuned_adapter(folder, frozen, pairs=pairs, statistics="drop")
        for folder, adapter in held.items()
    }, frozen


def _with_labels(task: Task, adapter: Adapter) -> Task:
    """A task with an adapter's labels. Those of a model that names none (`LABEL_0`) are the task's own, in their order.

    Raises:
        RecipeError: there are not as many.
    """
    labels = adapter.task.labels
    if labels is None or labels != tuple(f"LABEL_{i}" for i in range(len(labels))):
        return task.override(labels=labels)
    known = load(task, test=False).task.labels
    if known is None or len(known) != len(labels):
        raise RecipeError(
            f"task {task.name!r} has {len(known or ())} labels, and the model {len(labels)} outputs",
            expected="a task with one label for each output",
            change="--task",
        )
    return task.override(labels=known)


@contextmanager
def measuring(
    points: Points,
    task: Task,
    rows: datasets.Dataset,
    *,
    batch_size: int = 64,
    display: Display = SILENT,
) -> Iterator[Measure]:
    """Inside, what measures the loss and the task's metrics at a point; of generation, the loss alone.

    Where a point is the weights of a network with batch norms, their statistics are computed anew at each, on training
    rows: the activations between two networks vary less than theirs (Ainsworth et al. 2023; Jordan et al. 2023,
    "REPAIR", arXiv:2211.08403). Afterwards the backbone has its own again.

    Args:
        points: the adapters.
        task: with the adapters' labels.
        rows: a split of it.
        batch_size: rows in one forward pass.
        display: where a bar shows how far each measurement is.

    Raises:
        DivergedError: the loss or a score is not finite.
    """
    norms = points.batch_norms
    before = statistics_of(norms)
    model = AdaptedModel(points.backbone)
    name = "point"
    try:
        model.add(name, points.adapters[0])
        scorer = Scorer(model, name, task, rows, batch_size=batch_size, display=display)

        seen = _seen(task, scorer, batch_size) if norms else []

        def passed(batch: Any) -> Any:
            return model(**batch, adapters=name)

        def measure(weights: Weights) -> Values:
            model.replace(name, points.adapter(weights))
            if not norms:
                return scorer(generate=False)
            try:
                recompute_statistics(norms, seen, passed)
                return scorer(generate=False)
            finally:
                put_statistics(norms, before)  # with others, the backbone is another one

        yield measure
    finally:
        model.detach()


def _seen(task: Task, scorer: Scorer, batch_size: int) -> list[dict[str, Tensor]]:
    """Training rows as batches, on which the statistics of batch norms are computed."""
    rows = load_split(task, "train", grouped=True)
    inputs = scorer.kind.inputs_of(rows.select(range(min(SEEN, len(rows)))))
    encoder = scorer.encoder
    device = encoder.backbone.device
    batches = encoder.batches(encoder.encode(inputs, None), batch_size)
    return [{name: tensor.to(device) for name, tensor in batch.items()} for _, batch in batches]
