"""A grid of measurements that takes hours: run on several processes, recorded one by one, taken up where it stopped."""

import json
import multiprocessing
import sys
import traceback
from collections.abc import Callable, Hashable, Iterable, Mapping
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Any

Key = tuple[Hashable, ...]
Record = dict[str, Any]

REPORTED = {"stsb": "spearman"}
"""The metric that papers report of a task, where another one chooses the checkpoint."""


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
        return [json.loads(line) for line in self._whole_lines().splitlines()]

    def run(self, wanted: Iterable[Key], measure: Callable[..., Mapping[str, Any]], *, workers: int) -> list[str]:
        """Measure what the records do not hold, and write the page.

        Args:
            wanted: a value of each key for every measurement.
            measure: takes them as arguments and returns the record's other fields. It is run in a process of its own.
            workers: processes beside each other.

        Returns:
            Why measurements failed. The others go on.
        """
        records, failures = self.recorded(), []
        known = {tuple(record[key] for key in self.keys) for record in records}
        if records:
            self.records.write_text(self._whole_lines(), encoding="utf-8")
        with ThreadPoolExecutor(workers) as threads:
            jobs = {threads.submit(_apart, measure, key): key for key in wanted if key not in known}
            for job in as_completed(jobs):
                key = jobs[job]
                try:
                    record = dict(zip(self.keys, key, strict=True)) | dict(job.result())
                except Exception:
                    failures.append(f"{key}: {traceback.format_exc()}")
                    print(failures[-1], file=sys.stderr, flush=True)
                    continue
                records.append(record)
                with self.records.open("a", encoding="utf-8") as file:
                    file.write(json.dumps(record) + "\n")
                print(json.dumps(record), file=sys.stderr, flush=True)
        if records:
            self.page.write_text(self.report(records), encoding="utf-8")
        return failures

    def fill(self, wanted: Iterable[Key], measure: Callable[..., Mapping[str, Any]], *, workers: int) -> None:
        """The same as a command does it: prints the page, and ends with an error where measurements failed."""
        failures = self.run(wanted, measure, workers=workers)
        print(self.report(self.recorded()))
        if failures:
            sys.exit(f"{len(failures)} measurements failed")

    def _whole_lines(self) -> str:
        """The records, less a last line that a killed run left unfinished."""
        text = self.records.read_text(encoding="utf-8") if self.records.exists() else ""
        return text[: text.rfind("\n") + 1]


def _apart(measure: Callable[..., Mapping[str, Any]], key: Key) -> Mapping[str, Any]:
    """Measure in a new process: what it leaves in memory slows no other, and if it is killed, no other is."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as process:
        return process.submit(measure, *key).result()


def markdown(header: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """A table, its first column to the left and the others to the right."""
    header = list(header)
    lines = [header, ["---", *["---:"] * (len(header) - 1)], *map(list, rows)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)
