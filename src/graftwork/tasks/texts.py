"""Texts without labels: for predictions from a table's columns, a file's lines, or standard input; and tokens that are
to be added, from a file's lines.
"""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from graftwork.data.files import READERS, read_file
from graftwork.data.table import decode
from graftwork.errors import DataError, nearest

Texts = list[str | tuple[str, str]]


def read_table(path: Path, text: str, text_pair: str | None = None) -> list[Any]:
    """The texts in a table's column, or pairs of texts in two; lists of words are given as they are.

    Raises:
        DataError: the file cannot be read, a column is missing, or a text is.
    """
    flags = {"--text": text} if text_pair is None else {"--text": text, "--text-pair": text_pair}
    values = [[_plain(value) for value in column] for column in _columns(path, list(flags.items()))]
    return values[0] if text_pair is None else list(zip(*values, strict=True))


def read_choices(path: Path, text: str, choices: Sequence[str]) -> list[tuple[str, list[str]]]:
    """Questions and their choices: in a column each, or all of a question's in one column of lists.

    Raises:
        DataError: as `read_table`.
    """
    questions, *found = _columns(path, [("--text", text), *(("--choices", column) for column in choices)])
    several = found[0] if len(found) == 1 else list(zip(*found, strict=True))
    wrong = [row for row, value in enumerate(several, 1) if isinstance(value, str) or len(value) < 2]
    if wrong:
        raise DataError(
            f"{path} has no list of two choices or more in column {choices[0]!r}, row {wrong[0]}",
            expected="a column for each choice, or one of lists",
            change="--choices",
        )
    return [(str(question), [str(choice) for choice in row]) for question, row in zip(questions, several, strict=True)]


def _plain(value: Any) -> Any:
    return value if isinstance(value, list) else str(value)


def _columns(path: Path, flags: Sequence[tuple[str, str]]) -> list[Sequence[Any]]:
    """The named columns' values, none of them missing."""
    try:
        table = read_file(path, frozenset(column for _, column in flags))
    except DataError as error:
        change = error.change.replace("--data", "--file")
        raise DataError(error.problem, expected=error.expected, change=change) from None
    for flag, column in flags:
        if column not in table.names:
            raise DataError(f"{path} has no column {column!r}", expected=nearest(column, table.names), change=flag)
        absent = [row for row, value in enumerate(table.columns[column]) if value is None]
        if absent:
            raise DataError(f"{path} has no text in column {column!r}: {table.places(absent)}", change=flag)
    return [table.columns[column] for _, column in flags]


def read_lines(path: Path, *, pairs: bool) -> Texts:
    """The lines of a text file; for pairs, two texts with a tab between them.

    Raises:
        DataError: the file cannot be read, is a table, or a line is no pair.
    """
    if path.suffix.lower() in READERS:
        raise DataError(f"{path} is a table", expected="the column of the text", change="--text")
    try:
        content = path.read_bytes()
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}", change="--file") from None
    return _lines(decode(content, str(path)), str(path), pairs=pairs)


def read_stream(*, pairs: bool) -> Texts:
    """The lines of standard input.

    Raises:
        DataError: it is not UTF-8, or a line is no pair.
    """
    return _lines(decode(sys.stdin.buffer.read(), "standard input"), "standard input", pairs=pairs)


def read_tokens(path: Path) -> list[str]:
    """The tokens in a text file, one a line.

    Raises:
        DataError: the file cannot be read or is empty, a line is empty, or a token is there twice.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}", change="--add-tokens") from None
    tokens = [str(line) for line in _lines(decode(content, str(path)), str(path), pairs=False)]
    if not tokens:
        raise DataError(f"{path} has no tokens", expected="one per line", change="--add-tokens")
    for number, token in enumerate(tokens, 1):
        if not token.strip():
            raise DataError(f"{path}, line {number} is empty", expected="a token a line", change="--add-tokens")
        first = tokens.index(token) + 1
        if first < number:
            raise DataError(
                f"{path}, line {number} has token {token!r}, as line {first} has",
                expected="each once",
                change="--add-tokens",
            )
    return tokens


def _lines(content: str, origin: str, *, pairs: bool) -> Texts:
    lines = [line.removesuffix("\r") for line in content.removesuffix("\n").split("\n")] if content else []
    if not pairs:
        return list(lines)
    found: Texts = []
    for number, line in enumerate(lines, 1):
        first, tab, second = line.partition("\t")
        if not tab or "\t" in second:
            raise DataError(f"{origin}, line {number} is not a pair", expected="two texts with a tab between them")
        found.append((first, second))
    return found
