"""Groups of tasks, for studies of what comes of several adapters: 16 domains of reviews, tables of crowdflower.com,
GLUE, and some of the last two."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from studies import domains
from studies.labelled import TASKS, Labelled, known

GROUPS: dict[str, tuple[str, ...]] = {
    "domains": (),
    "crowdflower": ("airline", "corporate", "disasters", "warming", "political", "emotions"),
    "glue": ("cola", "mrpc", "rte", "sst2", "stsb"),
    "merging": ("cola", "mrpc", "rte", "stsb", "airline", "disasters", "political"),
}
"""By group, its tasks among `LABELLED`; those of the reviews are their domains."""

LABELLED = {**TASKS, "sst2": Labelled("sentiment, 2 classes", known("sst2", "glue"))}

ROWS: dict[str, Mapping[str, int]] = {
    "domains": domains.ROWS,
    "crowdflower": domains.ROWS,
    "glue": {"train": 2000, "validation": 400, "test": 800},
    "merging": {"train": 1000, "validation": 200, "test": 800},
}
"""Rows of each task at most."""


def tasks_of(group: str, data: Path, work: Path) -> dict[str, Any]:
    """The tasks of a group by name; their rows are written where they are not.

    Args:
        data: the folder of all data.
        work: a folder for the rows.
    """
    if group == "domains":
        domains.write(data, work / "data")
        return {name: domains.task(work / "data", name) for name in domains.names()}
    found = {}
    for name in GROUPS[group]:
        folder = work / group / "data" / name
        if not folder.exists():
            temporary = folder.with_name(f".{name}")
            temporary.mkdir(parents=True, exist_ok=True)
            LABELLED[name].write(data, temporary, most=ROWS[group])
            temporary.rename(folder)
        found[name] = LABELLED[name].task(name, str(folder))
    return found


def kept(group: str, work: Path) -> Path:
    """Where the own adapters of a group's tasks are kept."""
    return work if group == "domains" else work / group
