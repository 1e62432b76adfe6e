"""The diagonal of the Fisher information of an adapter, on examples of its task.

It is a mean over examples of each example's own squared gradients (`squares`, `likelihoods`), never the square of a
mean. With respect to the backbone's weights, for adapters that are merged as differences to weights, the gradients of a
batch come from one pass. With respect to the adapter's own parameters, each row of a pass has a copy of the adapter of
its own, whose gradient is that row's.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Generator, Tensor

from graftwork.adapters import Adapter
from graftwork.arithmetic.adapters.bodies import Bodies, LowRankBodies, WeightBodies
from graftwork.arithmetic.adapters.vectors import Computed, Vector
from graftwork.arithmetic.data.keeping import Kept, release_memory
from graftwork.arithmetic.data.likelihoods import kind_for, scores_of
from graftwork.arithmetic.data.reading import Rows, source_for
from graftwork.arithmetic.data.settings import FisherKind, FisherSettings
from graftwork.arithmetic.data.squares import NotByRowError, Watch
from graftwork.backbones import Backbone
from graftwork.errors import DivergedError
from graftwork.model import AdaptedModel
from graftwork.training.display import SILENT, Display


def fishers_of(
    bodies: Bodies,
    rows: Mapping[str, Rows],
    settings: FisherSettings,
    *,
    working: Path | None = None,
    display: Display = SILENT,
) -> list[Vector]:
    """The Fisher information of each of several adapters, with the names and shapes of their vectors. One adapter at a
    time is in memory; with a working folder, what is found of it is then on disk.

    Args:
        bodies: the adapters as vectors.
        rows: labelled rows of each adapter's task, by its name.
        settings: how it is computed.
        working: a folder in which it is kept how far it is; None: it is not.
        display: where it is shown how far it is.
    """
    in_weights = isinstance(bodies, LowRankBodies | WeightBodies)
    names = [*bodies.vectors[0]]
    how = {name: getattr(settings, name) for name in FisherSettings.model_fields}  # and not how it is merged
    return [
        fisher_information(
            adapter,
            bodies.backbone,
            rows[name],
            names,
            in_weights=in_weights,
            settings=settings,
            kept=Kept(
                working,
                f"fisher.{name}",
                {"adapter": adapter.digest, "rows": rows[name].origin, "names": names, **how},
            ),
            display=display,
            label=name,
        )
        for name, adapter in bodies.aligned.items()
    ]


def fisher_information(
    adapter: Adapter,
    backbone: Backbone,
    rows: Rows,
    names: Sequence[str],
    *,
    in_weights: bool,
    settings: FisherSettings,
    kept: Kept | None = None,
    display: Display = SILENT,
    label: str = "adapter",
) -> Vector:
    """The diagonal of the Fisher information of an adapter, float32 on the CPU. Where it is kept, each tensor is read
    from there when it is asked for.

    Args:
        adapter: the adapter. It is on the backbone while this lasts.
        backbone: its backbone, held by no model.
        rows: labelled rows.
        names: with respect to which tensors: canonical names of weights, or the adapter's own.
        in_weights: whether they are the backbone's weights.
        settings: how it is computed.
        kept: where it is kept how far it is.
        display: where it is shown.
        label: what is shown beside.

    Raises:
        MethodError: the head has no such kind of likelihood.
        DivergedError: a gradient is not finite.
    """
    kind = kind_for(adapter.head, settings.kind)
    state = None if kept is None else kept.read()
    if state is not None and int(state[1]["done"]) == len(rows):
        return _means(state[0], names, len(rows))
    model = AdaptedModel(backbone)
    squares: _InWeights | _InParameters
    try:
        make = _InWeights if in_weights else _InParameters
        squares = make(model, adapter, kind, settings.batch_size)
        sums = {name: torch.zeros(shape, device=backbone.device) for name, shape in squares.shapes(names).items()}
        done = 0
        if state is not None:
            done = int(state[1]["done"])
            for name, tensor in sums.items():
                tensor.copy_(state[0][name])
        with display.bar(f"{label}, Fisher information", len(rows), "rows", done=done, stays=False) as bar:
            for count, batch in rows.batches(settings.batch_size, start=done):
                squares.add(batch, sums, source_for(settings.seed, count))
                bar.move(count)
                if kept is not None:
                    kept.write(sums, {"done": count}, now=count == len(rows))
    finally:
        model.detach()
    del model, squares
    release_memory()
    wrong = next((name for name, tensor in sums.items() if not bool(tensor.isfinite().all())), None)
    if wrong is not None:
        raise DivergedError(f"the Fisher information of {wrong} is not finite", change="the adapter, or its rows")
    whole = None if kept is None else kept.read()
    return _means(sums if whole is None else whole[0], names, len(rows))


def _means(sums: Mapping[str, Tensor], names: Sequence[str], count: int) -> Vector:
    """Means over examples, each when it is asked for."""
    return Computed(names, lambda name: (sums[name] / count).cpu())


class _InWeights:
    """Squared gradients with respect to the backbone's weights."""

    def __init__(self, model: AdaptedModel, adapter: Adapter, kind: FisherKind, size: int) -> None:
        self.model, self.adapter, self.kind = model, adapter, kind
        model.add("a", adapter)
        self.size = size
        self.watch: Watch | None = None

    def shapes(self, names: Sequence[str]) -> dict[str, tuple[int, ...]]:
        self.watch = Watch(self.model.backbone, self.model.graft.root, names)
        return {name: self.model.backbone.weights.where(name).shape for name in names}

    def add(self, batch: Mapping[str, Tensor], sums: Mapping[str, Tensor], generator: Generator) -> None:
        count = len(next(iter(batch.values())))
        if count > self.size:
            for row in range(count):
                self.add({name: tensor[row : row + 1] for name, tensor in batch.items()}, sums, generator)
            return
        assert self.watch is not None
        try:
            with self.watch.on(count, _rows_in(batch)):
                logits = self.model(**batch, adapters="a").logits
                for score in scores_of(self.adapter.head, logits, batch.get("labels"), self.kind, generator):
                    self.watch.add_squares(score, sums)
        except NotByRowError as found:
            self.size = 1
            if not found.tensor:
                self.watch.take_directly(found.path)
            self.add(batch, sums, generator)


