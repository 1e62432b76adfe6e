"""Landscapes of adapters' losses: their tensors as points, and what is measured of each.

A point of full fine-tuning is the whole weights, so that filters are as long as the model's, and units can be permuted;
of any other method it is the method's tensors. The head is a part of it.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import datasets
from torch import Tensor

from graftwork.adapters import Adapter
from graftwork.adapters.declared import usable_sites
from graftwork.arithmetic.finetuned import finetuned_adapter, is_model_folder
from graftwork.arithmetic.landscape_files import Line, Surface, Values
from graftwork.arithmetic.landscapes import Measure, Weights, around, line, plane
from graftwork.arithmetic.matching import MatchingSettings, weight_matching
from graftwork.arithmetic.permutations import Factor, Segment, Specification
from graftwork.arithmetic.specifications import specification_of
from graftwork.backbones import Backbone
from graftwork.errors import AdapterError, RecipeError
from graftwork.heads import PooledHead
from graftwork.methods import FullFineTuning
from graftwork.model import AdaptedModel
from graftwork.tasks import SplitName, Task, find_task, load, load_split
from graftwork.training.display import SILENT, Display, shown_on_stderr
from graftwork.training.evaluation import task_of
from graftwork.training.run_summary import of_loading
from graftwork.training.scoring import Scorer

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
        count = points or POINTS[len(own)]
        with measuring(space, found, measured, batch_size=batch_size) as measure:
            if len(own) == 1:
                return around(
                    first,
                    measure,
                    points=count,
                    span=span,
                    seed=seed,
                    columns=space.columns,
                    name=names[0],
                    display=display,
                )
            if len(own) == 2:
                curves = {"aligned": moved[0]} if align else {}
                ends = (names[0], names[1])
                return line(first, others[0], measure, others=curves, points=count, names=ends, display=display)
            three = (names[0], names[1], names[2])
            b, c = moved
            return plane(first, b, c, measure, points=count, margin=margin, names=three, display=display)


class Points:
    """Adapters as points of one space.

    Args:
        adapters: of one method, head and backbone.
        backbone: theirs.
        names: of the adapters, for messages.

    Raises:
        AdapterError: an adapter differs from the first in more than its numbers, or does not fit the backbone.
    """

    def __init__(self, adapters: Sequence[Adapter], backbone: Backbone, names: Sequence[str]) -> None:
        self.adapters, self.backbone, self.names = list(adapters), backbone, list(names)
        first = adapters[0]
        for name, own in zip(names, adapters, strict=True):
            own.check(backbone)
            for what, one, other in (
                ("method", (first.method.name, first.method), (own.method.name, own.method)),
                ("head", (first.head.kind, first.head), (own.head.kind, own.head)),
                ("labels", (first.task.labels, None), (own.task.labels, None)),
            ):
                if one != other:
                    raise AdapterError(
                        f"{name} has {what} {_shown(other)}, and {names[0]} {_shown(one)}",
                        expected="results of one method with the same settings, head and labels",
                        change="the adapters",
                    )
        whole = isinstance(first.method, FullFineTuning) and first.method.random_subset is None
        self._keys = {
            name: backbone.weights.where(name).key
            for name in first.tensors
            if whole and name in backbone.weights and name not in first.fixed
        }
        self._base = {
            name: backbone.model.get_parameter(key).detach().float().cpu() for name, key in self._keys.items()
        }

    def weights(self, adapter: Adapter) -> dict[str, Tensor]:
        """The tensors of an adapter as a point: of full fine-tuning, the weights themselves by key of the model's state
        dict."""
        return {
            self._keys.get(name, name): self._base[name] + own if name in self._base else own
            for name, own in adapter.tensors.items()
        }

    def adapter(self, weights: Weights) -> Adapter:
        """The adapter at a point."""
        first = self.adapters[0]
        found = {}
        for name in first.tensors:
            own = weights[self._keys.get(name, name)]
            found[name] = (own - self._base[name] if name in self._base else own).contiguous()
        return replace(first, tensors=found)

    @property
    def columns(self) -> frozenset[str]:
        """Tensors whose filters are columns."""
        locations = {key: self.backbone.weights.where(name) for name, key in self._keys.items()}
        return frozenset(key for key, own in locations.items() if own.transposed and len(own.shape) == 2)

    def aligned(self, to: Weights, other: Weights, *, fixed: Sequence[str] = (), seed: int = 0) -> dict[str, Tensor]:
        """A point with its units in the order that is nearest to another one's (weight matching).

        Args:
            to: the point that stays as it is.
            other: the point whose units are permuted.
            fixed: groups that are not moved.
            seed: of the order in which groups are matched.

        Raises:
            AdapterError: the method is not full fine-tuning of all weights; the head cannot be permuted; or the
                permutation would have to move tensors that the adapters have not.
            WeightsError: `fixed` names no group.
        """
        settings = MatchingSettings(fixed=tuple(fixed), seed=seed)
        specification = self.specification()
        return weight_matching(specification, to, other, settings=settings).apply(other)

    def specification(self) -> Specification:
        """What of the points can be permuted.

        Raises:
            AdapterError: as `aligned`.
        """
        first = self.adapters[0]
        if not self._keys:
            raise AdapterError(
                f"adapters of method {first.method.name!r} cannot be aligned: they act on the frozen backbone's units,"
                " whose order is one",
                expected="adapters of full-fine-tuning",
                change="--align",
            )
        body = specification_of(self.backbone)
        point = self.weights(first)
        usable = usable_sites(self.backbone, first.head)
        for name in self.backbone.weights:
            location = self.backbone.weights.where(name)
            used = location.site is None or location.site in usable
            tied = any(self.backbone.weights.where(other).key in point for other in location.tied)
            if used and body.segments[location.key] and location.key not in point and not tied:
                raise AdapterError(
                    f"the adapters cannot be aligned: {name!r} would have to be permuted, and they do not have it",
                    expected="adapters of full-fine-tuning with all weights, on a backbone without batch norms",
                    change="--align",
                )
        segments = {key: own for key, own in body.segments.items() if key in point}
        segments |= self._head_segments(first, body, [name for name in point if name not in segments])
        return Specification(segments, {key: tuple(own.shape) for key, own in point.items()}, body.within)

    def _head_segments(
        self, adapter: Adapter, body: Specification, names: Sequence[str]
    ) -> dict[str, tuple[Segment, ...]]:
        """Of the head's tensors."""
        if not isinstance(adapter.head, PooledHead):
            if not names:
                return {}  # the language-model head is the backbone's own
            raise AdapterError(
                f"adapters with a head of kind {adapter.head.kind!r} cannot be aligned",
                expected="a head for classification or regression of whole texts, or the language-model head",
                change="--align",
            )
        read = "pooler" if adapter.head.pooling == "pooler" and "pooler" in body.groups else "residual"
        stream = max(name for name in body.groups if name.startswith(read))  # of several, the last
        into = Segment(1, 0, (Factor(stream, body.groups[stream].size),))
        dense = Factor("head", self.backbone.hidden_size)
        of_dense = {"head.dense.weight": (Segment(0, 0, (dense,)), into), "head.dense.bias": (Segment(0, 0, (dense,)),)}
        classifier = (Segment(1, 0, (dense,)),) if adapter.head.extra_layer else (into,)
        return {name: {**of_dense, "head.classifier.weight": classifier}.get(name, ()) for name in names}


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


