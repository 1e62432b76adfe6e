"""What a study compares: each method in each of its settings on each task, checked before anything runs."""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from itertools import product
from typing import Any, get_origin

from graftwork.adapters.declared import counts, declare
from graftwork.adapters.parts import with_parts_read
from graftwork.backbones import Backbone
from graftwork.errors import DataError, GraftworkError, RecipeError
from graftwork.kinds import KINDS
from graftwork.methods import METHODS, as_method, find_method
from graftwork.settings.problems import types_in
from graftwork.studies.identity import fingerprint_of_backbone, fingerprint_of_data, hash_of
from graftwork.studies.search import Search, Times, Tried
from graftwork.studies.shown import readable
from graftwork.studies.study import Study, StudyMethod, StudyTask
from graftwork.tasks import Task, TaskData, load
from graftwork.training.recipe import Recipe, override
from graftwork.training.tuning import refuse_idle

DEFAULTS = {"baseline": "off"}
"""Training settings of studies: a linear model beside each run would be fitted again and again."""


@dataclass(frozen=True, eq=False)
class LoadedTask:
    """A task of a study with its data.

    Attributes:
        name: in the study.
        task: with its labels.
        data: its rows.
        fingerprint: of the rows.
        seeds: of its runs.
        train: its own training settings.
    """

    name: str
    task: Task
    data: TaskData
    fingerprint: str
    seeds: tuple[int, ...]
    train: Mapping[str, Any]

    def refuse_changed(self) -> None:
        """Refuse what was made of images whose files have changed since: all else of the data is held in memory.

        Raises:
            DataError: they have.
        """
        if "image" in KINDS[self.task.kind].inputs and fingerprint_of_data(self.data) != self.fingerprint:
            raise DataError(
                f"the images of task {self.name!r} have changed while the study ran",
                expected="the files as they were when the study was begun",
                change="nothing: the same command run again begins runs with the files as they are now",
            )

    @property
    def greater_is_better(self) -> bool:
        """Whether a higher value of the main metric is better."""
        return KINDS[self.task.kind].metrics[self.task.main_metric].greater_is_better


@dataclass(frozen=True, eq=False)
class Job:
    """One run of a study.

    Attributes:
        arm: what it belongs to.
        tried: what the search sets.
        seed: of initialisation and training.
        recipe: resolved.
        hash: what it is known by.
    """

    arm: "Arm"
    tried: Tried
    seed: int
    recipe: Recipe
    hash: str

    @property
    def label(self) -> str:
        """What it is, for people."""
        tried = [f"{key.removeprefix('train.')}={readable(value)}" for key, value in self.tried.items()]
        return ", ".join([self.arm.label, *tried, f"seed {self.seed}"])


@dataclass(frozen=True, eq=False)
class Arm:
    """One method in one of its settings on one task.

    Attributes:
        task: the task.
        method: the method's name in the study.
        setting: its setting, as text; empty where there is one alone.
        values: the values of a recipe, without a seed.
        search: what is searched; None: nothing.
        backbone: the backbone of all runs.
        fingerprint: of the backbone, with all that training depends on.
        rounds: what Optuna asked for in each round, by what it was told before: it need not be asked twice.
    """

    task: LoadedTask
    method: str
    setting: str
    values: Mapping[str, Any]
    search: Search | None
    backbone: Backbone
    fingerprint: str
    rounds: dict[str, list[Tried]] = field(default_factory=dict, repr=False)
    _jobs: dict[str, Job] = field(default_factory=dict, repr=False)

    @property
    def label(self) -> str:
        """What it is, for people."""
        return f"{self.task.name}: {self.method}" + (f" ({self.setting})" if self.setting else "")

    def job(self, tried: Tried, seed: int) -> Job:
        """A run.

        Raises:
            GraftworkError: the values do not suit the method, the task or the backbone.
        """
        key = json.dumps([dict(tried), seed], sort_keys=True)
        if key not in self._jobs:
            recipe = self._recipe({**tried, "train.seed": seed})
            found = hash_of(recipe, data=self.task.fingerprint, backbone=self.fingerprint)
            self._jobs[key] = Job(self, dict(tried), seed, recipe, found)
        return self._jobs[key]

    @cached_property
    def own_rate(self) -> float:
        """The learning rate where none is tried: the method's, or the one that the study sets."""
        rate = self._recipe({"train.seed": 0}).train.learning_rate
        assert rate is not None
        return rate

    @cached_property
    def candidates(self) -> list[dict[str, Any]]:
        """What a grid tries; without a search, nothing but the settings that there are."""
        return [{}] if self.search is None else self.search.candidates(self.own_rate)

    def trained(self) -> dict[str, int]:
        """Number of parameters that it trains: `all` of them, and those of the `head`.

        Raises:
            GraftworkError: the method does not suit the backbone or the task.
        """
        recipe = self._recipe({"train.seed": 0})
        return trained_by(recipe, self.task.task, self.backbone)

    def _recipe(self, changes: Mapping[str, Any]) -> Recipe:
        recipe = Recipe.parse(override(self.values, changes), origin="the study")
        return recipe.resolved(self.backbone, recipe.find_task(), recipe.find_method())


