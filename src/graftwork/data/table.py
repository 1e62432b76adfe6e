"""What the readers share: a split as it was read, what splits are called, and the text of a file."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from graftwork.errors import DataError

SplitName = Literal["train", "validation", "test"]
"""The name of a split."""

# What data sets in the wild call the three splits.
SPLIT_NAMES: dict[SplitName, tuple[str, ...]] = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "val", "dev"),
    "test": ("test",),
}


@dataclass(frozen=True)
class Table:
    """The columns of one split that a task reads, and where the rows came from.

    Attributes:
        origin: the file, or the dataset and its split.
        names: every column there is, read or not.
        columns: column -> one value per row, of those columns asked for that there are. A missing value is None.
        numbers: each row's number in the origin, from 1; or its name there, where rows are files.
        unit: what the numbers count, or the names name.
        classes: column -> class names in the order of their ids, where the origin declares them; values are then names.
    """

    origin: str
    names: tuple[str, ...]
    columns: Mapping[str, Sequence[Any]]
    numbers: Sequence[int | str]
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


def read_text(path: Path) -> str:
    """The text of a file.

    Raises:
        DataError: the file is missing, unreadable, empty or not UTF-8.
    """
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
