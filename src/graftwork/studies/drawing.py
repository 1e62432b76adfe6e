"""How figures and tables of studies are written: numbers as CSV, and a figure of them as PNG and SVG."""

import csv
import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

MARKERS = "osD^vP*X<>h8p"
"""Of points, so that they can be told apart in grey."""

STYLES = ("-", "--", ":", "-.")
"""Of lines, likewise."""

COLOURS = ("#000000", "#0072b2", "#d55e00", "#009e73", "#999999", "#cc79a7", "#56b4e9", "#e69f00")
"""Those of Okabe and Ito, which differ in lightness, for eyes that see fewer colours."""

Row = Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class Table:
    """Numbers under a name.

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

    @property
    def files(self) -> tuple[str, ...]:
        """The names of its files."""
        return (f"{self.name}.csv",)

    def csv(self) -> str:
        """The rows as CSV, with full precision; a number that there is not is empty."""
        written = io.StringIO()
        writer = csv.DictWriter(written, fieldnames=list(self.rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(self.rows)
        return written.getvalue()

    def write(self, folder: Path) -> None:
        """Write its files."""
        (folder / f"{self.name}.csv").write_text(self.csv(), encoding="utf-8")


@dataclass(frozen=True, kw_only=True)
class Figure(Table):
    """A table with a figure of it.

    Attributes:
        draw: makes matplotlib's figure of the rows.
    """

    draw: Callable[[], Any]

    @property
    def files(self) -> tuple[str, ...]:
        """The names of its files."""
        return (*super().files, f"{self.name}.png", f"{self.name}.svg")

    def image(self, form: str) -> bytes:
        """The figure, the same bytes for the same rows.

        Args:
            form: `png` or `svg`.
        """
        import matplotlib

        written = io.BytesIO()
        with matplotlib.rc_context({"svg.hashsalt": "graftwork", "font.size": 9}):
            kept: dict[str, Any] = {"metadata": {"Date": None}} if form == "svg" else {}
            self.draw().savefig(written, format=form, dpi=150, **kept)
        return written.getvalue()

    def write(self, folder: Path) -> None:
        """Write its files."""
        super().write(folder)
        for form in ("png", "svg"):
            (folder / f"{self.name}.{form}").write_bytes(self.image(form))
