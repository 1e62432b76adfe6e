"""Every error that graftwork raises on purpose: one base class, one small class for each thing that can be wrong.

An error says what was given, what was expected, and what to change. The command line prints the three parts and exits
with status 2; anything that is not a `GraftworkError` is a bug in graftwork and keeps its traceback.
"""

from collections.abc import Iterable, Mapping
from difflib import get_close_matches
from typing import Any


class GraftworkError(Exception):
    """An error that the user can correct.

    Args:
        problem: what was given and why it cannot be used, in one sentence without a full stop.
        expected: what is accepted.
        change: the flag, column, file or key to change.
    """

    def __init__(self, problem: str, *, expected: str = "", change: str = "") -> None:
        self.problem = problem
        self.expected = expected
        self.change = change
        lines = [problem]
        if expected:
            lines.append(f"expected: {expected}")
        if change:
            lines.append(f"change: {change}")
        super().__init__("\n  ".join(lines))


class BackboneError(GraftworkError):
    """A backbone that cannot be found, read, or mapped to a family."""


class SiteError(GraftworkError):
    """A site or site pattern that the backbone does not have, or where an op cannot act."""


class MethodError(GraftworkError):
    """An unknown method, or settings that a method does not take."""


class AdapterError(GraftworkError):
    """An adapter folder that is missing, damaged, foreign, or made for another backbone."""


class DataError(GraftworkError):
    """Data that is missing or malformed: files, columns, labels, splits."""


class RecipeError(GraftworkError):
    """A recipe or flag that is unknown, contradictory or of the wrong type."""


class DivergedError(RecipeError):
    """Training that reaches NaN or infinity, or predictions that are not finite."""

    @classmethod
    def of(cls, problem: str) -> "DivergedError":
        """An error with general advice."""
        return cls(
            f"{problem}: training has diverged",
            expected="finite numbers",
            change="--train.learning_rate (lower), --train.warmup_ratio (longer), or --dtype float32",
        )


class OutputError(GraftworkError):
    """An output folder that exists already, or an interrupted run that is in the way."""


class InProgressError(OutputError):
    """An output that another run, in this process or another one, is working on."""


class WeightsError(GraftworkError):
    """Weights that are missing, damaged, or do not fit others: names, shapes, heads, vocabularies, types of numbers."""


class TuneManyError(GraftworkError):
    """Some runs of `tune_many` failed.

    Args:
        problem: the runs that failed, and why.
        change: what to change.
        finished: the adapters of the other runs, by name.
    """

    def __init__(self, problem: str, *, change: str, finished: Mapping[str, Any]) -> None:
        super().__init__(problem, change=change)
        self.finished = finished


class FailedRunsError(GraftworkError):
    """Some runs of a study failed.

    Args:
        problem: the runs that failed, and why.
        change: what to change.
        finished: what came of the others: a `graftwork.studies.Comparison`.
    """

    def __init__(self, problem: str, *, change: str, finished: Any) -> None:
        super().__init__(problem, change=change)
        self.finished = finished


class InterruptedRunError(KeyboardInterrupt):
    """A run with an output was interrupted, from the keyboard or by SIGTERM.

    Args:
        problem: what was interrupted, and what is kept.
        resumable: whether the run can be continued with `resume`.
    """

    def __init__(self, problem: str, *, resumable: bool) -> None:
        self.problem = problem
        self.resumable = resumable
        super().__init__(problem + ("; resume goes on with it" if resumable else ""))


def nearest(name: str, known: Iterable[str], count: int = 3) -> str:
    """The known names most like `name`, as a phrase for an error's `expected`; all of them when few are known."""
    known = sorted(set(known))
    if len(known) <= 2 * count:
        return "one of " + ", ".join(known) if known else "nothing: there are none"
    close = get_close_matches(name, known, n=count, cutoff=0.0)
    return "for example " + ", ".join(close) + f" (of {len(known)})"


def first_line(error: BaseException) -> str:
    """What another library says of an error, without what follows it; its kind where it says nothing."""
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
