"""A run on disk: its folder, what is in it, and how it is read. Folders are the truth; all else is made of them.

| file | what |
|---|---|
| `recipe.yaml` | the resolved recipe |
| `metrics.jsonl` | one line an evaluation: step, epoch, split, scores |
| `predictions.jsonl` | one line a row of the test split: row, label, prediction |
| `adapter/` | the adapter |
| `environment.json` | versions, git state, machine |
| `result.json` | state, scores, sizes, time and peak memory; or the error |
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from graftwork.errors import DataError, OutputError
from graftwork.folders import replacing_folder
from graftwork.settings.yamlfile import RECIPE, dump_yaml
from graftwork.studies.results import ADAPTER, Result

RUNS, RESULT, ENVIRONMENT = "runs", "result.json", "environment.json"

DONE, FAILED = "done", "failed"


@dataclass(frozen=True, kw_only=True)
class Record:
    """What a run's `result.json` says.

    Attributes:
        hash: the run's name.
        state: `done` or `failed`.
        task, method, setting, tried, seed: what it is, in the words of the study that ran it first.
        learning_rate: the peak rate.
        main_metric: what chooses and is reported.
        scores: by split, then by metric.
        rows: number of rows of each split that was scored.
        trained_parameters, head_parameters, backbone_parameters: counts.
        nbytes: of the adapter's tensors on disk.
        seconds: time of the run, all its parts if it was resumed.
        peak_memory: largest memory of the process, or of the GPU, in bytes; None where it cannot be measured, or where
            runs shared passes.
        shared: number of runs that shared passes, this one included; `seconds` is then its part of their time.
        began, ended: as ISO 8601 has it.
        error: of a failed run: `kind`, `message` and `traceback`.
        earlier_errors: those of failed runs that were tried again.
    """

    hash: str
    state: str
    task: str
    method: str
    setting: str
    tried: Mapping[str, Any]
    seed: int
    learning_rate: float
    main_metric: str
    scores: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    rows: Mapping[str, int] = field(default_factory=dict)
    trained_parameters: int = 0
    head_parameters: int = 0
    backbone_parameters: int = 0
    nbytes: int = 0
    seconds: float = 0.0
    peak_memory: int | None = None
    shared: int = 1
    began: str = ""
    ended: str = ""
    error: Mapping[str, str] | None = None
    earlier_errors: Sequence[Mapping[str, str]] = ()

    @property
    def validation(self) -> float:
        """The score that chooses."""
        return self.scores["validation"][self.main_metric]

    def as_json(self) -> str:
        """The file."""
        return json.dumps({name: getattr(self, name) for name in self.__dataclass_fields__}, indent=1) + "\n"

    def named(self, task: str, method: str, setting: str) -> "Record":
        """The same run in the words of another study."""
        return replace(self, task=task, method=method, setting=setting)

    def result(self, folder: Path) -> Result:
        """The run as tables and figures read it.

        Args:
            folder: the run's.
        """
        return Result(
            task=self.task,
            method=self.method,
            setting=self.setting,
            learning_rate=self.learning_rate,
            seed=self.seed,
            main_metric=self.main_metric,
            validation=self.scores["validation"],
            test=self.scores.get("test", {}),
            trained_parameters=self.trained_parameters,
            head_parameters=self.head_parameters,
            backbone_parameters=self.backbone_parameters,
            nbytes=self.nbytes,
            seconds=self.seconds,
            peak_memory=self.peak_memory,
            folder=folder,
        )


def read_record(folder: Path) -> Record:
    """What a run's folder says of it.

    Raises:
        DataError: the folder is damaged.
    """
    file = folder / RESULT
    try:
        return Record(**json.loads(file.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError) as error:
        raise damaged(folder, error) from None


def damaged(folder: Path, error: Exception) -> DataError:
    """What is to be said of a run's folder whose result cannot be read."""
    what = error.strerror if isinstance(error, OSError) else error
    return DataError(
        f"{folder / RESULT} cannot be read: {what}",
        expected="a run's result as graftwork wrote it",
        change=f"remove the folder {str(folder)!r}: the run is then done again",
    )


def run_folders(study: Path) -> list[Path]:
    """The folders of the runs that have ended, by name. Hidden ones are of runs that go on."""
    runs = study / RUNS
    if not runs.is_dir():
        return []
    return sorted(path for path in runs.iterdir() if path.is_dir() and not path.name.startswith("."))


class Store:
    """The runs of a study's folder, each read once.

    Args:
        folder: the study's.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._known: dict[str, Record] = {}

    def place(self, name: str) -> Path:
        """The folder of a run that has ended."""
        return self.folder / RUNS / name

    def working(self, name: str) -> Path:
        """The folder in which a run works."""
        return self.folder / RUNS / f".{name}.running"

    def find(self, name: str) -> Record | None:
        """A run that has ended; None where it has not."""
        if name not in self._known and (self.place(name) / RESULT).is_file():
            self._known[name] = read_record(self.place(name))
        return self._known.get(name)

    def put(self, record: Record, files: Mapping[str, str], recipe: Mapping[str, Any], adapter: Path | None) -> Record:
        """Write a run that has ended, all of it or nothing; where another process has written it by now, its own stays.

        Args:
            files: its text files by name.
            recipe: resolved.
            adapter: the folder of its adapter, which is copied; None for one that failed.

        Returns:
            What is there now.

        Raises:
            OutputError: it cannot be written.
        """
        place = self.place(record.hash)
        try:
            with replacing_folder(place) as new:
                (new / RECIPE).write_text(dump_yaml(recipe), encoding="utf-8")
                for name, text in files.items():
                    (new / name).write_text(text, encoding="utf-8")
                if adapter is not None:
                    _link(adapter, new / ADAPTER)
                (new / RESULT).write_text(record.as_json(), encoding="utf-8")
        except OutputError:
            # A process that was silent for so long that it was taken for dead may end the run after all.
            if not (place / RESULT).is_file():
                raise
            record = read_record(place)
        self._known[record.hash] = record
        return record

    def forget(self, name: str) -> None:
        """Read a run anew when it is asked for again."""
        self._known.pop(name, None)


def _link(folder: Path, target: Path) -> None:
    """Copy a folder, by links where the file system has them."""
    import os
    import shutil

    def link(source: str, copy: str) -> None:
        try:
            os.link(source, copy)
        except OSError:
            shutil.copy2(source, copy)

    shutil.copytree(folder, target, copy_function=link)
