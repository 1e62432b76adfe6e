"""A study as a checked file: which tasks, which methods, what is searched, how many seeds, and within what budget."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, PositiveInt, ValidationError, field_validator

from graftwork.data.table import SplitName
from graftwork.errors import RecipeError, nearest
from graftwork.folders import resolved_path
from graftwork.settings.problems import describe, key_of
from graftwork.settings.yamlfile import read_yaml
from graftwork.studies.search import Search
from graftwork.training.recipe import override
from graftwork.training.settings import TrainingSettings

FILE = "study.yaml"

Seeds = tuple[int, ...]

SECTIONS = ("name", "train", "search")
"""Keys of a method in a study that are no settings of the method."""


class _Strict(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    @field_validator("train", check_fields=False)
    @classmethod
    def _known_settings(cls, train: dict[str, Any]) -> dict[str, Any]:
        for key in train:
            if key not in TrainingSettings.model_fields:
                raise ValueError(f"unknown key {key!r} (expected {nearest(key, TrainingSettings.model_fields)})")
        if "seed" in train:
            raise ValueError("seed: a study's seeds are its key seeds")
        return train


class StudyTask(_Strict):
    """A task of a study.

    Attributes:
        task: name of a built-in task, path of a task file, or fields of a task. None: the built-in task of that name.
        data: a file, folder or hub id of the data, instead of what the task names.
        max_rows: by split, the number of rows that are used of it at most.
        seeds: seeds of this task: how many, or which. None: those of the study.
        train: training settings of this task, over those of the study.
    """

    task: str | dict[str, Any] | None = None
    data: str | None = None
    max_rows: dict[SplitName, PositiveInt] | None = None
    seeds: Seeds | None = None
    train: dict[str, Any] = Field(default_factory=dict)

    @field_validator("seeds", mode="before")
    @classmethod
    def _counted(cls, value: Any) -> Any:
        return value if value is None else as_seeds(value)


class StudyMethod(_Strict):
    """A method of a study.

    Attributes:
        name: the method's name. None: the name under which it is in the study.
        settings: its settings. One that is a list stands for one method for each value; of a setting that takes a list
            itself, a list of lists does.
        train: training settings of this method, over those of the task.
        search: what is searched of this method, instead of what the study says.
    """

    name: str | None = None
    settings: dict[str, Any] = Field(default_factory=dict)
    train: dict[str, Any] = Field(default_factory=dict)
    search: Search | None = None


class Budget(_Strict):
    """What a study may cost.

    Attributes:
        runs: number of runs of the whole study. One that needs more is refused before anything runs.
        search_runs: the same of the search of one method on one task, all its settings together.
        hours: hours of training, all runs together. When they are spent, no further run begins.
    """

    runs: PositiveInt | None = None
    search_runs: PositiveInt | None = None
    hours: float | None = Field(default=None, gt=0.0)


class Study(_Strict):
    """A grid of tasks, methods, settings and seeds, read from a file.

    Attributes:
        name: name of the study in reports. Optuna's choices depend on it.
        backbone: name, folder or hub id of the backbone.
        dtype: precision of the backbone.
        pooling: how a text becomes one vector for the head.
        tasks: tasks by the name that results have.
        methods: methods by the name that results have.
        train: training settings of all runs.
        search: what is searched for each method on each task. None: nothing.
        seeds: how many seeds (0, 1, …), or which.
        budget: what the study may cost.
        share_passes: tune the seeds of one method and setting at once, in passes that they share. It is faster on some
            machines; results are equal to rounding, and no longer to the last digit whatever is killed.
    """

    name: str = Field(default="study", min_length=1)
    backbone: str = "minilm"
    dtype: str = "auto"
    pooling: str = "auto"
    tasks: dict[str, StudyTask] = Field(min_length=1)
    methods: dict[str, StudyMethod] = Field(min_length=1)
    train: dict[str, Any] = Field(default_factory=dict)
    search: Search | None = None
    seeds: Seeds = (0, 1, 2)
    budget: Budget = Field(default_factory=Budget)
    share_passes: bool = False

    @field_validator("tasks", mode="before")
    @classmethod
    def _tasks(cls, value: Any) -> Any:
        """A list of names, and a task by its name or file alone, are short for mappings."""
        named = _by_name(value)
        if not isinstance(named, Mapping):
            return named
        return {name: {"task": own} if isinstance(own, str) else own or {} for name, own in named.items()}

    @field_validator("methods", mode="before")
    @classmethod
    def _methods(cls, value: Any) -> Any:
        """A method's settings are written beside its name, as in a recipe."""
        named = _by_name(value)
        if not isinstance(named, Mapping):
            return named
        return {name: _sorted_out(own) for name, own in named.items()}

    @field_validator("seeds", mode="before")
    @classmethod
    def _counted(cls, value: Any) -> Any:
        return as_seeds(value)

    @classmethod
    def parse(cls, values: Mapping[str, Any], *, origin: str = "the study") -> "Study":
        """Make a study from plain values.

        Args:
            values: the values.
            origin: where they come from, for errors.

        Raises:
            RecipeError: names all unknown keys and all values of the wrong type.
        """
        try:
            return cls.model_validate(dict(values))
        except ValidationError as error:
            details = error.errors()
            where = sorted({key_of(detail) for detail in details} - {""})
            raise RecipeError(
                f"invalid settings in {origin}: {describe(details, cls)}",
                change=f"{', '.join(where)} in {origin}" if where else origin,
            ) from None

    @classmethod
    def from_yaml(cls, path: str | Path, overrides: Mapping[str, Any] | None = None) -> "Study":
        """Read a study from a YAML file. Relative paths of tasks and data are looked up beside the file first.

        Args:
            path: the file.
            overrides: values that override those of the file, by dotted key (`train.num_train_epochs`).

        Raises:
            RecipeError: the file cannot be read, or `parse` refuses its contents.
        """
        file = Path(path)
        values = override(read_yaml(file), overrides or {})
        values.setdefault("name", file.stem)
        return cls.parse(values, origin=str(file)).beside(file.parent)

    def beside(self, folder: Path) -> "Study":
        """The study with the paths of what lies in a folder, or relative to it, made absolute."""

        def found(given: str) -> str:
            for path in (folder / given, Path(given)):
                if path.exists():
                    return resolved_path(path)
            return given

        tasks = {}
        for name, own in self.tasks.items():
            changes: dict[str, Any] = {} if own.data is None else {"data": found(own.data)}
            if isinstance(own.task, str) and Path(own.task).suffix in (".yaml", ".yml"):
                changes["task"] = found(own.task)
            elif isinstance(own.task, Mapping) and isinstance(own.task.get("data"), str):
                changes["task"] = {**own.task, "data": found(own.task["data"])}
            tasks[name] = own.model_copy(update=changes)
        backbone = found(self.backbone) if "/" in self.backbone else self.backbone
        return self.model_copy(update={"tasks": tasks, "backbone": backbone})

    def as_values(self) -> dict[str, Any]:
        """The study as its file has it."""
        values = self.model_dump(mode="json", exclude_defaults=True)
        for name, own in values["methods"].items():
            values["methods"][name] = {**own.pop("settings", {}), **own}
        return values


