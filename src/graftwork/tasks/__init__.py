"""Task definitions, their data, and metrics.

Importing this package imports neither datasets nor torch: they are loaded by the functions that need them.
"""

from graftwork.data.table import SplitName
from graftwork.kinds.metrics import Metric
from graftwork.kinds.scoring import METRICS, compute
from graftwork.tasks.builtin import BUILTIN, find_task
from graftwork.tasks.data import TaskData, load, load_split
from graftwork.tasks.task import Task

__all__ = [
    "BUILTIN",
    "METRICS",
    "Metric",
    "SplitName",
    "Task",
    "TaskData",
    "compute",
    "find_task",
    "load",
    "load_split",
]
