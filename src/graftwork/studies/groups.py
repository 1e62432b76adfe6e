"""Runs by method and setting, and the scores by which tables and figures compare them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from statistics import fmean
from typing import Any, Literal

from graftwork.settings.yamlfile import RECIPE, read_yaml
from graftwork.studies.results import Result, in_order
from graftwork.studies.statistics import Summary, summarise
from graftwork.tasks import METRICS

Split = Literal["validation", "test"]

REPORTED: Mapping[str, str] = {"cola": "matthews_correlation", "mrpc": "f1", "qqp": "f1", "stsb": "spearman"}
"""The metric that papers report of a task, where another one may choose the checkpoint."""


@dataclass(frozen=True)
class Group:
    """The runs of one method and setting.

    Attributes:
        method, setting: in the words of the study.
        runs: of all tasks and seeds.
    """

    method: str
    setting: str
    runs: tuple[Result, ...]

    @property
    def label(self) -> str:
        """The method with its setting."""
        return self.runs[0].label

    @property
    def tasks(self) -> list[str]:
        """The tasks that it has runs of."""
        return in_order(own.task for own in self.runs)

    def on(self, task: str) -> list[Result]:
        """The runs of a task, one a seed."""
        return [own for own in self.runs if own.task == task]

    def summary(self, task: str, split: Split, metric: str) -> Summary | None:
        """Scores of a task over seeds; None where there are none."""
        values = [scores[metric] for own in self.on(task) if metric in (scores := getattr(own, split))]
        return summarise(values) if values else None

    def mean(self, name: str) -> float:
        """The mean over all runs of a number of theirs, such as `trained_parameters`; of a task's seeds first."""
        by_task = [[float(getattr(own, name)) for own in self.on(task)] for task in self.tasks]
        return fmean(fmean(values) for values in by_task)


def groups_of(results: Sequence[Result]) -> list[Group]:
    """The runs by method and setting, in the order in which they come."""
    found: dict[tuple[str, str], list[Result]] = {}
    for own in results:
        found.setdefault((own.method, own.setting), []).append(own)
    return [Group(method, setting, tuple(runs)) for (method, setting), runs in found.items()]


def whole(groups: Sequence[Group], tasks: Sequence[str]) -> tuple[list[Group], str]:
    """The groups that have runs of all tasks, which alone can be compared over them; and a note of the others."""
    known = [own for own in groups if {*tasks} <= {*own.tasks}]
    others = [own.label for own in groups if own not in known]
    return known, f"Not on all tasks, and so left out: {', '.join(others)}." if others else ""


def split_of(results: Sequence[Result]) -> Split:
    """The split that scores are of: test where every run has such scores, else validation."""
    return "test" if results and all(own.test for own in results) else "validation"


def metric_of(results: Sequence[Result], task: str) -> str:
    """The metric of a task: the one that papers report, or else the main one."""
    runs = [own for own in results if own.task == task]
    reported = REPORTED.get(task)
    if reported is not None and all(reported in own.validation for own in runs):
        return reported
    return runs[0].main_metric


def points(value: float, metric: str) -> float:
    """A score on a scale that all metrics have in common: 100 is perfect, and more is better."""
    known = METRICS.get(metric)
    return 100 * (value if known is None else known.goodness(value))


def sign_of(metric: str) -> int:
    """1 of a metric that is the better the higher it is, else -1."""
    known = METRICS.get(metric)
    return 1 if known is None or known.greater_is_better else -1


def method_settings(result: Result) -> Mapping[str, Any]:
    """All settings of a run's method, `name` among them, from its recipe; without one, what the study says."""
    file = result.folder / RECIPE
    return _settings(file) if file.is_file() else {"name": result.method, **result.settings}


@cache
def _settings(file: Path) -> Mapping[str, Any]:
    found: Mapping[str, Any] = read_yaml(file)["method"]
    return found


def is_full(result: Result) -> bool:
    """Whether all of the backbone was fine-tuned, with which papers compare."""
    settings = method_settings(result)
    plain = all(settings.get(name) is None for name in ("top_layers", "random_subset"))
    return settings.get("name") == "full-fine-tuning" and plain


def in_words(metric: str) -> str:
    """A metric's name in words."""
    return metric.replace("_", " ")