def as_seeds(value: Any) -> Any:
    """A number of seeds stands for the first so many, from 0.

    Raises:
        ValueError: there are none, or one is repeated.
    """
    if isinstance(value, bool):
        raise ValueError("expected a number of seeds, or a list of them")
    if isinstance(value, int):
        value = range(value)
    if not isinstance(value, Sequence) or isinstance(value, str):
        raise ValueError("expected a number of seeds, or a list of them")
    seeds = tuple(value)
    if not seeds:
        raise ValueError("expected at least one seed")
    if len(set(map(str, seeds))) < len(seeds):
        raise ValueError("a seed is repeated")
    if any(isinstance(seed, bool) or not isinstance(seed, int) or not 0 <= seed < 2**32 for seed in seeds):
        raise ValueError("expected whole numbers from 0 to 2³² − 1")
    return seeds


def _by_name(value: Any) -> Any:
    """A list of names as a mapping."""
    if not isinstance(value, list | tuple):
        return value
    if twice := {str(name) for name in value if value.count(name) > 1}:
        raise ValueError(f"{', '.join(sorted(twice))} is there twice")
    if not all(isinstance(name, str) for name in value):
        raise ValueError("expected a list of names, or keys and values")
    return dict.fromkeys(value)


def _sorted_out(own: Any) -> Any:
    """A method's values, with its settings apart from the rest."""
    if own is None or isinstance(own, StudyMethod):
        return own or {}
    if isinstance(own, str):
        return {"name": own}
    if not isinstance(own, Mapping):
        return own
    sections = {key: own[key] for key in SECTIONS if key in own}
    return {**sections, "settings": {key: value for key, value in own.items() if key not in SECTIONS}}
