"""Studies: methods compared over tasks and seeds, their tables and figures, and what is handed in of them."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from graftwork.studies.comparing import Comparison, compare
    from graftwork.studies.outputs import read_results
    from graftwork.studies.pairing import Pair, compare_pair
    from graftwork.studies.results import Result
    from graftwork.studies.statistics import Difference, Summary, by_rows, by_seeds, mcnemar, summarise
    from graftwork.studies.study import Study

_HOMES = {
    "Comparison": "comparing",
    "Difference": "statistics",
    "Pair": "pairing",
    "Result": "results",
    "Study": "study",
    "Summary": "statistics",
    "by_rows": "statistics",
    "by_seeds": "statistics",
    "compare": "comparing",
    "compare_pair": "pairing",
    "mcnemar": "statistics",
    "read_results": "outputs",
    "summarise": "statistics",
}
"""Loaded when they are first used: what reads a study needs none of what runs one."""

__all__ = [
    "Comparison",
    "Difference",
    "Pair",
    "Result",
    "Study",
    "Summary",
    "by_rows",
    "by_seeds",
    "compare",
    "compare_pair",
    "mcnemar",
    "read_results",
    "summarise",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'graftwork.studies' has no attribute {name!r}")
    return getattr(import_module(f"graftwork.studies.{_HOMES[name]}"), name)
