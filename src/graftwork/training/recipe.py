"""A recipe: everything that a tuning run starts from, as one checked and saved file."""

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from graftwork.adapters.parts import with_parts_read
from graftwork.backbones import Backbone, PoolingSource
from graftwork.distillation.settings import Distillation
from graftwork.errors import RecipeError
from graftwork.heads import Head
from graftwork.kinds import KINDS
from graftwork.kinds.heads import head_for
from graftwork.methods import Houlsby, Method, as_method
from graftwork.settings.problems import describe, key_of
from graftwork.settings.yamlfile import read_yaml
from graftwork.tasks import Task, find_task
from graftwork.training.settings import TrainingSettings
from graftwork.training.start import Start


class Recipe(BaseModel):
    """Everything that determines a run. The same recipe on the same machine gives the same adapter, byte for byte.

    Attributes:
        backbone: name, folder or hub id of the backbone.
        dtype: precision of the backbone.
        task: name of a built-in task, path of a task file, or fields of a task. With `base`, the name of another task,
            the fields override those of that task.
        method: `name` and settings of the method.
        pooling: how a text becomes one vector for the head; `auto` is the backbone's pooling.
        pooling_source: where the pooling came from; written by `resolved`, not meant to be set.
        add_tokens: tokens to add to those of the backbone; their embeddings are trained with the adapter.
        train: training settings.
        start: the adapter whose tensors the run begins with, of the same method and settings; None: new ones.
        distill: the teachers that the adapter learns from; None: it learns from labels alone.
        trained_with: names of the other tasks that trained the adapter together with this one; written by `tune_tasks`,
            not meant to be set.
        generated_by: digests of the adapters of the hypernetwork that generated the adapter from examples, by the tasks
            that trained it; written by `generate_adapter`, not meant to be set.
        consolidated_with: names of the other tasks of a pool's adapter, with which this one was consolidated; written
            by `Pool.adapter`, not meant to be set.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    backbone: str = "minilm"
    dtype: str = "auto"
    task: str | dict[str, Any]
    method: dict[str, Any] = Field(default_factory=lambda: {"name": "houlsby"})
    pooling: Literal["auto", "pooler", "first", "last", "mean"] = "auto"
    pooling_source: PoolingSource | None = None
    add_tokens: tuple[str, ...] | None = None
    train: TrainingSettings = Field(default_factory=TrainingSettings)
    start: Start | None = None
    distill: Distillation | None = None
    trained_with: tuple[str, ...] | None = None
    generated_by: dict[str, str] | None = None
    consolidated_with: tuple[str, ...] | None = None

    @classmethod
    def parse(cls, values: Mapping[str, Any], *, origin: str = "the recipe", given: Collection[str] = ()) -> "Recipe":
        """Make a recipe from plain values.

        Args:
            values: the values.
            origin: the source of the values, for error messages.
            given: dotted keys of the values that were given as flags.

        Raises:
            RecipeError: names all unknown keys and all values of the wrong type.
        """
        values = dict(values)
        if isinstance(values.get("method"), str):
            values["method"] = {"name": values["method"]}
        try:
            return cls.model_validate(values)
        except ValidationError as error:
            details = error.errors()
            where = sorted({_flag(key) if key in given else origin for key in map(key_of, details)})
            raise RecipeError(
                f"invalid settings in {origin}: {describe(details, cls)}",
                change=", ".join(where) + ("; or --task, if it is a task file" if "text" in values else ""),
            ) from None

    @classmethod
    def from_yaml(cls, path: str | Path, overrides: Mapping[str, Any] | None = None) -> "Recipe":
        """Read a recipe from a YAML file.

        Args:
            path: the file.
            overrides: values that override those of the file, by dotted key (`train.seed`).

        Raises:
            RecipeError: the file cannot be read, or `parse` refuses its contents.
        """
        values = read_yaml(Path(path))
        return cls.parse(override(values, overrides or {}), origin=str(path), given=(overrides or {}).keys())

    def find_method(self) -> Method:
        """The method that the recipe names.

        Raises:
            MethodError: the name is missing or unknown, or settings are unknown.
            AdapterError: a part that it names is not an adapter's folder.
        """
        return as_method(with_parts_read(self.method))

    def find_task(self) -> Task:
        """The task that the recipe names.

        Raises:
            RecipeError: the task is unknown, or its fields are invalid.
        """
        if isinstance(self.task, str):
            return find_task(self.task)
        base = self.task.get("base")
        if base is not None:
            changes = {name: value for name, value in self.task.items() if name != "base"}
            return find_task(str(base)).override(**changes)
        return Task.parse(self.task, origin="the task")

    def resolved(self, backbone: Backbone, task: Task, method: Method) -> "Recipe":
        """The recipe with every default filled in, and with paths that are valid from any folder.

        Raises:
            RecipeError: it is of one task of several that trained one adapter, of an adapter that was generated, or of
                one that became one with others.
        """
        if self.trained_with is not None:
            raise RecipeError(
                f"the recipe is of an adapter that {task.name!r} trained together with {', '.join(self.trained_with)}",
                expected="the recipe.yaml of the folder with all these tasks, or one without trained_with",
            )
        if self.generated_by is not None:
            raise RecipeError(
                f"the recipe is of an adapter for {task.name!r} that a hypernetwork generated, which was trained by "
                f"{', '.join(self.generated_by)}",
                expected="graftwork generate with that hypernetwork, or a recipe without generated_by",
            )
        if self.consolidated_with is not None:
            raise RecipeError(
                f"the recipe is of an adapter that a pool made of those of {task.name!r} and "
                f"{', '.join(self.consolidated_with)}; a run by it would make another one",
                expected="a recipe without consolidated_with, to tune an adapter of the task alone",
            )
        return Recipe(
            backbone=backbone.name,
            dtype=str(backbone.dtype).removeprefix("torch."),
            task=task.resolved().model_dump(mode="json", exclude_none=True),
            method={"name": method.name, **method.model_dump(mode="json")},
            pooling=backbone.pooling if self.pooling == "auto" else self.pooling,
            pooling_source=self._pooling_source(backbone),
            add_tokens=self.add_tokens or None,
            train=self.train.resolved(method, backbone, task.kind),
            start=self.start and self.start.resolved(),
            distill=self.distill and self.distill.resolved(),
        )

    def _pooling_source(self, backbone: Backbone) -> PoolingSource:
        """Who chose the pooling; of a recipe that was resolved before, who chose it then, while that is still so."""
        here = (backbone.pooling, backbone.pooling_source)
        return here[1] if self.pooling == "auto" or (self.pooling, self.pooling_source) == here else "given"

    def head(self, task: Task, method: Method, backbone: Backbone) -> Head:
        """The head that the task needs."""
        if KINDS[task.kind].from_start and self.start is not None:
            return self.start.adapter().head
        pooling = backbone.pooling if self.pooling == "auto" else self.pooling
        return head_for(task.kind, backbone, num_labels=len(task.labels or ()), pooling=pooling, **method.head_fields)


def recipe_of(
    backbone: Backbone,
    *,
    task: str | Task,
    method: Method | str | Mapping[str, Any] | None,
    data: str | None,
    pooling: str,
    add_tokens: Sequence[str] | None,
    training: Mapping[str, Any],
    origin: str = "the arguments of tune",
    **sections: Any,
) -> Recipe:
    """The recipe of a function's arguments; see `graftwork.tune`.

    Args:
        origin: the function, for error messages.
        sections: more sections of the recipe.
    """
    fields = (task if isinstance(task, Task) else Recipe.parse({"task": task}).find_task()).model_dump(mode="json")
    changes = {} if data is None else {"data": data}
    given: Any = with_parts_read(method) if isinstance(method, Mapping) else method
    method = as_method(Houlsby() if given is None else given)
    return Recipe.parse(
        {
            "backbone": backbone.name,
            "task": {name: value for name, value in {**fields, **changes}.items() if value is not None},
            "method": {"name": method.name, **method.model_dump(mode="json")},
            "pooling": pooling,
            "add_tokens": add_tokens if add_tokens is None or isinstance(add_tokens, str) else list(add_tokens),
            "train": training,
            **sections,
        },
        origin=origin,
    )


def override(values: Mapping[str, Any], overrides: Mapping[str, Any]) -> dict[str, Any]:
    """Nested values with some replaced by dotted key. A method or task given as a name becomes a mapping first.

    Raises:
        RecipeError: a key leads into a value that has no keys.
    """
    result = dict(values)
    if "pooling" in overrides:
        result.pop("pooling_source", None)
    for dotted, value in overrides.items():
        *path, leaf = dotted.split(".")
        node = result
        for part in path:
            inner = node.get(part)
            if isinstance(inner, str) and part in _NAMED:
                inner = {_NAMED[part]: inner}
            if not isinstance(inner, Mapping | None):
                raise RecipeError(f"{dotted!r} cannot be set: {part!r} is {inner!r}", change=f"--{dotted}")
            node[part] = node = dict(inner or {})
        node[leaf] = value
    return result


def _flag(key: str) -> str:
    return _OTHER_FLAGS.get(key) or (f"--{key}" if "." in key or key in FLAGS else "--set")


FLAGS = ("backbone", "dtype", "pooling", "task", "method")
"""Keys that are flags of their own."""

_OTHER_FLAGS = {
    "add_tokens": "--add-tokens",
    "distill.teachers": "--teacher",
    **{f"distill.{name}": f"--{name}" for name in ("alpha", "temperature", "loss", "hidden")},
}
"""Keys whose flag is spelt otherwise."""

_NAMED = {"method": "name", "task": "base"}
"""Keys whose value can be a plain name: under which key the name goes when more is said."""
