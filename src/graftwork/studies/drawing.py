"""How figures and tables of studies are written: numbers as CSV, and a figure of them as PNG and SVG."""

import csv
import io
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

MARKERS = "osD^vP*X<>h8p"
"""Of points, so that they can be told apart in grey."""

STYLES = ("-", "--", ":", "-.")
"""Of lines, likewise."""

COLOURS = ("#000000", "#0072b2", "#d55e00", "#009e73", "#999999", "#cc79a7", "#56b4e9", "#e69f00")
"""Those of Okabe and Ito, which differ in lightness, for eyes that see fewer colours."""

Row = Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class Numbers(ABC):
    """Numbers under a name, which are written as CSV.

    Attributes:
        name: of its files, without an end.
        title: what it shows, in a few words.
        note: how to read it, in a sentence or two.
        rows: the numbers; each row has the same keys, in the same order.
    """

    name: str
    title: str
    note: str = ""
    rows: Sequence[Row]

    def csv(self) -> str:
        """The rows as CSV, with full precision; a number that there is not is empty."""
        written = io.StringIO()
        writer = csv.DictWriter(written, fieldnames=list(self.rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows({name: _cell(value) for name, value in row.items()} for row in self.rows)
        return written.getvalue()

    def write_csv(self, folder: Path) -> None:
        """Write the CSV alone."""
        (folder / f"{self.name}.csv").write_text(self.csv(), encoding="utf-8")

    @abstractmethod
    def write(self, folder: Path) -> None:
        """Write all of its files, which are the same bytes for the same rows."""


@final
@dataclass(frozen=True, kw_only=True)
class Table(Numbers):
    """A table.

    Attributes:
        shown: the rows as people read them, where that is something else.
    """

    shown: Sequence[Mapping[str, str]] = ()

    def write(self, folder: Path) -> None:
        self.write_csv(folder)


@final
@dataclass(frozen=True, kw_only=True)
class Figure(Numbers):
    """A figure, written as PNG and SVG beside its numbers.

    Attributes:
        draw: makes matplotlib's figure of the rows.
    """

    draw: Callable[[], Any]

    def write(self, folder: Path) -> None:
        import matplotlib

        self.write_csv(folder)
        with matplotlib.rc_context({"svg.hashsalt": "graftwork", "font.size": 9}):
            drawn = self.draw()
            drawn.savefig(folder / f"{self.name}.png", dpi=150)
            drawn.savefig(folder / f"{self.name}.svg", metadata={"Date": None})


def _cell(value: Any) -> Any:
    if value is None or value != value:
        return ""
    return str(value).lower() if isinstance(value, bool) else value