def _rows_in(batch: Mapping[str, Tensor]) -> int:
    """Rows of the backbone's pass: a question with choices has one for each."""
    first = batch.get("input_ids", next(iter(batch.values())))
    return len(first) * (first.shape[1] if "input_ids" in batch and first.dim() == 3 else 1)


class _InParameters:
    """Squared gradients with respect to an adapter's own parameters: each row has a copy of the adapter."""

    def __init__(self, model: AdaptedModel, adapter: Adapter, kind: FisherKind, size: int) -> None:
        self.model, self.adapter, self.kind, self.size = model, adapter, kind, size
        for i in range(size):
            model.add(f"{i}", adapter, trainable=True)
        self.copies = [model.in_training(f"{i}").tensors() for i in range(size)]

    def shapes(self, names: Sequence[str]) -> dict[str, tuple[int, ...]]:
        self.names = [*names]
        return {name: tuple(self.adapter.tensors[name].shape) for name in names}

    def add(self, batch: Mapping[str, Tensor], sums: Mapping[str, Tensor], generator: Generator) -> None:
        count = len(next(iter(batch.values())))
        labels = batch.get("labels")
        output = self.model(**batch, adapters=[f"{i}" for i in range(count)])
        logits = torch.stack([row for row in output.rows if row is not None])
        wanted = [own[name] for own in self.copies[:count] for name in self.names]
        for score in scores_of(self.adapter.head, logits, labels, self.kind, generator):
            found = iter(torch.autograd.grad(score.sum(), wanted, retain_graph=True, allow_unused=True))
            for _ in range(count):
                for name in self.names:
                    gradient = next(found)
                    if gradient is not None:
                        sums[name].add_(gradient.float().square())
