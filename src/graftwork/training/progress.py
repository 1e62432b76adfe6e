"""What a run tells while it trains: a progress bar for people, and a log of JSON lines for programs."""

import json
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from graftwork.folders import writing

MEASURED = ("_runtime", "_per_second", "total_flos", "train_loss")
"""Ends of the keys whose values depend on the machine's speed or on where a run was resumed."""


@contextmanager
def bars(*, shown: bool) -> Iterator[Progress]:
    """Inside, where the bars of runs are shown, on standard error, from the first on; afterwards, the terminal is
    as it was."""
    columns = (TextColumn("{task.description}"), BarColumn(12), MofNCompleteColumn(), TimeRemainingColumn(True))
    text = TextColumn("{task.fields[now]}")
    progress = Progress(*columns, text, console=Console(stderr=True), disable=not shown)
    try:
        yield progress
    finally:
        if progress.live.is_started:
            progress.stop()


class ProgressBar(TrainerCallback):
    """Steps done and to do, the loss, the rate and the last validation scores of a run, as one bar."""

    def __init__(self, label: str, metric: str, progress: Progress) -> None:
        self.label = label
        self.metric = metric
        self.score = ""
        self.progress = progress
        self.bar: TaskID | None = None

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self.progress.start()
        self.bar = self.progress.add_task(self.label, total=state.max_steps, completed=state.global_step, now="")

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if self.bar is not None:
            self.progress.update(self.bar, completed=state.global_step)

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: Mapping[str, float] | None = None,
        **kwargs: Any,
    ) -> None:
        if self.bar is None or logs is None:
            return
        if f"eval_{self.metric}" in logs:
            self.score = f" {self.metric} {logs[f'eval_{self.metric}']:.3f}"
        if "loss" in logs:
            now = f"loss {logs['loss']:.3f} rate {logs.get('learning_rate', 0.0):.1e}{self.score}"
            self.progress.update(self.bar, now=now)


class Log(TrainerCallback):
    """Writes every logged row to a file as it comes, and makes a log at each save.

    A log at each save starts the averages of the training loss anew there, so that a resumed run logs what an
    uninterrupted one does.
    """

    def __init__(self, file: Path) -> None:
        self.file = file

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        with writing(self.file):
            self.file.write_text(json_lines(state.log_history), encoding="utf-8")

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> TrainerControl:
        control.should_log = control.should_log or control.should_save
        return control

    def on_epoch_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> TrainerControl:
        control.should_log = control.should_log or control.should_save
        return control

    def on_log(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        with writing(self.file), self.file.open("a", encoding="utf-8") as file:
            file.write(json_lines(state.log_history[-1:]))


def repeatable(history: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The rows of a log without what differs between two runs of the same recipe; rows left with no value are
    dropped.
    """
    rows = [{key: value for key, value in row.items() if not key.endswith(MEASURED)} for row in history]
    return [row for row in rows if row.keys() - {"epoch", "step"}]


def json_lines(rows: Iterable[Mapping[str, Any]]) -> str:
    """One JSON object a line, its keys in order, so that a log that went through a checkpoint is the same."""
    return "".join(json.dumps(row, sort_keys=True) + "\n" for row in rows)
