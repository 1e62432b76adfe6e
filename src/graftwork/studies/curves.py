"""What runs say of themselves on one task: learning curves, and which classes are taken for which."""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from graftwork.kinds import DEFAULT_KIND, KINDS
from graftwork.settings.yamlfile import RECIPE, read_yaml
from graftwork.studies.drawing import COLOURS, MARKERS, STYLES, Figure, Row
from graftwork.studies.groups import Group, groups_of, in_words, sign_of
from graftwork.studies.results import METRICS, PREDICTIONS, Result, in_order

MOST_CLASSES = 40
"""Beyond so many, a matrix cannot be read."""

MOST_NUMBERS = 12
"""Classes up to which each cell has its number."""


def learning_curves(results: Sequence[Result]) -> list[Figure]:
    """Of each task, the validation score of each method after so many steps: the mean over seeds, between the lowest
    and the highest.

    Args:
        results: the runs, in whose folders the evaluations are.
    """
    tasks = in_order(own.task for own in results)
    return [figure for task in tasks if (figure := _learning([own for own in results if own.task == task])) is not None]


def _learning(results: Sequence[Result]) -> Figure | None:
    """The curves of one task; None where no run has any."""
    task, metric = results[0].task, results[0].main_metric
    rows: list[Row] = []
    for own in groups_of(results):
        found: dict[int, list[tuple[float, float]]] = {}
        for run in own.runs:
            for line in _lines(run.folder / METRICS):
                if line["split"] == "validation" and line["step"] is not None and metric in line:
                    found.setdefault(int(line["step"]), []).append((float(line["epoch"] or 0.0), float(line[metric])))
        for step, values in sorted(found.items()):
            scores = [score for _, score in values]
            spread = {"mean": fmean(scores), "low": min(scores), "high": max(scores), "seeds": len(scores)}
            facts = {"task": task, "method": own.method, "setting": own.setting, "metric": metric}
            rows.append({**facts, "step": step, "epoch": fmean(epoch for epoch, _ in values), **spread})
    if not rows:
        return None

    def draw() -> Any:
        from matplotlib.figure import Figure as Canvas

        figure = Canvas(figsize=(7.2, 3.6), layout="constrained")
        panel = figure.subplots()
        curves: dict[tuple[str, str], list[Row]] = {}
        for row in rows:
            curves.setdefault((row["method"], row["setting"]), []).append(row)
        for number, ((method, setting), own) in enumerate(curves.items()):
            steps, colour = [row["step"] for row in own], COLOURS[number % len(COLOURS)]
            panel.plot(
                steps,
                [row["mean"] for row in own],
                linestyle=STYLES[number % len(STYLES)],
                marker=MARKERS[number % len(MARKERS)],
                markersize=4,
                color=colour,
                label=f"{method} ({setting})" if setting else method,
            )
            panel.fill_between(
                steps, [row["low"] for row in own], [row["high"] for row in own], color=colour, alpha=0.15, linewidth=0
            )
        panel.set_xlabel("training steps")
        panel.set_ylabel(f"validation {in_words(metric)}")
        panel.grid(alpha=0.3)
        figure.legend(*panel.get_legend_handles_labels(), loc="outside right upper", fontsize=8)
        return figure

    note = "Mean over seeds; the band is from the lowest to the highest."
    return Figure(name=f"learning-{task}", title=f"Learning curves of {task}", note=note, rows=rows, draw=draw)


def confusions(results: Sequence[Result]) -> list[Figure]:
    """Of each task with classes and a test split, the confusion matrix of the method with the best validation score.

    Args:
        results: the runs, in whose folders the predictions are.
    """
    figures = []
    for task in in_order(own.task for own in results):
        groups = groups_of([own for own in results if own.task == task])
        best = max(groups, key=lambda own: sign_of(own.runs[0].main_metric) * fmean(_validation(own)))
        figure = confusion(best.runs)
        if figure is not None:
            figures.append(figure)
    return figures


def confusion(runs: Sequence[Result]) -> Figure | None:
    """How often rows of each class of the test split were taken for each, over the seeds of one method on one task.
    None for tasks without classes, without a test split, or with more than 40 classes.

    Args:
        runs: one a seed.
    """
    pairs: Counter[tuple[str, str]] = Counter()
    for run in runs:
        for line in _lines(run.folder / PREDICTIONS):
            if not isinstance(line["label"], str) or not isinstance(line["prediction"], str):
                return None
            pairs[line["label"], line["prediction"]] += 1
    classes = _classes(runs[0], {name for pair in pairs for name in pair})
    if not pairs or classes is None or len(classes) > MOST_CLASSES:
        return None
    first = runs[0]
    rows = [
        {"label": label, "prediction": said, "rows": pairs[label, said], "share": _share(pairs, classes, label, said)}
        for label in classes
        for said in classes
    ]

    def draw() -> Any:
        from matplotlib.figure import Figure as Canvas

        count = len(classes)
        side = min(9.0, max(3.2, 0.45 * count + 1.6))
        figure = Canvas(figsize=(side + 1.2, side), layout="constrained")
        panel = figure.subplots()
        shares = [[_share(pairs, classes, label, said) for said in classes] for label in classes]
        image = panel.imshow([[100 * own for own in line] for line in shares], cmap="Greys", vmin=0, vmax=100)
        panel.set_xticks(range(count), classes, rotation=45, ha="right")
        panel.set_yticks(range(count), classes)
        panel.set_xlabel("prediction")
        panel.set_ylabel("label")
        figure.colorbar(image, ax=panel, label="share of the label's rows (%)", shrink=0.85)
        if count <= MOST_NUMBERS:
            for y, label in enumerate(classes):
                for x, said in enumerate(classes):
                    colour = "w" if shares[y][x] > 0.55 else "k"
                    number = f"{pairs[label, said]:,}"
                    panel.text(x, y, number, ha="center", va="center", fontsize=7, color=colour)
        return figure

    note = f"{first.label}, {sum(pairs.values()):,} predictions over {len(runs)} seeds; rows of the test split."
    title = f"What {first.task} is taken for"
    return Figure(name=f"confusion-{first.task}", title=title, note=note, rows=rows, draw=draw)


def _validation(group: Group) -> list[float]:
    return [own.validation_score for own in group.runs]


def _share(pairs: Mapping[tuple[str, str], int], classes: Sequence[str], label: str, said: str) -> float:
    """Of the rows of a label, how many were taken for a class; 0 where it has none."""
    total = sum(pairs[label, other] for other in classes)
    return pairs[label, said] / total if total else 0.0


def _classes(run: Result, there: set[str]) -> list[str] | None:
    """The classes in the task's order, from the recipe, or sorted; None for tasks without classes."""
    file = run.folder / RECIPE
    task = read_yaml(file)["task"] if file.is_file() else {}
    if not isinstance(task, Mapping) or not task.get("labels"):
        return None if isinstance(task, Mapping) and not _has_one_class(task) else sorted(there)
    return [str(name) for name in task["labels"]]


def _has_one_class(task: Mapping[str, Any]) -> bool:
    """Whether each row of a task, as a recipe has it, has one class."""
    return KINDS[str(task.get("kind", DEFAULT_KIND))].one_class


def _lines(file: Path) -> list[dict[str, Any]]:
    """The lines of a file of JSON; none where there is no file."""
    if not file.is_file():
        return []
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
