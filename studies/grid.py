"""A grid of measurements that takes hours: run on several processes, recorded one by one, taken up where it stopped."""

import json
import multiprocessing
import sys
import traceback
from collections.abc import Callable, Hashable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

Key = tuple[Hashable, ...]
Record = dict[str, Any]


@dataclass(frozen=True)
class Grid:
    """What is measured, and where it is kept.

    Attributes:
        records: a file of JSON lines, one a measurement.
        keys: the fields of a record that say which measurement it is.
        page: the file that shows the records to readers.
        report: writes it from them.
    """

    records: Path
    keys: tuple[str, ...]
    page: Path
    report: Callable[[list[Record]], str]

    def recorded(self) -> list[Record]:
        """What earlier runs measured."""
        if not self.records.exists():
            return []
        return [json.loads(line) for line in self.records.read_text(encoding="utf-8").splitlines()]

    def run(self, wanted: Iterable[Key], measure: Callable[..., Mapping[str, Any]], *, workers: int) -> list[str]:
        """Measure what the records do not hold.

        Args:
            wanted: a value of each key for every measurement.
            measure: takes them as arguments and returns the record's other fields. It is run in a process of its own.
            workers: processes beside each other.

        Returns:
            Why measurements failed. The others go on.
        """
        records, failures = self.recorded(), []
        known = {tuple(record[key] for key in self.keys) for record in records}
        jobs = [key for key in wanted if key not in known]
        # A new process for each: what one leaves in memory does not slow the next.
        with multiprocessing.get_context("spawn").Pool(workers, maxtasksperchild=1) as pool:
            for key, found in pool.imap_unordered(partial(_measured, measure), jobs):
                if isinstance(found, str):
                    failures.append(f"{key}: {found}")
                    print(failures[-1], file=sys.stderr, flush=True)
                    continue
                record = dict(zip(self.keys, key, strict=True)) | found
                records.append(record)
                with self.records.open("a", encoding="utf-8") as file:
                    file.write(json.dumps(record) + "\n")
                self.page.write_text(self.report(records), encoding="utf-8")
                print(json.dumps(record), file=sys.stderr, flush=True)
        return failures


def _measured(measure: Callable[..., Mapping[str, Any]], key: Key) -> tuple[Key, Record | str]:
    try:
        return key, dict(measure(*key))
    except Exception:
        return key, traceback.format_exc()


def markdown(header: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """A table, its first column to the left and the others to the right."""
    header = list(header)
    lines = [header, ["---", *["---:"] * (len(header) - 1)], *map(list, rows)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)