def operand(folder: str | Path, *, backbone: Backbone, task: str | None = None, name: str | None = None) -> Adapter:
    """A saved adapter, or a fine-tuned Hugging Face model as an adapter of full fine-tuning.

    Args:
        folder: the folder of either.
        backbone: the model that it was tuned from.
        task: name or file of the task, which says whether texts come in pairs; a model's own folder does not.
        name: of a model, in messages. None: the folder's.

    Raises:
        AdapterError: the folder holds neither, is damaged, or holds a model that was not tuned from the backbone.
        RecipeError: it holds a model, and no task is given.
    """
    if not is_model_folder(folder):
        return Adapter.load(folder)
    if task is None:
        raise RecipeError(
            f"{str(folder)!r} is a model, which does not say what it was tuned on",
            expected="the name of a built-in task, or a task file",
            change="--task",
        )
    pairs = find_task(task).text_pair is not None
    return finetuned_adapter(folder, backbone, name=name, pairs=pairs)


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
    """Inside, what measures the loss and the task's metrics at a point.

    Args:
        points: the adapters.
        task: with the adapters' labels.
        rows: a split of it.
        batch_size: rows in one forward pass.
        display: where a bar shows how far each measurement is.

    Raises:
        DivergedError: the loss or a score is not finite.
    """
    model = AdaptedModel(points.backbone)
    name = "point"
    try:
        model.add(name, points.adapters[0])
        scorer = Scorer(model, name, task, rows, batch_size=batch_size, display=display)

        def measure(weights: Weights) -> Values:
            model.replace(name, points.adapter(weights))
            return scorer()

        yield measure
    finally:
        model.detach()


def _shown(value: Sequence[object]) -> str:
    return str(value[0])
