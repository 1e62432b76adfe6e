"""What a run says first, on standard error: the backbone as it is run, and what it is run on."""

import sys
from collections.abc import Mapping

from graftwork.backbones import Backbone
from graftwork.backbones.pooling import Pooling, PoolingSource, describe_pooling
from graftwork.kinds import KINDS
from graftwork.tasks import Task


def announce(*lines: str) -> None:
    """Print them at once, where a progress bar follows."""
    for line in lines:
        print(line, file=sys.stderr, flush=True)


def of_backbone(backbone: Backbone) -> str:
    """Its name, layout, size, device and precision."""
    size = f"{backbone.num_parameters / 1e6:.1f}M"
    precision = str(backbone.dtype).removeprefix("torch.")
    return f"backbone {backbone.name} ({backbone.family.name}, {size}) on {backbone.device}, {precision}"


def of_task(task: Task, rows: Mapping[str, int]) -> str:
    """Its name and kind, the rows of each split, and its classes.

    Args:
        rows: by split.
    """
    counts = ", ".join(f"{count:,} {split}" for split, count in rows.items())
    classes = "" if task.labels is None or not KINDS[task.kind].named else f", {len(task.labels)} classes"
    pairs = " of pairs" if task.text_pair is not None else ""
    return f"task {task.name} ({task.kind}{pairs}; {counts} rows{classes})"


def of_pooling(pooling: Pooling | None, source: PoolingSource | None) -> str:
    """How inputs are pooled, and who chose it; empty where nothing is."""
    return "" if pooling is None else f"pooling {describe_pooling(pooling, source)}"


def joined(*parts: str) -> str:
    """Parts as one line, less those that are empty."""
    return "; ".join(part for part in parts if part)
