"""Figures of studies: bars with intervals, and curves. They are SVG, of the same bytes for the same numbers."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import mean

from studies.domains import half_width


def bars(file: Path, values: Mapping[str, Sequence[float]], label: str) -> None:
    """A bar for each name: the mean over seeds in percent, and its 95 % interval.

    Args:
        file: to write.
        values: by name, one between 0 and 1 for each seed.
        label: of the axis.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(1.5 + 0.9 * len(values), 3.2), layout="constrained")
    axes = figure.subplots()
    heights = [100 * mean(own) for own in values.values()]
    errors = [100 * half_width(own) for own in values.values()]
    axes.bar(list(values), heights, yerr=errors, capsize=3, color="tab:blue", alpha=0.8)
    least = min(height - error for height, error in zip(heights, errors, strict=True))
    axes.set_ylim(max(0.0, least - 5), min(100.0, max(heights) + max(errors) + 3))
    axes.set_ylabel(label)
    axes.tick_params(axis="x", rotation=30)
    _save(figure, file)


def curves(file: Path, values: Mapping[str, Sequence[float]], across: str, label: str) -> None:
    """A curve for each name.

    Args:
        file: to write.
        values: by name, the values one after another, between 0 and 1.
        across, label: of the axes.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.0, 3.6), layout="constrained")
    axes = figure.subplots()
    for number, (name, own) in enumerate(values.items()):
        style = ("-", "--", ":", "-.")[number % 4]
        axes.plot(range(1, 1 + len(own)), [100 * value for value in own], style, label=name, linewidth=1.5)
    axes.set_xlabel(across)
    axes.set_ylabel(label)
    axes.legend(fontsize=7, ncols=2)
    _save(figure, file)


def lines(file: Path, x: Sequence[float], values: Mapping[str, Sequence[float]], across: str, label: str) -> None:
    """A line for each name.

    Args:
        file: to write.
        x: the places of all lines.
        values: by name, the values there.
        across, label: of the axes.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5.0, 3.4), layout="constrained")
    axes = figure.subplots()
    for number, (name, own) in enumerate(values.items()):
        axes.plot(x, own, ("-", "--", ":", "-.")[number % 4], label=name, linewidth=1.8)
    axes.set_xlabel(across)
    axes.set_ylabel(label)
    axes.grid(alpha=0.3)
    axes.legend()
    _save(figure, file)


def _save(figure: object, file: Path) -> None:
    import matplotlib

    with matplotlib.rc_context({"svg.hashsalt": "graftwork"}):
        figure.savefig(file, metadata={"Date": None})  # type: ignore[attr-defined]
