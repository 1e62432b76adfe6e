"""What a run reports while it trains: a progress bar for people, and a log of JSON lines for programs."""

import json
from collections.abc import Iterable, Mapping
from math import ceil
from pathlib import Path
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from graftwork.folders import writing
from graftwork.training.display import Bar, Display

MEASURED = ("_runtime", "_per_second", "total_flos", "train_loss")
"""Ends of the keys whose values depend on the machine's speed or on where a run was resumed."""


class ProgressBar(TrainerCallback):
    """Steps done and to do, the epoch, the loss and the last validation score of a run, as one bar.

    Args:
        label: the adapter's name.
        metric: whose validation score is shown.
        display: where.
    """

    def __init__(self, label: str, metric: str, display: Display) -> None:
        self.label = label
        self.metric = metric
        self.display = display
        self.epoch = self.loss = self.score = ""
        self.bar: Bar | None = None

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self.bar = self.display.begin(self.label, state.max_steps, "steps", done=state.global_step)

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if self.bar is None:
            return
        self.epoch = f"epoch {max(1, ceil(state.epoch or 0))}/{state.num_train_epochs}"
        self.bar.move(state.global_step, note=self._note)

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
        if "loss" in logs:
            self.loss = f"loss {logs['loss']:.3f}"
        if f"eval_{self.metric}" in logs:
            self.score = f"{self.metric} {logs[f'eval_{self.metric}']:.3f}"
            self.bar.tell(f"step {state.global_step:,} of {state.max_steps:,}, validation {self.score}")
        self.bar.move(note=self._note)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if self.bar is not None:
            self.display.end(self.bar)

    @property
    def _note(self) -> str:
        return " ".join(part for part in (self.epoch, self.score, self.loss) if part)


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
