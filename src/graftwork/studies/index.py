"""The index of a study's runs: a SQLite file to look things up in. It is made of the run folders, which are the truth,
and can be made anew of them at any time.
"""

import logging
import re
import sqlite3
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from graftwork.errors import DataError, RecipeError, nearest
from graftwork.settings.yamlfile import RECIPE, read_value, read_yaml
from graftwork.studies.records import RESULT, RUNS, Record, damaged, read_record, run_folders
from graftwork.studies.shown import readable

FILE = "index.sqlite"

COLUMNS = {
    **{"hash": "TEXT PRIMARY KEY", "state": "TEXT", "task": "TEXT", "method": "TEXT", "setting": "TEXT"},
    **{"learning_rate": "REAL", "seed": "INTEGER", "main_metric": "TEXT", "validation": "REAL", "test": "REAL"},
    **{"trained_parameters": "INTEGER", "head_parameters": "INTEGER", "backbone_parameters": "INTEGER"},
    **{"nbytes": "INTEGER", "seconds": "REAL", "peak_memory": "INTEGER", "began": "TEXT", "ended": "TEXT"},
    "error": "TEXT",
}
"""What is known of a run, as the columns of its line."""

CONDITION = re.compile(r"\s*([\w.+-]+?)\s*(<=|>=|!=|=|<|>)\s*(.*?)\s*", re.DOTALL)

WAIT = 30.0
"""Seconds in which another process that writes the index is waited for."""

logger = logging.getLogger(__name__)


def _first(base: sqlite3.Connection) -> None:
    """1: runs and their scores. `stamp` says of which file a line was made."""
    columns = ", ".join(f"{name} {kind}" for name, kind in COLUMNS.items())
    base.execute(f"CREATE TABLE runs ({columns}, stamp TEXT)")
    base.execute(
        "CREATE TABLE scores (hash TEXT, split TEXT, metric TEXT, value REAL, PRIMARY KEY (hash, split, metric))"
    )


def _second(base: sqlite3.Connection) -> None:
    """2: the settings of resolved recipes, by dotted key. Runs that are there are read again for them."""
    base.execute("CREATE TABLE settings (hash TEXT, key TEXT, value, PRIMARY KEY (hash, key))")
    base.execute("UPDATE runs SET stamp = ''")


MIGRATIONS: Sequence[Callable[[sqlite3.Connection], None]] = (_first, _second)
"""What makes the file of each version out of the one before. A version that was published is never changed."""


