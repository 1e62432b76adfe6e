"""Tables of runs as files for other programs: CSV and Parquet."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from graftwork.errors import RecipeError
from graftwork.folders import write_whole, writing
from graftwork.studies.shown import as_csv

ENDINGS = (".csv", ".parquet")


def export(rows: Sequence[Mapping[str, Any]], file: Path) -> None:
    """Write rows to a file, whose ending says of which kind it is.

    Raises:
        RecipeError: the ending is another one, or there are no rows.
        OutputError: it cannot be written.
    """
    if file.suffix not in ENDINGS:
        raise RecipeError(
            f"{file} is of no known kind", expected=f"a name in {' or '.join(ENDINGS)}", change="--export"
        )
    if not rows:
        raise RecipeError("no run is left to export", change="the conditions")
    with writing(file, change="--export, or make room on the disk"):
        if file.suffix == ".csv":
            write_whole(file, as_csv(rows))
            return
        import io

        import pyarrow
        import pyarrow.parquet

        content = io.BytesIO()
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist([dict(row) for row in rows]), content)
        write_whole(file, content.getvalue())
