"""A measured landscape and its files: a table (CSV), a figure (PNG and SVG), what it was made with (JSON), and the
random directions."""

import json
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import Tensor

from graftwork.combine.reports import refuse_other_contents, write_csv
from graftwork.folders import replacing_folder

CSV, FIGURES, RECORD, DIRECTIONS = (
    "landscape.csv",
    ("landscape.png", "landscape.svg"),
    "landscape.json",
    "directions.safetensors",
)

Values = Mapping[str, float]
"""The loss and scores, by name."""

STYLES = ("-", "--", ":", "-.")
"""Curves can be told apart in grey."""


@dataclass(frozen=True, kw_only=True)
class Landscape(ABC):
    """What was measured, and its folder.

    Attributes:
        about: what is recorded with it, such as the task.
    """

    about: Mapping[str, Any] = field(default_factory=dict)

    @abstractmethod
    def rows(self) -> list[dict[str, Any]]:
        """The rows of the table."""

    @abstractmethod
    def record(self) -> dict[str, Any]:
        """What it was made with, and what it shows in numbers."""

    @abstractmethod
    def draw(self) -> Any:
        """The figure."""

    @property
    def tensors(self) -> Mapping[str, Tensor]:
        """The directions that were drawn at random, if any."""
        return {}

    def save(self, folder: str | Path, *, overwrite: bool = False) -> None:
        """Write table, figure and record to a folder, completely or not at all.

        Args:
            folder: the folder.
            overwrite: replace an existing landscape.

        Raises:
            OutputError: the folder exists and `overwrite` is off, it holds something else, or it cannot be written.
        """
        import matplotlib

        refuse(folder, overwrite=overwrite)
        with replacing_folder(Path(folder), overwrite=overwrite) as temporary:
            write_csv(temporary / CSV, self.rows())
            (temporary / RECORD).write_text(json.dumps(self.record(), indent=2) + "\n", encoding="utf-8")
            with matplotlib.rc_context({"svg.hashsalt": "graftwork"}):
                figure = self.draw()
                for name in FIGURES:
                    kept: dict[str, Any] = {"metadata": {"Date": None}} if name.endswith(".svg") else {}
                    figure.savefig(temporary / name, dpi=150, **kept)
            if self.tensors:
                save_file({name: own.contiguous() for name, own in self.tensors.items()}, temporary / DIRECTIONS)


def refuse(folder: str | Path, *, overwrite: bool = False) -> None:
    """Refuse a folder to which a landscape cannot be written, before anything is measured.

    Raises:
        OutputError: it exists, and `overwrite` is off or it holds something else.
    """
    refuse_other_contents(Path(folder), (CSV, *FIGURES, RECORD, DIRECTIONS), overwrite=overwrite)


@dataclass(frozen=True, kw_only=True)
class Line(Landscape):
    """Loss and scores along the line between two results.

    Attributes:
        about: what is recorded with it, such as the task.
        names: of the results at α = 0 and α = 1.
        alphas: the points.
        curves: by name (`as they are`, `aligned`), what was measured at each point.
    """

    names: tuple[str, str]
    alphas: tuple[float, ...]
    curves: Mapping[str, tuple[Values, ...]]

    def barrier(self, curve: str) -> float:
        """The largest loss on a curve minus the mean of the losses at its ends."""
        losses = [values["loss"] for values in self.curves[curve]]
        return max(losses) - (losses[0] + losses[-1]) / 2

    def rows(self) -> list[dict[str, Any]]:
        """One row for each curve and point: curve, alpha, loss, scores."""
        return [
            {"curve": curve, "alpha": alpha, **values}
            for curve, found in self.curves.items()
            for alpha, values in zip(self.alphas, found, strict=True)
        ]

    def record(self) -> dict[str, Any]:
        """The results' names, and the barrier of each curve."""
        barriers = {curve: self.barrier(curve) for curve in self.curves}
        return {"kind": "line", "from": self.names[0], "to": self.names[1], **self.about, "barriers": barriers}

    def draw(self) -> Any:
        """The figure: a panel for the loss and one for each score."""
        from matplotlib.figure import Figure

        shown = list(next(iter(self.curves.values()))[0])
        figure = Figure(figsize=(4.2 * len(shown), 3.4), layout="constrained")
        for panel, name in zip(figure.subplots(1, len(shown), squeeze=False)[0], shown, strict=True):
            for number, (curve, found) in enumerate(self.curves.items()):
                style = STYLES[number % len(STYLES)]
                panel.plot(self.alphas, [values[name] for values in found], style, label=curve, linewidth=1.8)
            panel.set_xlabel(f"α: 0 is {self.names[0]}, 1 is {self.names[1]}")
            panel.set_ylabel(name)
            panel.grid(alpha=0.3)
            if len(self.curves) > 1:
                panel.legend()
        return figure


@dataclass(frozen=True, kw_only=True)
class Surface(Landscape):
    """Loss and scores over a grid of points.

    Attributes:
        about: what is recorded with it, such as the task.
        kind: `plane` of three results, or `around` one.
        axes: what is along x and y.
        x, y: the places of the grid.
        values: what was measured, a row for each y, with a value for each x.
        marks: the places of results, by name.
        settings: what the grid was made with.
        directions: the random directions, `x.NAME` and `y.NAME`; empty for a plane.
    """

    kind: str
    axes: tuple[str, str]
    x: tuple[float, ...]
    y: tuple[float, ...]
    values: tuple[tuple[Values, ...], ...]
    marks: Mapping[str, tuple[float, float]]
    settings: Mapping[str, Any] = field(default_factory=dict)
    directions: Mapping[str, Tensor] = field(default_factory=dict)

    def rows(self) -> list[dict[str, Any]]:
        """One row for each point: x, y, loss, scores."""
        return [
            {"x": x, "y": y, **values}
            for y, row in zip(self.y, self.values, strict=True)
            for x, values in zip(self.x, row, strict=True)
        ]

    def record(self) -> dict[str, Any]:
        """The settings, the places of results, and the smallest loss."""
        lowest = min(self.rows(), key=lambda row: row["loss"])
        return {"kind": self.kind, **self.settings, **self.about, "results": dict(self.marks), "lowest": lowest}

    @property
    def tensors(self) -> Mapping[str, Tensor]:
        """The random directions."""
        return self.directions

    def draw(self) -> Any:
        """The figure: a panel for the loss and one for each score, with lines of equal value."""
        from matplotlib.figure import Figure

        shown = list(self.values[0][0])
        figure = Figure(figsize=(4.6 * len(shown), 3.8), layout="constrained")
        for panel, name in zip(figure.subplots(1, len(shown), squeeze=False)[0], shown, strict=True):
            height = [[values[name] for values in row] for row in self.values]
            flat = _is_flat(height)
            filled = panel.contourf(self.x, self.y, height, levels=3 if flat else 20, cmap="viridis")
            if not flat:
                lines = panel.contour(self.x, self.y, height, levels=8, colors="white", linewidths=0.6)
                panel.clabel(lines, fontsize=6)
            figure.colorbar(filled, ax=panel, label=name)
            for mark, (x, y) in self.marks.items():
                panel.plot(x, y, "o", color="white", markeredgecolor="black")
                panel.annotate(mark, (x, y), xytext=(5, 5), textcoords="offset points", color="white")
            panel.set_xlabel(self.axes[0])
            panel.set_ylabel(self.axes[1])
        return figure


def _is_flat(height: Sequence[Sequence[float]]) -> bool:
    """Whether all values are the same, of which there are no lines."""
    found = [value for row in height for value in row]
    return max(found) - min(found) <= 1e-12 * max(1.0, abs(max(found)))
