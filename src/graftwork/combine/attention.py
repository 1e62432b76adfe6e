"""How much a fusion uses each of its parts, at each place, over the rows of a task.

Pfeiffer et al. 2021, "AdapterFusion", arXiv:2005.00247, look at it for each task and layer.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from graftwork.adapters import Adapter
from graftwork.backbones import Backbone
from graftwork.combine.reports import refuse_other_contents, write_csv
from graftwork.errors import AdapterError
from graftwork.folders import replacing_folder
from graftwork.heads.losses import IGNORED
from graftwork.kinds import KINDS
from graftwork.methods.gating import GatedComposition
from graftwork.model import AdaptedModel
from graftwork.tasks import SplitName, load_split
from graftwork.training.evaluation import task_of

CSV, FIGURES = "gates.csv", ("gates.png", "gates.svg")


@dataclass(frozen=True)
class PartWeights:
    """The mean gate of each part at each place.

    Attributes:
        task: name of the task whose rows were read.
        sites: names of the places.
        parts: names of the parts.
        means: (places, parts), the mean over tokens; at each place they add up to 1 under a softmax.
        tokens: number of tokens at each place.
    """

    task: str
    sites: tuple[str, ...]
    parts: tuple[str, ...]
    means: Float[np.ndarray, "P N"]
    tokens: tuple[int, ...]

    def rows(self) -> list[dict[str, Any]]:
        """One row for each place and part: site, layer, position, part, weight, tokens."""
        return [
            {
                "site": site,
                **_place(site),
                "part": part,
                "weight": float(self.means[i, n]),
                "tokens": self.tokens[i],
            }
            for i, site in enumerate(self.sites)
            for n, part in enumerate(self.parts)
        ]

    def save(self, folder: str | Path, *, overwrite: bool = False) -> None:
        """Write a table (CSV) and a figure (PNG and SVG) to a folder, completely or not at all.

        Args:
            folder: the folder.
            overwrite: replace an existing folder.

        Raises:
            OutputError: the folder exists and `overwrite` is off, it holds something else, or it cannot be written.
        """
        self.refuse(folder, overwrite=overwrite)
        with replacing_folder(Path(folder), overwrite=overwrite) as temporary:
            write_csv(temporary / CSV, self.rows())
            self._draw([temporary / name for name in FIGURES])

    @staticmethod
    def refuse(folder: str | Path, *, overwrite: bool = False) -> None:
        """Refuse a folder that `save` could not write to, before anything is measured.

        Raises:
            OutputError: it exists, and `overwrite` is off or it holds something else.
        """
        refuse_other_contents(Path(folder), (CSV, *FIGURES), overwrite=overwrite)

    def _draw(self, files: Sequence[Path]) -> None:
        from matplotlib.figure import Figure

        figure = Figure(figsize=(2.5 + 0.5 * len(self.parts), 1.5 + 0.3 * len(self.sites)), layout="constrained")
        axes = figure.subplots()
        image = axes.imshow(self.means, vmin=0.0, vmax=max(1e-9, float(self.means.max())), aspect="auto", cmap="Blues")
        axes.set_xticks(range(len(self.parts)), self.parts, rotation=60, ha="right")
        axes.set_yticks(range(len(self.sites)), self.sites)
        axes.set_title(f"mean weight of each part, task {self.task}")
        figure.colorbar(image, ax=axes, label="mean weight")
        for file in files:
            figure.savefig(file, dpi=150)


def part_weights(
    adapter: Adapter,
    *,
    backbone: Backbone | None = None,
    split: SplitName | None = None,
    data: str | None = None,
    columns: Mapping[str, Any] | None = None,
    batch_size: int = 64,
) -> PartWeights:
    """Measure how much a fusion or gated composition uses each of its parts.

    Args:
        adapter: the composition, as `gw.Fuse` or `gw.Gate` gives it.
        backbone: the backbone that it was made for. None: it is loaded by the name stored in the adapter.
        split: the split of the task. None: the validation split.
        data: other data than those that the adapter was tuned on.
        columns: their columns, by field of the task.
        batch_size: number of rows in a forward pass.

    Raises:
        AdapterError: the adapter has no gates.
        DataError: the split does not exist.
    """
    method = adapter.method
    if not isinstance(method, GatedComposition):
        raise AdapterError(
            f"method {method.name!r} has no gates",
            expected="an adapter of method fuse or gate",
            change="the adapter",
        )
    sums: dict[str, Tensor] = {}
    tokens: dict[str, int] = {}
    masks: Mapping[str, Tensor | None] = {}
    frozen = backbone or Backbone.load(adapter.backbone.name)

    def watch(site: str, p: Tensor) -> None:
        own = p.detach().double().cpu()
        mask = masks[frozen.sites[site].stack]
        real = torch.ones(own.shape[:-1]) if mask is None else mask.cpu()
        sums[site] = sums.get(site, torch.zeros(own.shape[-1])) + (own * real[..., None]).sum(
            dim=tuple(range(own.dim() - 1))
        )
        tokens[site] = tokens.get(site, 0) + int(real.sum())

    task = task_of(adapter, data=data, columns=columns)
    rows = load_split(task, split or "validation", grouped=True)
    model = AdaptedModel(frozen)
    try:
        name = adapter.task.name
        model.add(name, replace(adapter, method=method.watched_by(watch)))
        inputs, labels = KINDS[task.kind].scored(rows)
        encoder = model.encoder(name)
        encoded = encoder.encode(inputs, labels)
        inference = model.inference(name)
        for _, batch in encoder.batches(encoded, batch_size):
            masks = _masks(batch, frozen)
            inference.output(batch, name)
    finally:
        model.detach()
    means = np.stack([(sums[site] / tokens[site]).numpy() for site in sums])
    parts = tuple(part.name for part in method.parts)
    return PartWeights(task.name, tuple(sums), parts, means, tuple(tokens.values()))


def _masks(batch: Mapping[str, Tensor], backbone: Backbone) -> dict[str, Tensor | None]:
    """By stack, which positions are tokens; None where all are."""
    given = batch.get("attention_mask")
    if not backbone.is_encoder_decoder:
        return {"": given}
    labels = batch.get("labels")
    targets = None if labels is None or labels.dim() < 2 else labels != IGNORED
    return {"encoder": given, "decoder": batch.get("decoder_attention_mask", targets)}


def _place(site: str) -> dict[str, Any]:
    """The layer and the position in it."""
    names = site.split(".")
    layer = next((int(name) for name in names if name.isdigit()), None)
    return {"layer": layer, "position": site.rpartition(f"layers.{layer}.")[2]}
