"""A table out of a file: CSV, TSV, JSON, JSON lines or Parquet, read strictly.

Text files are read whole and decoded by us, because a reader that guesses types, pads short lines or drops bad ones
would hide what is wrong with the data.
"""

import csv
import io
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from graftwork.data.table import UTF8, Decoding, Table, read_text
from graftwork.errors import DataError


def read_file(path: Path, wanted: frozenset[str], decoding: Decoding = UTF8) -> Table:
    """The wanted columns of one table, by its extension.

    Args:
        path: the file.
        wanted: names of columns.
        decoding: how its bytes become text. JSON is UTF-8 always, and Parquet is no text.

    Raises:
        DataError: the extension is not known, or the file is missing or malformed.
    """
    if path.suffix.lower() not in READERS:
        raise DataError(
            f"{path} is of an unsupported file type",
            expected="a file ending in " + ", ".join(READERS),
            change="--data",
        )
    return READERS[path.suffix.lower()](path, wanted, decoding)


def read_lines(path: Path, decoding: Decoding = UTF8) -> list[list[str]]:
    """The fields of each line of a file, parted by tabs. Quotes are text: they come unpaired, and begin fields.

    Raises:
        DataError: the file cannot be read.
    """
    # Only "\n" ends a line: str.splitlines would also cut at separators that texts contain.
    lines = read_text(path, decoding).removesuffix("\n").split("\n")
    return [line.removesuffix("\r").split("\t") for line in lines]


def _read_delimited(path: Path, wanted: frozenset[str], decoding: Decoding, *, delimiter: str) -> Table:
    """A CSV or TSV file, quoted by the standard (RFC 4180). An empty field is a missing value."""
    rows: list[list[str]] = []
    numbers: list[int] = []
    with _any_field_length():
        # Strict, because otherwise a stray quote would swallow the following lines in silence.
        reader = csv.reader(io.StringIO(read_text(path, decoding), newline=""), delimiter=delimiter, strict=True)
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
                expected="a field that contains a quote to be quoted, with its quotes doubled",
                change=str(path),
            ) from None
    return from_rows(path, rows[0], rows[1:], numbers[1:], wanted)


@contextmanager
def _any_field_length() -> Iterator[None]:
    # The csv module's limit of 131,072 characters is smaller than a long document, and can only be set globally.
    limit = csv.field_size_limit(2**31 - 1)
    try:
        yield
    finally:
        csv.field_size_limit(limit)


def from_rows(
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


def _read_json(path: Path, wanted: frozenset[str], _: Decoding = UTF8) -> Table:
    """JSON lines, or one JSON array of objects."""
    text = read_text(path)
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


def _read_parquet(path: Path, wanted: frozenset[str], _: Decoding = UTF8) -> Table:
    import pyarrow
    import pyarrow.parquet
    from datasets import Features

    try:
        names = tuple(pyarrow.parquet.read_schema(path).names)
        table = pyarrow.parquet.read_table(path, columns=[name for name in names if name in wanted])
    except (pyarrow.ArrowException, OSError) as error:
        raise DataError(
            f"{path} is not a readable Parquet file: {error}", expected="Parquet", change="--data"
        ) from None
    features = Features.from_arrow_schema(table.schema)
    columns = {name: table.column(name).to_pylist() for name in table.column_names}
    return from_columns(str(path), names, columns, features)


def from_columns(origin: str, names: tuple[str, ...], columns: dict[str, list[Any]], features: Any) -> Table:
    """A table of typed columns; a `ClassLabel` column's ids become names, and its -1, meaning unlabelled, None.

    So do those in a column of lists.
    """
    from datasets import ClassLabel

    declared = {name: getattr(features[name], "feature", features[name]) for name in columns}
    classes = {name: tuple(label.names) for name, label in declared.items() if isinstance(label, ClassLabel)}
    for name, known in classes.items():
        columns[name] = [_class_names(value, known) for value in columns[name]]
    rows = len(next(iter(columns.values()), ()))
    return Table(origin, names, columns, range(1, rows + 1), "row", classes)


def _class_names(value: Any, known: tuple[str, ...]) -> Any:
    if isinstance(value, list):
        return [_class_names(item, known) for item in value]
    return known[value] if value is not None and value >= 0 else None


READERS: dict[str, Callable[[Path, frozenset[str], Decoding], Table]] = {
    ".csv": partial(_read_delimited, delimiter=","),
    ".tsv": partial(_read_delimited, delimiter="\t"),
    ".json": _read_json,
    ".jsonl": _read_json,
    ".parquet": _read_parquet,
}
