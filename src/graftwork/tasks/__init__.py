"""Task definitions, their data, and metrics.

Importing this package imports neither datasets nor torch: they are loaded by the functions that need them.
"""

from graftwork.data.table import SplitName
from graftwork.kinds.metrics import Metric
from graftwork.kinds.scoring import METRICS, compute
from graftwork.tasks.builtin import BUILTIN, find_task
from graftwork.tasks.cleaning import Cleaning
from graftwork.tasks.data import TaskData, load, load_split
from graftwork.tasks.known import KnownTask, known_task, known_tasks
from graftwork.tasks.summary import Lengths, SplitSummary, TaskSummary, summarize
from graftwork.tasks.task import Task

__all__ = [
    "BUILTIN",
    "METRICS",
    "Cleaning",
    "KnownTask",
    "Lengths",
    "Metric",
    "SplitName",
    "SplitSummary",
    "Task",
    "TaskData",
    "TaskSummary",
    "compute",
    "find_task",
    "known_task",
    "known_tasks",
    "load",
    "load_split",
    "summarize",
]
