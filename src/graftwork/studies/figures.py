"""Figures of a study over all its tasks: score against trained parameters, fronts of score and cost, sweeps."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from graftwork.studies.drawing import COLOURS, MARKERS, STYLES, Figure, Row
from graftwork.studies.groups import (
    Group,
    Split,
    groups_of,
    in_words,
    is_full,
    method_settings,
    metric_of,
    points,
    split_of,
    whole,
)
from graftwork.studies.results import Result, in_order, settings_in

PERCENTILES = (20, 50, 80)
"""Over tasks: those of Houlsby et al. 2019, figure 1."""

COSTS: Mapping[str, tuple[str, str, str]] = {
    "bytes": ("nbytes", "adapter on disk", "bytes"),
    "time": ("seconds", "time of a run", "s"),
    "memory": ("peak_memory", "peak memory of a run", "bytes"),
}
"""What a score is held against: the field of a result, and its name and unit on the axis."""

SWEPT: Mapping[str, str] = {
    "bottleneck": "bottleneck size",
    "reduction": "reduction of the hidden size",
    "rank": "rank",
    "num_virtual_tokens": "virtual tokens",
    "init_std": "standard deviation of the initial weights",
    "top_layers": "trained layers from the top",
}
"""Settings whose values are swept, and what the axis says."""

SIZES = frozenset(SWEPT) - {"init_std"}
"""Those of which a method's size follows: along a curve over trained parameters, nothing else changes."""


def score_against_parameters(results: Sequence[Result]) -> Figure | None:
    """The score of each method against what it trains, on a log axis (Houlsby et al. 2019, figure 1).

    Of each task the mean over seeds is taken, less that of full fine-tuning where the study has it; of the tasks, the
    median and the 20th and 80th percentile. None where no method has runs of all tasks.

    Args:
        results: the runs.
    """
    split, tasks = split_of(results), in_order(own.task for own in results)
    groups, left_out = whole(groups_of(results), tasks)
    if not groups:
        return None
    reference = next((own for own in groups if is_full(own.runs[0])), None)
    base = [0.0] * len(tasks) if reference is None else _points(reference, tasks, split, results)
    rows: list[Row] = []
    for own in groups:
        differences = np.subtract(_points(own, tasks, split, results), base)
        low, median, high = (float(np.percentile(differences, share)) for share in PERCENTILES)
        trained, backbone = own.mean("trained_parameters"), own.mean("backbone_parameters")
        facts = {"method": own.method, "setting": own.setting, "tasks": len(tasks), "split": split}
        size = {"trained_parameters": trained, "percent_of_backbone": 100 * trained / backbone}
        rows.append({**facts, **size, "p20": low, "median": median, "p80": high})
    what = f"{split} score (points)" if reference is None else f"{split} score less {reference.label}'s (points)"
    note = (
        "Median over tasks, with the 20th and 80th percentile as bars; of each task, the mean over seeds. "
        "Trained parameters with the head. " + left_out
    )

    def draw() -> Any:
        figure, panel = _panel()
        for number, (method, own) in enumerate(_by_size(rows).items()):
            own = sorted(own, key=lambda row: row["trained_parameters"])
            middle = [row["median"] for row in own]
            ends = [[row["median"] - row["p20"] for row in own], [row["p80"] - row["median"] for row in own]]
            sizes = [row["trained_parameters"] for row in own]
            panel.errorbar(sizes, middle, yerr=ends, label=method, capsize=2.5, **_look(number))
        panel.set_xscale("log")
        panel.set_xlabel("trained parameters of a task")
        panel.set_ylabel(what)
        return _with_legend(figure, panel)

    title = "Score against trained parameters"
    return Figure(name="parameters", title=title, note=note.strip(), rows=rows, draw=draw)


def pareto(results: Sequence[Result], cost: str) -> Figure | None:
    """The mean score over tasks against what it costs, and which methods none beats in both. None where no method has
    runs of all tasks whose cost is known.

    Args:
        results: the runs.
        cost: a key of `COSTS`.
    """
    field, name, unit = COSTS[cost]
    split, tasks = split_of(results), in_order(own.task for own in results)
    groups, left_out = whole(groups_of(results), tasks)
    groups = [own for own in groups if all(getattr(run, field) is not None for run in own.runs)]
    if not groups:
        return None
    found = [(own, own.mean(field), float(np.mean(_points(own, tasks, split, results)))) for own in groups]
    rows: list[Row] = [
        {
            "method": own.method,
            "setting": own.setting,
            "tasks": len(tasks),
            "split": split,
            "score": score,
            f"{field}": price,
            "on_front": not any(
                (other >= score and less <= price) and (other > score or less < price) for _, less, other in found
            ),
        }
        for own, price, score in found
    ]

    def draw() -> Any:
        figure, panel = _panel()
        front = sorted((row[field], row["score"]) for row in rows if row["on_front"])
        panel.plot(*zip(*front, strict=True), color="0.6", linewidth=1, drawstyle="steps-post", zorder=0)
        for number, row in enumerate(rows):
            look = {**_look(number), "linestyle": "none"}
            label = _label(row) + ("" if row["on_front"] else " (beaten)")
            fill = look["color"] if row["on_front"] else "white"
            panel.plot([row[field]], [row["score"]], label=label, markerfacecolor=fill, **look)
        panel.set_xscale("log")
        panel.set_xlabel(f"{name} ({unit})")
        panel.set_ylabel(f"{split} score, mean over tasks (points)")
        return _with_legend(figure, panel)

    note = "Filled: no other method is better and cheaper. Means over tasks, and over the seeds of each. " + left_out
    return Figure(name=f"pareto-{cost}", title=f"Score against {name}", note=note.strip(), rows=rows, draw=draw)


