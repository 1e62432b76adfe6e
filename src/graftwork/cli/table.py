"""Tables on the terminal."""

import sys
from collections.abc import Mapping, Sequence


def print_table(rows: Sequence[Mapping[str, str]]) -> None:
    """Rows under the keys of the first; drawn with lines on a terminal, separated by tabs elsewhere."""
    if not sys.stdout.isatty():
        print("\t".join(rows[0]))
        for row in rows:
            print("\t".join(row.values()))
        return
    from rich.console import Console
    from rich.table import Table

    table = Table(*rows[0])
    for row in rows:
        table.add_row(*row.values())
    Console().print(table)


def print_pairs(pairs: Mapping[str, object]) -> None:
    """Names and values, one a line."""
    width = max(map(len, pairs))
    for name, value in pairs.items():
        print(f"{name:<{width}}  {value}")


def readable_bytes(count: int) -> str:
    """1536 -> 1.5 KB (steps of 1024)."""
    size = float(count)
    for unit in ("B", "KB", "MB", "GB"):
        if size < 1024 or unit == "GB":
            break
        size /= 1024
    return f"{count} B" if unit == "B" else f"{size:.1f} {unit}"
