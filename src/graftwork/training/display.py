"""How a run shows how far it is, on standard error: as bars on a terminal, as a line every few seconds elsewhere."""

import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Column

EVERY = 5.0
"""Seconds between two lines where there is no terminal."""


class Bar(ABC):
    """How far one part of a run is.

    Args:
        label: the adapter's name, and which part it is.
        total: where it ends.
        unit: of what it is counted in.
        done: where it begins.

    Attributes:
        done: how far it is.
        note: what is said beside.
    """

    def __init__(self, label: str, total: int, unit: str, done: int) -> None:
        self.label, self.total, self.unit, self.done = label, total, unit, done
        self.note = ""

    def advance(self, count: int) -> None:
        """So many more are done."""
        self.move(self.done + count)

    def move(self, done: int | None = None, *, note: str | None = None) -> None:
        """So many are done, and this is said beside; None: as before."""
        self.done = self.done if done is None else done
        self.note = self.note if note is None else note
        self._show()

    @abstractmethod
    def tell(self, score: str) -> None:
        """Show a score that was measured, at once."""

    @abstractmethod
    def _show(self) -> None:
        """Show what has changed."""


class Display(ABC):
    """Where runs show how far they are; see `shown_on_stderr`."""

    @abstractmethod
    def say(self, *lines: str) -> None:
        """Print lines at once."""

    @contextmanager
    def bar(self, label: str, total: int, unit: str, *, done: int = 0, stays: bool = True) -> Iterator[Bar]:
        """A bar while what is inside runs.

        Args:
            stays: it is left on the terminal afterwards.
        """
        bar = self.begin(label, total, unit, done=done)
        try:
            yield bar
        finally:
            self.end(bar, stays=stays)

    @abstractmethod
    def begin(self, label: str, total: int, unit: str, *, done: int = 0) -> Bar:
        """A bar that is shown until `end`."""

    @abstractmethod
    def end(self, bar: Bar, *, stays: bool = True) -> None:
        """What a bar shows is over."""


class Silent(Display):
    """Shows nothing."""

    class _Bar(Bar):
        def tell(self, score: str) -> None:
            pass

        def _show(self) -> None:
            pass

    def say(self, *lines: str) -> None:
        pass

    def begin(self, label: str, total: int, unit: str, *, done: int = 0) -> Bar:
        return self._Bar(label, total, unit, done)

    def end(self, bar: Bar, *, stays: bool = True) -> None:
        pass


SILENT = Silent()


class Lines(Display):
    """Prints how far a run is at most once in `EVERY` seconds, and each score that is measured. For files and pipes.

    Args:
        clock: gives seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.clock = clock
        self.printed = clock()

    class _Bar(Bar):
        def __init__(self, lines: "Lines", label: str, total: int, unit: str, done: int) -> None:
            super().__init__(label, total, unit, done)
            self.lines, self.began = lines, lines.clock()

        def tell(self, score: str) -> None:
            self.lines.say(f"{self.label}: {score}")

        def _show(self) -> None:
            now = self.lines.clock()
            if now - self.lines.printed < EVERY:
                return
            self.lines.printed = now
            counted = f"{self.done:,} of {self.total:,} {self.unit}"
            said = (f"{self.label}: {counted}", readable_seconds(now - self.began), self.note)
            self.lines.say(", ".join(part for part in said if part))

    def say(self, *lines: str) -> None:
        for line in lines:
            print(line, file=sys.stderr, flush=True)

    def begin(self, label: str, total: int, unit: str, *, done: int = 0) -> Bar:
        return self._Bar(self, label, total, unit, done)

    def end(self, bar: Bar, *, stays: bool = True) -> None:
        pass


class Bars(Display):
    """Shows bars on a terminal, from the first one on until `stop`."""

    def __init__(self, console: Console) -> None:
        columns = (TextColumn("{task.description}", markup=False), BarColumn(10), MofNCompleteColumn())
        times = (TimeElapsedColumn(), TimeRemainingColumn(compact=True))
        # What is too wide for the terminal is cut from the note, and from nothing else.
        note = TextColumn(
            "{task.fields[note]}", markup=False, table_column=Column(ratio=1, no_wrap=True, overflow="ellipsis")
        )
        self.progress = Progress(*columns, *times, note, console=console, expand=True)

    class _Bar(Bar):
        def __init__(self, progress: Progress, label: str, total: int, unit: str, done: int) -> None:
            super().__init__(label, total, unit, done)
            self.progress = progress
            self.task: TaskID = progress.add_task(label, total=total, completed=done, note="")

        def tell(self, score: str) -> None:
            pass  # what is beside the bar says it

        def _show(self) -> None:
            self.progress.update(self.task, completed=self.done, note=self.note)

    def say(self, *lines: str) -> None:
        for line in lines:
            self.progress.console.print(line, markup=False, highlight=False, soft_wrap=True)

    def begin(self, label: str, total: int, unit: str, *, done: int = 0) -> Bar:
        self.progress.start()
        return self._Bar(self.progress, label, total, unit, done)

    def end(self, bar: Bar, *, stays: bool = True) -> None:
        assert isinstance(bar, self._Bar)
        self.progress.stop_task(bar.task)
        if not stays:
            self.progress.remove_task(bar.task)

    def stop(self) -> None:
        """Leave the terminal as it was, below the bars."""
        if self.progress.live.is_started:
            self.progress.stop()


@contextmanager
def shown_on_stderr(*, shown: bool) -> Iterator[Display]:
    """Inside, where runs show how far they are; nowhere unless that is wanted. Afterwards a terminal is as it was."""
    if not shown:
        yield SILENT
        return
    console = Console(stderr=True)
    if not console.is_terminal or console.is_dumb_terminal:
        yield Lines()
        return
    bars = Bars(console)
    try:
        yield bars
    finally:
        bars.stop()


def readable_seconds(seconds: float) -> str:
    """Minutes and seconds, with hours where there are some."""
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
