"""Reports: folders of tables and figures, which are written whole; and what errors of writing name."""

import csv
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from graftwork.errors import OutputError


@contextmanager
def naming(what: str) -> Iterator[None]:
    """Inside, an error of a folder that is in use or cannot be written names this to be changed, and not --output."""
    try:
        yield
    except OutputError as error:
        change = error.change.replace("--output", what)
        raise type(error)(error.problem, expected=error.expected, change=change) from error


def write_csv(file: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Rows of one kind as a table with a header."""
    with file.open("w", newline="", encoding="utf-8") as opened:
        writer = csv.DictWriter(opened, fieldnames=list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def refuse_other_contents(folder: Path, names: Collection[str], *, overwrite: bool, flag: str = "--output") -> None:
    """Refuse an output folder before any work is done: one that exists, unless it is to be replaced and holds nothing
    but such files.

    Args:
        flag: by which it is named.

    Raises:
        OutputError: it cannot be written to.
    """
    if not folder.exists():
        return
    if not overwrite or not folder.is_dir():
        raise OutputError(
            f"{flag.removeprefix('--')} {str(folder)!r} exists already",
            expected="a folder that does not exist",
            change=flag + (", or --overwrite to replace it" if folder.is_dir() else ""),
        )
    others = sorted(path.name for path in folder.iterdir() if path.name not in names)
    if others:
        raise OutputError(
            f"{str(folder)!r} holds {others[0]}, so it is not overwritten",
            expected=f"a folder with {', '.join(sorted(names))} alone, or a new one",
            change=flag,
        )
