"""Texts in files of their own: a folder with one folder per class, in each a file per text, as 20 Newsgroups has."""

from functools import partial
from pathlib import Path
from typing import Any

from graftwork.data.table import SPLIT_NAMES, Splits, Table, decode
from graftwork.errors import DataError
from graftwork.tasks.task import Task


def document_splits(folder: Path, task: Task) -> Splits:
    """The splits in a folder of one folder per split, each with one folder per class; without splits, training rows.

    Raises:
        DataError: a folder that the task names is not there.
    """
    splits: Splits = {}
    for split, usual in SPLIT_NAMES.items():
        names = [task.splits[split]] if split in task.splits else usual
        found = next((folder / name for name in names if (folder / name).is_dir()), None)
        if found is None and split in task.splits:
            raise DataError(
                f"there is no folder {folder / task.splits[split]}",
                expected="a folder for each split that is named",
                change=f"--data, or the task's splits.{split}",
            )
        if found is not None:
            splits[split] = partial(_read_classes, found, task)
    return splits or {"train": partial(_read_classes, folder, task)}


def _read_classes(folder: Path, task: Task) -> Table:
    files = sorted(file for file in folder.glob("*/*") if file.is_file() and not file.name.startswith("."))
    if not files:
        raise DataError(
            f"{folder} has no files in folders of classes",
            expected="one folder per class, in each a file per text",
            change="--data",
        )
    columns: dict[str, list[Any]] = {str(task.text): [], task.label: []}
    for file in files:
        try:
            content = file.read_bytes()
        except OSError as error:
            raise DataError(f"{file} cannot be read: {error.strerror}", change="--data") from None
        columns[str(task.text)].append(decode(content, str(file), task.decoding) or None)
        columns[task.label].append(file.parent.name)
    names = [str(file.relative_to(folder)) for file in files]
    return Table(str(folder), tuple(columns), columns, names, "file")
