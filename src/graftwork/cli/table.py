"""Tables on the terminal."""

import sys
from collections.abc import Mapping, Sequence
from shutil import get_terminal_size


def print_table(rows: Sequence[Mapping[str, str]]) -> None:
    """Rows under the keys of the first, in columns at least two spaces apart.

    One row that is too wide for a terminal is printed as names and values.
    """
    widths = [max(len(name), *(len(row[name]) for row in rows)) for name in rows[0]]
    if len(rows) == 1 and sys.stdout.isatty() and sum(widths) + 2 * len(widths) > get_terminal_size().columns:
        print_pairs(rows[0])
        return
    for line in [list(rows[0]), *(list(row.values()) for row in rows)]:
        print("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())


def print_pairs(pairs: Mapping[str, object]) -> None:
    """Names and values, one a line."""
    width = max(map(len, pairs))
    for name, value in pairs.items():
        print(f"{name:<{width}}  {value}")


def readable_bytes(count: int) -> str:
    """1500 -> 1.5 KB."""
    size = float(count)
    for unit in ("B", "KB", "MB", "GB"):
        if size < 1000 or unit == "GB":
            break
        size /= 1000
    return f"{count} B" if unit == "B" else f"{size:.1f} {unit}"