def trained_by(recipe: Recipe, task: Task, backbone: Backbone) -> dict[str, int]:
    """Number of parameters that a recipe trains: `all` of them, and those of the `head`."""
    method = recipe.find_method()
    declared = counts(declare(backbone, method, recipe.head(task, method, backbone)))
    return {"all": sum(declared.values()), "head": declared["head"]}


def arms_of(study: Study, backbone: Backbone) -> list[Arm]:
    """What a study compares, in the order of its file: tasks, then methods, then settings.

    Raises:
        GraftworkError: a task, a method or a setting is unknown or does not fit; two tasks are the same data, or two
            methods the same method. Nothing has been run, and all data have been read.
    """
    methods = [
        (name, setting, values, own)
        for name, own in study.methods.items()
        for setting, values in settings_of(name, own).items()
    ]
    tasks, fingerprint = load_tasks(study), fingerprint_of_backbone(backbone)
    arms = []
    for task in tasks:
        for name, setting, values, own in methods:
            train = {**DEFAULTS, **study.train, **task.train, **own.train}
            given = {
                "backbone": study.backbone,
                "dtype": study.dtype,
                "task": task.task.model_dump(mode="json", exclude_none=True),
                "method": values,
                "pooling": study.pooling,
                "train": train,
            }
            arms.append(Arm(task, name, setting, given, own.search or study.search, backbone, fingerprint))
    for arm in arms:
        _check(arm, study)
    _refuse_equal(arms)
    return arms


def settings_of(name: str, own: StudyMethod) -> dict[str, dict[str, Any]]:
    """The method's settings by the text that tells them apart: one for each combination of its lists.

    Raises:
        MethodError: the method is unknown, or has no such setting.
        RecipeError: a list is empty, or has a value twice.
    """
    with _within(f"method {name!r}", f"methods.{name}"):
        listed, named = find_method(own.name or name)
        fields = METHODS[named.method].model_fields
        fixed, grid = {}, {}
        for key, value in own.settings.items():
            takes_list = key in fields and any(get_origin(t) in (tuple, list) for t in types_in(fields[key].annotation))
            if not isinstance(value, list | tuple) or (takes_list and not _lists(value)):
                fixed[key] = value
                continue
            if not value:
                raise RecipeError(f"{key} is an empty list: there is nothing to run", expected="at least one value")
            if len({repr(one) for one in value}) < len(value):
                raise RecipeError(f"{key} has a value twice: {value}")
            grid[key] = value
        found = {}
        for values in product(*grid.values()):
            chosen = dict(zip(grid, values, strict=True))
            text = ", ".join(f"{key}={readable(value)}" for key, value in chosen.items())
            found[text] = {"name": listed, **fixed, **chosen}
            as_method(with_parts_read(found[text]))
        return found


