"""One finished run, as tables and figures read it."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

METRICS, PREDICTIONS, ADAPTER = "metrics.jsonl", "predictions.jsonl", "adapter"
"""Within the folder of a run: one line an evaluation, one line a row of the test split, and the adapter's folder."""


@dataclass(frozen=True, kw_only=True)
class Result:
    """One finished run of a study.

    Scores are those of the adapter that was kept: validation chose it, test reports it.

    Attributes:
        task: the task's name.
        method: the method's name.
        setting: what was set of the method beyond its defaults: `bottleneck=64`, `bottleneck=64, targets=query,value`;
            empty for the defaults.
        learning_rate: the peak learning rate.
        seed: of the initialisation and the training.
        main_metric: the metric that chooses and is reported, a key of `validation` and `test`.
        validation: scores on the validation split, by metric.
        test: scores on the test split, by metric; empty where there is none.
        trained_parameters: number of trained parameters, head included.
        backbone_parameters: number of parameters of the frozen backbone.
        nbytes: size of the adapter on disk, in bytes.
        seconds: time of the run.
        peak_memory: the largest memory of the run, in bytes; None if it was not measured.
        folder: the run's folder.
        head_parameters: how many of the trained parameters are the head's.
    """

    task: str
    method: str
    setting: str = ""
    learning_rate: float
    seed: int
    main_metric: str
    validation: Mapping[str, float]
    test: Mapping[str, float]
    trained_parameters: int
    backbone_parameters: int
    nbytes: int
    seconds: float
    peak_memory: int | None = None
    folder: Path
    head_parameters: int = 0

    @property
    def label(self) -> str:
        """What is compared: the method with its setting."""
        return f"{self.method} ({self.setting})" if self.setting else self.method

    @property
    def settings(self) -> dict[str, str]:
        """The setting, by name of its parts."""
        parts = (part.partition("=") for part in re.split(r",\s*(?=[\w.]+=)", self.setting) if part)
        return {name: value for name, _, value in parts}

    @property
    def validation_score(self) -> float:
        """The main metric on the validation split."""
        return self.validation[self.main_metric]

    @property
    def test_score(self) -> float:
        """The main metric on the test split.

        Raises:
            KeyError: it was not measured.
        """
        return self.test[self.main_metric]


def in_order(values: Iterable[str]) -> list[str]:
    """Each once, in the order in which they come."""
    return list(dict.fromkeys(values))
