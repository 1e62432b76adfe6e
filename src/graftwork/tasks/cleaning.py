"""What is done to data as they were published before they are checked: encodings, spellings, rows that are left out.

Every row that is left out is counted, with its reason, in `Table.dropped`.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from typing import Any

from pydantic import Field, field_validator

from graftwork.data.columns import label_text
from graftwork.data.mojibake import repair
from graftwork.data.table import UTF8, Decoding, Table
from graftwork.errors import RecipeError
from graftwork.settings.checked import Checked, Names
from graftwork.settings.problems import describe


class Cleaning(Checked):
    """What is done to the rows of a task's data. White space at the ends of texts and labels is removed.

    Attributes:
        encodings: of text files, Python's names of encodings (`utf-8`, `cp1252`, `mac_roman`); the first in which every
            byte can be read is taken. JSON is always UTF-8.
        replace_undecodable: whether bytes that none of them has become U+FFFD. Otherwise they are an error.
        repair_mojibake: whether texts of UTF-8 that were once read as cp1252 are put right (`â€™` becomes `’`).
        spellings: labels as the data have them -> as the task has them, so that two spellings are one label.
        drop_labels: labels, by the task's spelling, whose rows are left out.
        drop_missing: whether rows without a text or without a label are left out. Otherwise they are an error.
    """

    encodings: Names = Field(default=UTF8.encodings, min_length=1)
    replace_undecodable: bool = False
    repair_mojibake: bool = False
    spellings: dict[str, str] = Field(default_factory=dict)
    drop_labels: Names = ()
    drop_missing: bool = False

    @field_validator("encodings")
    @classmethod
    def _known(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        for name in names:
            try:
                b" ".decode(name, "replace")
            except LookupError:  # of none, or of one from bytes to bytes
                raise ValueError(f"Python knows no encoding {name!r}") from None
        return names

    @property
    def decoding(self) -> Decoding:
        """How text files are read."""
        return Decoding(self.encodings, self.replace_undecodable)

    @property
    def of_labels(self) -> bool:
        """Whether single labels are changed or left out."""
        return bool(self.spellings or self.drop_labels)

    @classmethod
    def refusal(cls, details: Sequence[Any]) -> RecipeError:
        return RecipeError(
            f"invalid cleaning: {describe(details, cls)}", expected="the keys " + ", ".join(cls.model_fields)
        )

    def apply(self, table: Table, *, texts: Sequence[str], label: str, needed: Collection[str]) -> Table:
        """The table, cleaned. Columns that are not there or have no value at all are for the check of columns to name.

        Args:
            table: the rows as they were read.
            texts: columns of the inputs. What is in them and is no text stays as it is.
            label: column of the labels.
            needed: those among these columns that have a value in every row.
        """
        columns = dict(table.columns)
        for column in texts:
            if column in columns:
                columns[column] = [self._text(value) for value in columns[column]]
        if label in columns:
            columns[label] = [self._label(value) for value in columns[label]]
        cleaned = replace(table, columns=columns, classes=self._classes(table, label))
        return cleaned.without(self._reasons(columns, label, needed))

    def _reasons(self, columns: Mapping[str, Sequence[Any]], label: str, needed: Collection[str]) -> dict[int, str]:
        """By row that is left out, why; for the first of several reasons."""
        reasons: dict[int, str] = {}
        for column in needed if self.drop_missing else ():
            empty = [row for row, value in enumerate(columns.get(column, ())) if value is None]
            if len(empty) < len(columns.get(column, ())):
                for row in empty:
                    reasons.setdefault(row, f"nothing in column {column!r}")
        for row, value in enumerate(columns.get(label, ()) if self.drop_labels else ()):
            if isinstance(value, str) and value in self.drop_labels:
                reasons.setdefault(row, f"label {value!r}")
        return reasons

    def _classes(self, table: Table, label: str) -> Mapping[str, tuple[str, ...]]:
        """What the data declare of labels, as far as that is still true."""
        return {name: own for name, own in table.classes.items() if name != label or not self.of_labels}

    def _text(self, value: Any) -> Any:
        if not isinstance(value, str):
            return value
        return (repair(value) if self.repair_mojibake else value).strip() or None

    def _label(self, value: Any) -> Any:
        value = (value.strip() or None) if isinstance(value, str) else value
        if isinstance(value, float) and value != value:  # NaN: what a column of floats has where one is missing
            return None
        if not self.of_labels or value is None or isinstance(value, list):
            return value
        name = label_text(value)
        return self.spellings.get(name, name)