def load_tasks(study: Study) -> list[LoadedTask]:
    """The tasks of a study with their data.

    Raises:
        GraftworkError: a task is unknown, its data cannot be read, or two tasks are the same.
    """
    declared = {name: _task(name, own) for name, own in study.tasks.items()}
    found: list[LoadedTask] = []
    for name, task in declared.items():
        own = study.tasks[name]
        with _within(f"task {name!r}", f"tasks.{name}"):
            data = load(task)
        loaded = LoadedTask(name, data.task, data, fingerprint_of_data(data), own.seeds or study.seeds, own.train)
        for other in found:
            if other.fingerprint == loaded.fingerprint and other.task.kind == task.kind:
                raise RecipeError(
                    f"tasks {other.name!r} and {name!r} are the same rows with the same labels: they would count twice",
                    expected="each task once",
                    change=f"tasks.{name}",
                )
        found.append(loaded)
    return found


def _task(name: str, own: StudyTask) -> Task:
    with _within(f"task {name!r}", f"tasks.{name}"):
        given = name if own.task is None else own.task
        changes: dict[str, Any] = {} if own.data is None else {"data": own.data}
        changes |= {"max_rows": own.max_rows} if own.max_rows else {}
        if isinstance(given, Mapping) and "base" not in given:
            given = {"name": name, **given, **changes}
            changes = {}
        task = Recipe.parse({"task": given}).find_task()
        return (task.override(**changes) if changes else task).resolved()


def _check(arm: Arm, study: Study) -> None:
    """Refuse what would fail in the first run.

    Raises:
        GraftworkError: says which method on which task.
    """
    with _within(arm.label, f"tasks.{arm.task.name}, methods.{arm.method}, train or search"):
        arm.trained()
        refuse_idle(Recipe.parse(arm.values, origin="the study"), arm.backbone)
        seed = arm.task.seeds[0]
        search = arm.search
        if search is None:
            arm.job({}, seed)
            return
        if len(arm.task.seeds) < search.seeds:
            raise RecipeError(
                f"the search wants {search.seeds} seeds, and the task has {len(arm.task.seeds)}",
                change="search.seeds, or seeds",
            )
        own = study.methods[arm.method]
        fixed = set(search.named) & {f"method.{key}" for key in own.settings}
        # Multiples are of a rate that is set.
        lists = {key.removeprefix("train.") for key, given in search.named.items() if not isinstance(given, Times)}
        fixed |= lists & {*study.train, *arm.task.train, *own.train}
        if fixed:
            raise RecipeError(f"{', '.join(sorted(fixed))} is both set and searched", change="one of the two")
        for tried in arm.candidates if search.grid is not None else ends_of(search):
            arm.job(tried, seed)


def _refuse_equal(arms: list[Arm]) -> None:
    """Refuse two arms that are one: their runs would be the same, and count twice."""
    known: dict[tuple[str, str], Arm] = {}
    for arm in arms:
        search = "" if arm.search is None else arm.search.model_dump_json()
        other = known.setdefault((arm.job({}, arm.task.seeds[0]).hash, search), arm)
        if other is not arm:
            raise RecipeError(
                f"{other.label} and {arm.label} are the same method with the same settings: they would count twice",
                expected="each once",
                change=f"methods.{arm.method}",
            )


def ends_of(search: Search) -> list[dict[str, Any]]:
    """What Optuna could choose, from the first of everything to the last: what would be refused is refused at once."""
    space = search.space()
    ends = [(values[0], values[-1]) if isinstance(values, tuple) else _range(values) for values in space.values()]
    return [dict(zip(space, [end[place] for end in ends], strict=True)) for place in (0, 1)]


def _range(values: Any) -> tuple[Any, Any]:
    return (int(values.low), int(values.high)) if values.whole else (values.low, values.high)


def _lists(value: Any) -> bool:
    """Whether a list is one of lists."""
    return bool(value) and all(isinstance(one, list | tuple) for one in value)


@contextmanager
def _within(what: str, change: str) -> Iterator[None]:
    """Errors inside say where in the study they are."""
    try:
        yield
    except GraftworkError as error:
        # A study has keys where other commands have flags.
        inner = f" ({error.change.replace('--', '')})" if error.change and error.change != "the study" else ""
        raise type(error)(f"{what}: {error.problem}", expected=error.expected, change=f"{change}{inner}") from error
