"""Questions with choices, each read beside its question."""

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from graftwork.encoding.encoder import Encoder, Rows, shortened, with_labels, without_labels
from graftwork.encoding.tokens import Row, tokenized
from graftwork.errors import DataError


class ChoiceEncoder(Encoder):
    """Questions with choices: each choice is a text pair with its question, (B, C, T).

    A row with fewer choices than another of its batch gets some that are all padding, whose logits are -inf.
    """

    def encode(self, inputs: Sequence[Any], labels: Sequence[int] | None = None) -> list[Row]:
        asked = [question_of(given, i) for i, given in enumerate(inputs)]
        questions = [question for question, choices in asked for _ in choices]
        choices = [choice for _, several in asked for choice in several]
        return _grouped(self._pairs(questions, choices), [len(several) for _, several in asked], labels)

    def _pairs(self, questions: Sequence[str], choices: Sequence[str]) -> list[Row]:
        between = self.task.pair_separator
        return tokenized(self.tokenizer, questions, choices, self.max_length, separator=between)

    def collate(self, rows: Sequence[Row]) -> dict[str, Tensor]:
        most = max(len(row["input_ids"]) for row in rows)
        flat = [choice for row in without_labels(rows) for choice in _ungrouped(row, most, self._blank())]
        batch = {name: value.view(len(rows), most, -1) for name, value in self._pad(flat).items()}
        return with_labels(batch, rows)

    def _pad(self, rows: Sequence[Row]) -> dict[str, Tensor]:
        return dict(self.tokenizer.pad(list(rows), return_tensors="pt"))

    def _blank(self) -> Row:
        """What a choice that is none consists of."""
        return {"input_ids": self.tokenizer.pad_token_id}

    def lengths(self, rows: Rows) -> list[int]:
        return [max(map(len, row["input_ids"])) for row in rows]


def question_of(given: Any, place: int) -> tuple[str, list[str]]:
    """A question and its choices.

    Raises:
        DataError: they are none.
    """
    if isinstance(given, Mapping):
        question, choices = (given.get("text"), given.get("choices")) if len(given) == 2 else (None, None)
    else:
        question, choices = given if isinstance(given, Sequence) and len(given) == 2 else (None, None)
    several = isinstance(choices, Sequence) and not isinstance(choices, str) and len(choices) > 1
    if isinstance(question, str) and several and all(isinstance(choice, str) for choice in choices or ()):
        return question, list(choices or ())
    raise DataError(
        f"input {place + 1} is {shortened(given)}",
        expected='("question", ["choice", "choice", ...]), or {"text": "question", "choices": [...]}',
    )


def _grouped(rows: Sequence[Row], counts: Sequence[int], labels: Sequence[int] | None) -> list[Row]:
    """One row for each `count` of them running, its values lists."""
    found, start = [], 0
    for count in counts:
        several = rows[start : start + count]
        found.append({name: [row[name] for row in several] for name in several[0]})
        start += count
    return found if labels is None else [{**row, "labels": said} for row, said in zip(found, labels, strict=True)]


def _ungrouped(row: Row, count: int, blank: Row) -> list[Row]:
    """The rows that one row was made of, and blank ones of one token up to the count."""
    found = [dict(zip(row, values, strict=True)) for values in zip(*row.values(), strict=True)]
    return found + [{name: [blank.get(name, 0)] for name in row}] * (count - len(found))
