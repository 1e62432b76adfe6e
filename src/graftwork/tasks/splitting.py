"""Rows that are held out of the training rows, where data have no split of their own.

The choice is seeded, and the same for the same task each time: an adapter is evaluated later on the very rows that its
training left out.
"""

import logging
from collections import Counter
from collections.abc import Hashable, Mapping, Sequence

from graftwork.data.table import SplitName, Table
from graftwork.errors import DataError
from graftwork.kinds import KINDS
from graftwork.tasks.columns import label_names
from graftwork.tasks.task import Task

logger = logging.getLogger(__name__)


def hold_out(task: Task, train: Table, fractions: Mapping[SplitName, float]) -> dict[SplitName, Table]:
    """The training table less the held-out rows, and these.

    What is chosen are units: the rows of one input, which must not be parted, or what was trained on would be tested.
    The choice is by systematic sampling: units in random order within their class, the larger ones last, classes one
    after the other, and every k-th of that list is taken. So each class is held out in proportion, whatever its size,
    and so are inputs that come once and those that come often; units without a class are all of one. The first unit of
    each class or with each tag is never taken: what is held out must have been seen in training. Nor is a unit of more
    rows than are to be held out, unless all are.

    Args:
        fractions: the share of the rows for each split; of generation, of the sources.

    Raises:
        DataError: there are too few units.
    """
    if not fractions:
        return {"train": train}
    import numpy as np

    kind = KINDS[task.kind]
    units, texts = _units(task, train), label_names(task, train)
    # A row of validation is a source, with all that may be said of it.
    sizes = [1 if kind.unit == "source" else len(rows) for rows in units]
    named = [Counter(name for row in rows for name in texts[row]) for rows in units]
    # RandomState's streams are frozen, those of numpy's newer generators are not: the split must outlast an upgrade.
    random = np.random.RandomState(task.split_seed)
    remaining = np.arange(len(units))
    tables: dict[SplitName, Table] = {}
    for split, fraction in fractions.items():
        order = remaining[random.permutation(len(remaining))]
        groups: dict[str, list[int]] = {}
        seen: set[str] = set()
        for unit in order.tolist():
            names = named[unit].keys() or {""}
            if names <= seen:
                groups.setdefault(_commonest(named[unit]) if kind.stratified else "", []).append(unit)
            seen |= names
        wanted = max(1, round(fraction * sum(sizes)))
        taken = _taken([sorted(group, key=sizes.__getitem__) for _, group in sorted(groups.items())], sizes, wanted)
        if not taken:
            raise _too_few(task, train, split, wanted, len(units))
        rows = sorted(row for unit in taken for row in units[unit])
        tables[split] = train.select(rows)
        what, held = f"{kind.unit}s", sum(sizes[unit] for unit in taken)
        logger.info("%s: held out %d of %d %s for %s", train.origin, held, sum(sizes), what, split)
        remaining = np.setdiff1d(remaining, taken)
    return {"train": train.select(sorted(row for unit in remaining.tolist() for row in units[unit])), **tables}


def limit(task: Task, table: Table, split: SplitName) -> Table:
    """A split with no more rows than the task's `max_rows` allows: the others are held out of it, and left.

    Raises:
        DataError: so few would have no row of some class.
    """
    most = (task.max_rows or {}).get(split)
    if most is None:
        return table
    try:
        # More than once where equal inputs stay together: the larger ones may be left for later.
        while (there := _count(task, table)) > most:
            table = hold_out(task, table, {"test": (there - most) / there})["train"]
    except DataError:
        raise DataError(
            f"{most} rows of {table.origin} are too few: not each class would have one",
            expected="a larger number",
            change=f"max_rows.{split}",
        ) from None
    return table


def _count(task: Task, table: Table) -> int:
    """Rows; of generation, sources."""
    return len(_units(task, table)) if KINDS[task.kind].unit == "source" else len(table)


def _commonest(names: Counter[str]) -> str:
    """The name that most rows of a unit have; of several the first in the alphabet, and empty of none."""
    return min(names, key=lambda name: (-names[name], name), default="")


def _taken(groups: Sequence[Sequence[int]], sizes: Sequence[int], wanted: int) -> list[int]:
    """Every k-th of the units of all groups, so that about as many rows are taken as are wanted; none where there are
    not enough.
    """
    spare = [unit for group in groups for unit in group]
    if sum(sizes[unit] for unit in spare) < wanted:
        return []
    limit = max(wanted, min(sizes[unit] for unit in spare))
    fitting = [unit for unit in spare if sizes[unit] <= limit]
    share = wanted / sum(sizes[unit] for unit in fitting)
    count = min(len(fitting), max(1, round(share * len(fitting))))
    return [fitting[(2 * i + 1) * len(fitting) // (2 * count)] for i in range(count)]


def _too_few(task: Task, train: Table, split: SplitName, wanted: int, units: int) -> DataError:
    different = f" with {units} different input{'s' if units > 1 else ''}" if units < len(train) else ""
    sources = KINDS[task.kind].unit == "source"
    what = f"{units} sources" if sources else f"{len(train)} rows{different}"
    more = "sources" if sources else f"{'different ' if different else ''}rows"
    return DataError(
        f"{train.origin} has {what}, too few to hold {wanted} out for {split}",
        expected=f"more {more}, and in training at least one of each class",
        change=f"{split}_fraction, or give a separate {split} split",
    )


def _units(task: Task, train: Table) -> list[list[int]]:
    """The rows that must not be parted: those of one input, that is, of one text, pair of texts, list of words, image,
    or question with its choices.
    """
    units: dict[Hashable, list[int]] = {}
    columns = [train.columns[column] for columns in task.inputs.values() for column in columns]
    for row, given in enumerate(KINDS[task.kind].input_keys(columns)):
        units.setdefault(given, []).append(row)
    return list(units.values())
