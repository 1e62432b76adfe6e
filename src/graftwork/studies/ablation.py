"""Span ablation: an adapter's score without its ops in each span of layers (Houlsby et al. 2019, figure 6).

Nothing is retrained. Ops outside of layers, such as trained embeddings, and the head stay.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from graftwork.adapters import Adapter
from graftwork.arithmetic.landscapes.surveying import rows_of
from graftwork.backbones import Backbone
from graftwork.combine.reports import refuse_other_contents
from graftwork.folders import replacing_folder
from graftwork.model import AdaptedModel
from graftwork.studies.drawing import Figure, Row
from graftwork.studies.spans import Scores, Span, measure
from graftwork.tasks import SplitName
from graftwork.training.display import shown_on_stderr
from graftwork.training.run_summary import joined, of_backbone, of_loading, of_task
from graftwork.training.scoring import Scorer

NAME, RECORD = "ablation", "ablation.json"

MOST_NUMBERS = 12
"""Layers up to which each cell of the figure has its number."""


@dataclass(frozen=True, kw_only=True)
class Ablation:
    """The scores of an adapter without its ops in each span of layers.

    Attributes:
        about: what was measured: adapter, task, split, rows.
        metric: the task's main metric.
        layers: the names of the N layers, from the input on.
        whole: the scores of the adapter as it is.
        spans: the scores without the ops in layers x..y, by (x, y), both from 0 and included; all N (N + 1) / 2.
        evaluations: what it cost, in evaluations of one adapter.
        apart: why each span took an evaluation of its own; empty where it did not.
    """

    about: Mapping[str, Any] = field(default_factory=dict)
    metric: str
    layers: tuple[str, ...]
    whole: Scores
    spans: Mapping[Span, Scores]
    evaluations: float
    apart: str = ""

    def change(self, span: Span, metric: str | None = None) -> float | None:
        """The relative change of a score by a span, (without - with) / |with|; None if the score with it is 0.

        Args:
            span: the first and the last layer.
            metric: the metric; None: the task's main one.
        """
        name = self.metric if metric is None else metric
        whole = self.whole[name]
        return (self.spans[span][name] - whole) / abs(whole) if whole else None

    def rows(self) -> list[Row]:
        """One row a span: first and last layer, relative change of the main metric, and all scores without it."""
        return [
            {
                "first": self.layers[span[0]],
                "last": self.layers[span[1]],
                "relative_change": self.change(span),
                **scores,
            }
            for span, scores in self.spans.items()
        ]

    def record(self) -> dict[str, Any]:
        """What was measured, on what, and what it cost."""
        return {
            **self.about,
            "metric": self.metric,
            "scores": dict(self.whole),
            "layers": len(self.layers),
            "spans": len(self.spans),
            "evaluations": self.evaluations,
            **({"evaluated_apart": self.apart} if self.apart else {}),
        }

    @property
    def figure(self) -> Figure:
        """The heat map: the first layer down, the last one to the right."""
        return Figure(name=NAME, title="Layers bypassed without retraining", rows=self.rows(), draw=self._draw)

    def save(self, folder: str | Path, *, overwrite: bool = False) -> None:
        """Write table (CSV), figure (PNG, SVG) and record (JSON) to a folder, completely or not at all.

        Args:
            folder: the folder.
            overwrite: replace an existing ablation.

        Raises:
            OutputError: the folder exists and `overwrite` is off, it holds something else, or it cannot be written.
        """
        refuse(folder, overwrite=overwrite)
        with replacing_folder(Path(folder), overwrite=overwrite) as temporary:
            self.figure.write(temporary)
            (temporary / RECORD).write_text(json.dumps(self.record(), indent=2) + "\n", encoding="utf-8")

    def _draw(self) -> Any:
        import numpy as np
        from matplotlib.figure import Figure as Canvas

        count = len(self.layers)
        relative = self.whole[self.metric] != 0
        shown = np.full((count, count), np.nan)
        for (x, y), scores in self.spans.items():
            change = self.change((x, y))
            shown[x, y] = scores[self.metric] - self.whole[self.metric] if change is None else 100 * change
        side = min(9.0, max(3.4, 0.42 * count + 1.4))
        figure = Canvas(figsize=(side + 1.1, side), layout="constrained")
        panel = figure.subplots()
        low, high = min(0.0, float(np.nanmin(shown))), max(0.0, float(np.nanmax(shown)))
        image = panel.imshow(shown, cmap="cividis", vmin=low, vmax=high if high > low else low + 1)
        places = range(0, count, 1 if count <= 2 * MOST_NUMBERS else 4)
        panel.set_xticks(places, [self.layers[place] for place in places])
        panel.set_yticks(places, [self.layers[place] for place in places])
        panel.set_xlabel("last bypassed layer")
        panel.set_ylabel("first bypassed layer")
        unit = "relative change of {} (%)" if relative else "change of {}, which is 0 for the adapter"
        figure.colorbar(image, ax=panel, label=unit.format(self.metric.replace("_", " ")), shrink=0.85)
        if count <= MOST_NUMBERS:
            middle = (low + high) / 2
            for x, y in self.spans:
                own = shown[x, y]
                text = f"{own:.0f}" if relative and abs(own) >= 10 else f"{own:.1f}" if relative else f"{own:.2f}"
                panel.text(y, x, text, ha="center", va="center", fontsize=7, color="w" if own < middle else "k")
        return figure


def refuse(folder: str | Path, *, overwrite: bool = False) -> None:
    """Refuse a folder to which an ablation cannot be written, before anything is measured.

    Raises:
        OutputError: it exists, and `overwrite` is off or it holds something else.
    """
    files = (f"{NAME}.csv", f"{NAME}.png", f"{NAME}.svg", RECORD)
    refuse_other_contents(Path(folder), files, overwrite=overwrite)


def ablate(
    adapter: Adapter,
    *,
    backbone: Backbone | None = None,
    task: str | None = None,
    data: str | None = None,
    columns: Mapping[str, Any] | None = None,
    split: SplitName = "validation",
    rows: int | None = None,
    batch_size: int = 64,
    allow_backbone_mismatch: bool = False,
    progress: bool = False,
) -> Ablation:
    """Measure the scores of an adapter without its ops in each span of layers, x..y with both ends, without retraining.

    Passes begin with the states that are left by others: N layers take as much as (N² + 3 N + 8) / 6 evaluations of the
    adapter, 10.3 for 6 layers and 31.3 for 12, where one for each span would be 22 and 79. For generation, an
    encoder-decoder, and heads that read all layers, each span is an evaluation.

    Args:
        adapter: an adapter of any method that acts in layers.
        backbone: its backbone. None: it is loaded by the name stored in the adapter.
        task: name of a built-in task or path of a task file. None: the one that it was tuned on.
        data: other data than it was tuned on.
        columns: their columns, by field of the task.
        split: the split to measure on.
        rows: number of rows, the first ones. None: all.
        batch_size: number of rows in a forward pass.
        allow_backbone_mismatch: accept a backbone of the same shape with other weights.
        progress: report progress on standard error.

    Raises:
        AdapterError: the adapter's method acts in no layer, or it was made for another backbone.
        RecipeError: the task is unknown or of another kind; or data are given with a task, or columns without data.
        DataError: the data are not known or have no such split.
        DivergedError: a loss or score is not finite.
    """
    found, measured = rows_of(adapter, task=task, data=data, columns=columns, split=split, count=rows)
    name = adapter.task.name
    with shown_on_stderr(shown=progress) as display:
        if backbone is None:
            display.say(of_loading(adapter.backbone.name))
            backbone = Backbone.load(adapter.backbone.name)
        model = AdaptedModel(backbone, allow_backbone_mismatch=allow_backbone_mismatch)
        try:
            model.add(name, adapter)
            parts = (f"method {adapter.method.name}", of_task(found, {split: len(measured)}))
            display.say(joined(of_backbone(backbone), *parts))
            scorer = Scorer(model, name, found, measured, batch_size=batch_size, split=split)
            layers, own = measure(scorer, display=display)
        finally:
            model.detach()
    settings = adapter.method.settings_text
    about = {
        "method": adapter.method.name,
        **({"settings": settings} if settings else {}),
        "backbone": adapter.backbone.name,
        "task": found.name,
        "split": split,
        "rows": len(measured),
    }
    return Ablation(
        about=about,
        metric=found.main_metric,
        layers=layers.names,
        whole=own.whole,
        spans=own.spans,
        evaluations=own.evaluations,
        apart=own.apart,
    )
