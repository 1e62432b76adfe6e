"""Values and rows as tables show them."""

import csv
import io
import json
from collections.abc import Mapping, Sequence
from typing import Any


def readable(value: Any) -> str:
    """A value as a table shows it."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, list | tuple) and all(isinstance(one, str | int | float) for one in value):
        return ",".join(map(readable, value))
    return value if isinstance(value, str) else json.dumps(value, sort_keys=True)


def as_csv(rows: Sequence[Mapping[str, Any]]) -> str:
    """Rows under the keys of the first. What there is not is empty."""
    out = io.StringIO()
    if rows:
        writer = csv.DictWriter(out, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows({name: _cell(value) for name, value in row.items()} for row in rows)
    return out.getvalue()


def _cell(value: Any) -> Any:
    if value is None or value != value:
        return ""
    return str(value).lower() if isinstance(value, bool) else value