def sweeps(results: Sequence[Result]) -> list[Figure]:
    """The score on each task against a setting that has several values: a size, the scale of initial weights, the
    number of top layers. A method's other settings are the same along a curve.

    Args:
        results: the runs.
    """
    return [figure for setting in SWEPT if (figure := sweep(results, setting)) is not None]


def sweep(results: Sequence[Result], setting: str) -> Figure | None:
    """The same of one setting; None where no method has several values of it.

    Args:
        results: the runs.
        setting: a key of `SWEPT`.
    """
    split = split_of(results)
    curves: dict[tuple[str, str], list[tuple[float, Group]]] = {}
    for own in groups_of(results):
        value = method_settings(own.runs[0]).get(setting)
        rest = _rest(own.runs[0].settings, [setting])
        if value is not None:
            curves.setdefault((own.method, rest), []).append((float(value), own))
    rows: list[Row] = []
    for (method, rest), values in curves.items():
        if len({value for value, _ in values}) < 2:
            continue
        for value, own in sorted(values, key=lambda pair: pair[0]):
            for task in own.tasks:
                metric = metric_of(results, task)
                found = own.summary(task, split, metric)
                if found is not None:
                    facts = {"method": method, "other_settings": rest, setting: value, "task": task, "split": split}
                    spread = {"mean": found.mean, "standard_error": found.standard_error}
                    sizes = {"trained_parameters": own.mean("trained_parameters")}
                    rows.append({**facts, "metric": metric, "seeds": found.count, **spread, **sizes})
    if not rows:
        return None

    def draw() -> Any:
        from matplotlib.figure import Figure as Canvas

        kept = in_order(_name(row) for row in rows)
        figure = Canvas(figsize=(4.4 * len(kept) + 1.6, 3.6), layout="constrained")
        tasks = in_order(row["task"] for row in rows)
        panels = figure.subplots(1, len(kept), squeeze=False, sharey=True)[0]
        for panel, name in zip(panels, kept, strict=True):
            for number, task in enumerate(tasks):
                own = [row for row in rows if _name(row) == name and row["task"] == task]
                if own:
                    errors = [0.0 if row["seeds"] == 1 else row["standard_error"] for row in own]
                    label = f"{task} ({in_words(own[0]['metric'])})"
                    values = [row[setting] for row in own]
                    scores = [row["mean"] for row in own]
                    panel.errorbar(values, scores, yerr=errors, label=label, capsize=2.5, **_look(number))
            values = sorted({row[setting] for row in rows if _name(row) == name})
            if values[0] > 0 and values[-1] / values[0] >= 8:
                panel.set_xscale("log")
            panel.set_xticks(values, [f"{value:g}" for value in values])
            panel.minorticks_off()
            panel.set_xlabel(SWEPT[setting])
            panel.set_title(name, fontsize=9)
            panel.grid(alpha=0.3)
        panels[0].set_ylabel(f"{split} score")
        found = {label: own for panel in panels for own, label in zip(*panel.get_legend_handles_labels(), strict=True)}
        figure.legend(found.values(), found.keys(), loc="outside right upper", fontsize=8)
        return figure

    note = "Mean over seeds, with the standard error as bars."
    return Figure(name=f"sweep-{setting}", title=f"Score against {SWEPT[setting]}", note=note, rows=rows, draw=draw)


def _points(group: Group, tasks: Sequence[str], split: Split, results: Sequence[Result]) -> list[float]:
    """Of each task, the mean score over seeds, in points."""
    found = []
    for task in tasks:
        metric = metric_of(results, task)
        own = group.summary(task, split, metric)
        assert own is not None
        found.append(points(own.mean, metric))
    return found


def _by_size(rows: Sequence[Row]) -> dict[str, list[Row]]:
    """Rows of one method that differ in its size alone make one curve."""
    found: dict[str, list[Row]] = {}
    for row in rows:
        found.setdefault(_named(row["method"], _rest(settings_in(row["setting"]), SIZES)), []).append(row)
    return {_label(own[0]) if len(own) == 1 else name: own for name, own in found.items()}


def _rest(settings: Mapping[str, str], swept: Iterable[str]) -> str:
    """Settings but for some."""
    return ", ".join(f"{name}={value}" for name, value in settings.items() if name not in swept)


def _named(method: str, setting: str) -> str:
    return f"{method} ({setting})" if setting else method


def _label(row: Row) -> str:
    return _named(row["method"], row["setting"])


def _name(row: Row) -> str:
    return _named(row["method"], row["other_settings"])


def _look(number: int) -> dict[str, Any]:
    """How a curve looks: its marker and line tell it apart in grey."""
    return {
        "marker": MARKERS[number % len(MARKERS)],
        "linestyle": STYLES[number % len(STYLES)],
        "color": COLOURS[number % len(COLOURS)],
        "markersize": 5.5,
        "linewidth": 1.3,
    }


def _panel() -> tuple[Any, Any]:
    from matplotlib.figure import Figure as Canvas

    figure = Canvas(figsize=(7.2, 3.9), layout="constrained")
    panel = figure.subplots()
    panel.grid(alpha=0.3)
    return figure, panel


def _with_legend(figure: Any, panel: Any) -> Any:
    figure.legend(*panel.get_legend_handles_labels(), loc="outside right upper", fontsize=8)
    return figure
