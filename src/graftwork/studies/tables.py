"""Tables of a study: the sizes of methods, and their scores on each task (tables 1 to 3 of reports on adapters)."""

from collections.abc import Mapping, Sequence
from typing import Any

from graftwork.studies.drawing import Row, Table
from graftwork.studies.groups import (
    Group,
    Split,
    groups_of,
    in_words,
    method_settings,
    metric_of,
    points,
    sign_of,
    split_of,
)
from graftwork.studies.results import Result, in_order
from graftwork.studies.statistics import Summary
from graftwork.tasks.builtin import GLUE_FOLDERS

NORMS = {"all": "all layer norms", "layers": "the layers' norms", "none": "nothing"}


def sizes(results: Sequence[Result]) -> Table:
    """Table 1: what each method shares and trains, and how much that is.

    Args:
        results: the runs.
    """
    rows: list[Row] = []
    for own in groups_of(results):
        settings = method_settings(own.runs[0])
        trained, head = own.mean("trained_parameters"), own.mean("head_parameters")
        backbone = own.mean("backbone_parameters")
        rows.append(
            {
                "method": own.method,
                "setting": own.setting,
                "shared": _shared(settings),
                "trained_of_backbone": _trained(settings),
                "classifiers": _classifiers(settings),
                "trained_parameters": trained,
                "without_head": trained - head,
                "percent_of_backbone": 100 * (trained - head) / backbone,
                "bytes": own.mean("nbytes"),
            }
        )
    shown = [
        {
            "method": f"{row['method']} ({row['setting']})" if row["setting"] else str(row["method"]),
            "bottlenecks": str(row["shared"]),
            "trained of the backbone": str(row["trained_of_backbone"]),
            "classifiers": str(row["classifiers"]),
            "trained parameters": f"{row['trained_parameters']:,.0f}",
            "without the head": f"{row['without_head']:,.0f} ({row['percent_of_backbone']:.2f} %)",
            "on disk": f"{row['bytes'] / 1e6:.2f} MB",
        }
        for row in rows
    ]
    note = "Parameters are means over tasks, whose heads differ."
    return Table(name="sizes", title="What is trained", note=note, rows=rows, shown=shown)


def _shared(settings: Mapping[str, Any]) -> str:
    """Which bottlenecks are one."""
    if "share_layers" not in settings:
        return ""
    layers, positions = settings["share_layers"], settings["share_positions"]
    if layers and int(layers) > 1:
        return f"shared in {layers} layers"
    return "shared in each layer" if positions else "not shared"


def _trained(settings: Mapping[str, Any]) -> str:
    """Which of the backbone's own parameters are trained, of methods that say so."""
    if settings.get("name") == "full-fine-tuning":
        top = settings.get("top_layers")
        return "all" if top is None else f"top {top} layers"
    return NORMS.get(str(settings.get("norms", "")), "")


def _classifiers(settings: Mapping[str, Any]) -> int:
    return 2 if settings.get("extra_classifier") else 1


def glue_scores(results: Sequence[Result]) -> Table | None:
    """Table 2: a line for each method, a column for each task of GLUE, and their mean. None without such tasks."""
    own = [one for one in results if one.task in GLUE_FOLDERS]
    return _scores(own, name="scores-glue", title="Scores on GLUE") if own else None


def other_scores(results: Sequence[Result]) -> Table | None:
    """Table 3: the same of all other tasks. None without such tasks."""
    own = [one for one in results if one.task not in GLUE_FOLDERS]
    return _scores(own, name="scores", title="Scores on other tasks") if own else None


def _scores(results: Sequence[Result], *, name: str, title: str) -> Table:
    """Scores over seeds, as a row for each task and method; shown with a line for each method."""
    split, tasks, groups = split_of(results), in_order(own.task for own in results), groups_of(results)
    metrics = {task: metric_of(results, task) for task in tasks}
    rows: list[Row] = []
    for own in groups:
        for task in tasks:
            found = own.summary(task, split, metrics[task])
            if found is not None:
                facts = {"task": task, "method": own.method, "setting": own.setting, "split": split}
                spread = {"mean": found.mean, "standard_error": found.standard_error}
                rows.append({**facts, "metric": metrics[task], "seeds": found.count, **spread})
    means = {own.label: _mean(own, tasks, split, metrics) for own in groups}
    best = {task: max(_rank(own, task, split, metrics) for own in groups) for task in tasks}
    shown = []
    for own in groups:
        cells = {task: _cell(own, task, split, metrics, best[task]) for task in tasks}
        mean = means[own.label]
        shown.append({"method": own.label, **cells, "mean": "" if mean is None else f"{mean:.1f}"})
    said = ", ".join(f"{task} {in_words(metric)}" for task, metric in metrics.items())
    plain = in_order(metric for metric in metrics.values() if sign_of(metric) < 0)
    note = (
        f"The score on {split} where 100 is perfect, mean ± standard error over seeds; the best of each task is "
        f"marked *. The mean is over tasks, of methods that have all of them. Metrics: {said}."
    )
    if plain:
        names = " and ".join(in_words(metric) for metric in plain)
        note += f" Of {names}, the value itself is shown, and lower is better; in the mean it is 100 / (1 + value)."
    return Table(name=name, title=title, note=note, rows=rows, shown=shown)


def _mean(group: Group, tasks: Sequence[str], split: Split, metrics: Mapping[str, str]) -> float | None:
    found = [(group.summary(task, split, metrics[task]), metrics[task]) for task in tasks]
    known = [points(own.mean, metric) for own, metric in found if own is not None]
    return sum(known) / len(known) if len(known) == len(tasks) else None


def _shown(found: Summary, metric: str) -> tuple[float, float, int]:
    """A mean and its standard error as they are shown, and their number of decimals."""
    if sign_of(metric) < 0:
        return found.mean, found.standard_error, 3
    return points(found.mean, metric), points(found.standard_error, metric), 1


def _rank(group: Group, task: str, split: Split, metrics: Mapping[str, str]) -> float:
    """What is highest of the best: methods that are shown as equal are equal."""
    found = group.summary(task, split, metrics[task])
    if found is None:
        return float("-inf")
    mean, _, decimals = _shown(found, metrics[task])
    return sign_of(metrics[task]) * round(mean, decimals)


def _cell(group: Group, task: str, split: Split, metrics: Mapping[str, str], best: float) -> str:
    found = group.summary(task, split, metrics[task])
    if found is None:
        return ""
    mean, error, decimals = _shown(found, metrics[task])
    spread = "" if found.count == 1 else f" ± {error:.{decimals}f}"
    mark = "*" if _rank(group, task, split, metrics) == best else ""
    return f"{mean:.{decimals}f}{spread}{mark}"
