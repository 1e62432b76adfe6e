"""What a merge gives."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from graftwork.arithmetic.merging.method import ChosenMethod
from graftwork.arithmetic.merging.plan import Plan

if TYPE_CHECKING:
    from graftwork.arithmetic.adapters.merging import MergedAdapters

Scores = Mapping[str, float]


@dataclass(frozen=True)
class MergeResult:
    """What `merge` gives.

    Attributes:
        output: the folder.
        method: the method, with the setting that was chosen if there was a sweep.
        scores: of the result, the base and each operand, by name, where tasks were given; the result comes first.
        swept: the scores for each value of the setting that was swept.
        plan: of whole models, what was done with each tensor.
        merged: of adapters, what became of them.
        said: what was chosen or learned on the way, for people.
        details: the same, for programs.
    """

    output: Path
    method: ChosenMethod
    scores: Mapping[str, Scores] = field(default_factory=dict)
    swept: Sequence[tuple[Any, Scores]] = ()
    plan: Plan | None = None
    merged: "MergedAdapters | None" = None
    said: tuple[str, ...] = ()
    details: Mapping[str, Any] = field(default_factory=dict)
