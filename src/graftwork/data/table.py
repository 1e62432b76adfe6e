"""What the readers share: a split as it was read, what splits are called, and the text of a file."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
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
        dropped: reason -> the numbers of the rows that were left out for it.
    """

    origin: str
    names: tuple[str, ...]
    columns: Mapping[str, Sequence[Any]]
    numbers: Sequence[int | str]
    unit: str = "row"
    classes: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    dropped: Mapping[str, Sequence[int | str]] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.numbers)

    def select(self, rows: Iterable[int]) -> "Table":
        """The table of those rows, by position from 0."""
        rows = list(rows)
        columns = {name: [values[row] for row in rows] for name, values in self.columns.items()}
        numbers = [self.numbers[row] for row in rows]
        return replace(self, columns=columns, numbers=numbers)

    def without(self, reasons: Mapping[int, str]) -> "Table":
        """The table less some rows.

        Args:
            reasons: by position of a row, why it is left out.
        """
        dropped = {reason: list(numbers) for reason, numbers in self.dropped.items()}
        for row in sorted(reasons):
            dropped.setdefault(reasons[row], []).append(self.numbers[row])
        kept = self.select(row for row in range(len(self)) if row not in reasons)
        return replace(kept, dropped=dropped)

    def places(self, rows: Sequence[int], shown: int = 5) -> str:
        """The rows' numbers as a phrase: `lines 2, 9 and 17 more`."""
        numbers = ", ".join(str(self.numbers[row]) for row in rows[:shown])
        more = f" and {len(rows) - shown} more" if len(rows) > shown else ""
        return f"{self.unit}{'s' if len(rows) > 1 else ''} {numbers}{more}"


Splits = dict[SplitName, Callable[[], Table]]


@dataclass(frozen=True)
class Decoding:
    """How the bytes of a text file become text.

    Attributes:
        encodings: Python's names of encodings. The first in which every byte can be read is taken.
        replace: whether, where there is none, bytes that the first cannot read become U+FFFD; otherwise it is an error.
    """

    encodings: tuple[str, ...] = ("utf-8",)
    replace: bool = False


UTF8 = Decoding()
"""UTF-8 in every byte."""


def decode(content: bytes, origin: str, decoding: Decoding = UTF8) -> str:
    """Text from bytes, without the byte-order mark it may begin with.

    Raises:
        DataError: they cannot be read so; says at which byte.
    """
    first: UnicodeDecodeError | None = None
    for encoding in decoding.encodings:
        try:
            return content.decode(encoding).removeprefix("\ufeff")
        except UnicodeDecodeError as error:
            first = first or error
    assert first is not None
    if decoding.replace:
        return content.decode(decoding.encodings[0], "replace").removeprefix("\ufeff")
    names = " or ".join("UTF-8" if name == "utf-8" else name for name in decoding.encodings)
    raise DataError(
        f"{origin} is not {names}: byte {first.object[first.start]:#04x} at offset {first.start}",
        expected=f"{names}, with or without a byte-order mark",
        change=f"save {origin} as UTF-8, or name its encoding in the task's cleaning.encodings",
    ) from None


def read_text(path: Path, decoding: Decoding = UTF8) -> str:
    """The text of a file.

    Raises:
        DataError: the file is missing, unreadable or empty, or its bytes cannot be read.
    """
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        raise DataError(f"{path} is missing", expected="an existing file", change="--data") from None
    except OSError as error:
        raise DataError(
            f"{path} cannot be read: {error.strerror}", expected="a readable file", change="--data"
        ) from None
    text = decode(content, str(path), decoding)
    if not text.strip():
        raise DataError(f"{path} is empty", expected="a header and rows", change="--data")
    return text