class Index:
    """The runs of a study's folder, as they are now.

    Args:
        folder: the study's.
        rebuild: make the file anew.

    Raises:
        DataError: the folder has no runs, or the file is damaged. A damaged folder of a run is told of and left out.
    """

    def __init__(self, folder: Path, *, rebuild: bool = False) -> None:
        self.folder, self.file = folder, folder / FILE
        if not (folder / RUNS).is_dir():
            raise DataError(
                f"{str(folder)!r} has no runs in it",
                expected="the folder of a study, as `graftwork compare` makes it",
                change="FOLDER",
            )
        if rebuild:
            self.file.unlink(missing_ok=True)
        self._refresh()

    def find(self, conditions: Mapping[str, Any] | None = None, where: Sequence[str] = ()) -> list[dict[str, Any]]:
        """Runs in the order of task, method, setting, rate and seed.

        Args:
            conditions: columns and the values that they have.
            where: further conditions, `KEY=VALUE` with =, !=, <, <=, > or >=. Keys are columns, scores
                (`test.accuracy`) and settings of the resolved recipe (`train.num_train_epochs`, `method.rank`).

        Raises:
            RecipeError: a condition cannot be read, or its key is unknown.
        """
        clauses, values = [], []
        with self._open() as base:
            for key, value in (conditions or {}).items():
                clauses.append(f"{key} = ?")
                values.append(value)
            for text in where:
                clause, own = _condition(base, text)
                clauses.append(clause)
                values += own
            what = " AND ".join(clauses) or "1"
            order = "task, method, setting, learning_rate, seed, hash"
            names = ", ".join(COLUMNS)
            rows = base.execute(f"SELECT {names} FROM runs WHERE {what} ORDER BY {order}", values).fetchall()
            return [dict(zip(COLUMNS, row, strict=True)) for row in rows]

    def place(self, name: str) -> Path:
        """The folder of the run whose name begins so.

        Raises:
            RecipeError: there is none, or more than one.
        """
        names = [path.name for path in run_folders(self.folder)]
        found = [own for own in names if own.startswith(name)]
        if len(found) != 1 or not name:
            what = "there is no run" if not found else f"there are {len(found)} runs"
            raise RecipeError(f"{what} whose name begins with {name!r}", expected=nearest(name, names))
        return self.folder / RUNS / found[0]

    def export(self, rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
        """Runs with all their scores, `SPLIT.METRIC`, as a table's rows."""
        with self._open() as base:
            found: dict[str, dict[str, float]] = {}
            names: dict[str, None] = {}
            for name, split, metric, value in base.execute(
                "SELECT hash, split, metric, value FROM scores ORDER BY rowid"
            ):
                found.setdefault(name, {})[f"{split}.{metric}"] = value
                names[f"{split}.{metric}"] = None
        return [{**row, **{name: found.get(row["hash"], {}).get(name) for name in names}} for row in rows]

    def _refresh(self) -> None:
        """Have the file say what the folders say."""
        with self._open() as base:
            base.execute("BEGIN IMMEDIATE")
            _migrate(base, self.file)
            known = dict(base.execute("SELECT hash, stamp FROM runs").fetchall())
            folders = {path.name: path for path in run_folders(self.folder)}
            for name in known.keys() - folders.keys():
                _remove(base, name)
            for name, path in folders.items():
                try:
                    stamp = _stamp(path)
                    if known.get(name) == stamp:
                        continue
                    record, recipe = read_record(path), read_yaml(path / RECIPE)
                except (DataError, RecipeError) as error:
                    _remove(base, name)
                    if path.is_dir():  # another process may have removed it since it was listed
                        logger.warning("a run is left out: %s", error)
                    continue
                _remove(base, name)
                _insert(base, record, recipe, stamp)
            base.commit()

    @contextmanager
    def _open(self) -> Iterator[sqlite3.Connection]:
        base = sqlite3.connect(self.file, timeout=WAIT, isolation_level=None)
        try:
            yield base
        except sqlite3.DatabaseError as error:
            raise DataError(
                f"{self.file} cannot be read: {error}",
                expected="an index as graftwork made it",
                change="graftwork runs FOLDER --rebuild makes it anew",
            ) from error
        finally:
            base.close()


def _migrate(base: sqlite3.Connection, file: Path) -> None:
    """Bring the file to the version of today.

    Raises:
        DataError: it is of a later one.
    """
    version = int(base.execute("PRAGMA user_version").fetchone()[0])
    if version > len(MIGRATIONS):
        raise DataError(
            f"{file} was made by a newer graftwork (version {version} of the index; this one has {len(MIGRATIONS)})",
            change="graftwork runs FOLDER --rebuild makes it anew",
        )
    for number, migrate in enumerate(MIGRATIONS[version:], start=version + 1):
        migrate(base)
        base.execute(f"PRAGMA user_version = {number}")


def _stamp(folder: Path) -> str:
    try:
        status = (folder / RESULT).stat()
    except OSError as error:
        raise damaged(folder, error) from None
    return f"{status.st_mtime_ns} {status.st_size} {status.st_ino}"


def _remove(base: sqlite3.Connection, name: str) -> None:
    for table in ("runs", "scores", "settings"):
        base.execute(f"DELETE FROM {table} WHERE hash = ?", (name,))


def _insert(base: sqlite3.Connection, record: Record, recipe: Mapping[str, Any], stamp: str) -> None:
    scores = {split: own.get(record.main_metric) for split, own in record.scores.items()}
    same = vars(record)
    line = {name: same.get(name) for name in COLUMNS}
    line |= {"validation": scores.get("validation"), "test": scores.get("test")}
    line |= {"error": record.error and record.error["message"]}
    marks = ", ".join("?" * (len(line) + 1))
    base.execute(f"INSERT INTO runs VALUES ({marks})", (*line.values(), stamp))
    rows = [
        (record.hash, split, metric, value) for split, own in record.scores.items() for metric, value in own.items()
    ]
    base.executemany("INSERT INTO scores VALUES (?, ?, ?, ?)", rows)
    settings = [(record.hash, key, _plain(value)) for key, value in flat(recipe).items()]
    base.executemany("INSERT INTO settings VALUES (?, ?, ?)", settings)


def flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested values by dotted key."""
    found: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, Mapping):
            found |= flat(value, f"{prefix}{key}.")
        else:
            found[f"{prefix}{key}"] = value
    return found


def _plain(value: Any) -> Any:
    """What SQLite can hold and compare."""
    return value if isinstance(value, int | float) and not isinstance(value, bool) else readable(value)


def _condition(base: sqlite3.Connection, text: str) -> tuple[str, list[Any]]:
    """A condition as SQL, and its values."""
    match = CONDITION.fullmatch(text)
    if match is None:
        raise RecipeError(
            f"{text!r} is no condition", expected="KEY=VALUE, with =, !=, <, <=, > or >=", change="--where"
        )
    key, sign, given = match.groups()
    value = _plain(read_value(given))
    if key in COLUMNS:
        return f"{key} {sign} ?", [value]
    split, _, metric = key.partition(".")
    if base.execute("SELECT 1 FROM scores WHERE split = ? AND metric = ?", (split, metric)).fetchone():
        inner = f"SELECT hash FROM scores WHERE split = ? AND metric = ? AND value {sign} ?"
        return f"hash IN ({inner})", [split, metric, value]
    keys = [own for (own,) in base.execute("SELECT DISTINCT key FROM settings")]
    if key not in keys:
        scores = [f"{own}.{name}" for own, name in base.execute("SELECT DISTINCT split, metric FROM scores")]
        raise RecipeError(
            f"{key!r} is no column, score or setting of these runs",
            expected=nearest(key, [*COLUMNS, *scores, *keys]),
            change="--where",
        )
    return f"hash IN (SELECT hash FROM settings WHERE key = ? AND value {sign} ?)", [key, value]
