"""A recipe of several tasks that train one adapter together, as one checked file."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pydantic import Field, PositiveFloat

from graftwork.backbones import Backbone
from graftwork.errors import RecipeError, nearest
from graftwork.settings.checked import Checked
from graftwork.settings.problems import describe
from graftwork.settings.yamlfile import read_yaml
from graftwork.training.joint_recipe import NAME
from graftwork.training.recipe import Recipe, override

TASKS = "tasks"
"""The key by which a recipe of several tasks is known."""

OF_ONE = ("task", "trained_with", "generated_by", "consolidated_with", "train")
"""Fields of a task's recipe that a recipe of several tasks has not in common."""

RESERVED = ("tasks.json", "recipe.yaml", "log.jsonl", "shared.safetensors")
"""Names of files beside the tasks' folders."""


class Mixing(Checked):
    """How several tasks are mixed.

    Attributes:
        sampling_temperature: T: a task of N training rows has a share of the rows that is proportional to N^(1/T). 1 is
            in proportion to the tasks' sizes; large values come near to equal shares.
        task_weights: factors of the tasks' losses, by name; 1 where nothing is said.
    """

    sampling_temperature: PositiveFloat = Field(default=10.0, allow_inf_nan=False)
    task_weights: dict[str, PositiveFloat] = Field(default_factory=dict)

    @classmethod
    def refusal(cls, details: Sequence[Any]) -> RecipeError:
        given = {str(detail["loc"][0]) for detail in details if detail["loc"]}
        flags = {"sampling_temperature": "--sampling-temperature", "task_weights": "--task-weight"}
        return RecipeError(
            f"invalid settings of several tasks: {describe(details, cls)}",
            change=", ".join(flags.get(name, name) for name in sorted(given)),
        )


@dataclass(frozen=True)
class MultiTaskRecipe:
    """Everything that determines a run in which several tasks train one adapter.

    Attributes:
        recipes: by the task's name, its recipe; they differ in their tasks only, and where `resolved`, in the lengths
            that are defaults of a kind of task.
        mixing: how the tasks are mixed.
        given: the training settings that were given.
    """

    recipes: Mapping[str, Recipe]
    mixing: Mixing
    given: Mapping[str, Any]

    @classmethod
    def parse(
        cls, values: Mapping[str, Any], *, origin: str = "the recipe", given: Collection[str] = ()
    ) -> "MultiTaskRecipe":
        """Make a recipe from plain values: those of a `Recipe`, with `tasks` in the place of `task`, and the fields of
        `Mixing`. `tasks` is a list of what `task` may be, or a mapping of it by name.

        Args:
            values: the values.
            origin: the source of the values, for error messages.
            given: dotted keys of the values that were given as flags.

        Raises:
            RecipeError: keys are unknown, values are of the wrong type, there are fewer than two tasks, or two of one
                name; says which.
        """
        common = dict(values)
        tasks = common.pop(TASKS, None)
        if "task" in common:
            raise RecipeError(f"{origin} has both task and tasks", expected="one of the two", change=origin)
        named = {name: common.pop(name) for name in Mixing.model_fields if name in common}
        recipes: dict[str, Recipe] = {}
        for task in _listed(tasks, origin):
            recipe = Recipe.parse({**common, "task": task}, origin=origin, given=given)
            name = recipe.find_task().name
            if name in recipes:
                raise RecipeError(
                    f"{origin} has two tasks named {name!r}",
                    expected="each task once; other data under a name of their own",
                    change="--task, or the task's name",
                )
            if not NAME.fullmatch(name) or name in RESERVED:
                raise RecipeError(
                    f"{origin} has a task {name!r}, which cannot be a folder's name",
                    expected="letters, digits, '.', '_' and '-', the first one a letter or digit",
                    change="the task's name",
                )
            recipes[name] = recipe
        if len(recipes) < 2:
            found = f"only {next(iter(recipes))!r}" if recipes else "none"
            raise RecipeError(
                f"several tasks are to train one adapter, and {origin} has {found}",
                expected="two or more; or one `task`",
                change="--task",
            )
        mixing = Mixing(**named)
        for name in mixing.task_weights:
            if name not in recipes:
                raise RecipeError(
                    f"there is a weight for {name!r}, which is none of the tasks",
                    expected=nearest(name, recipes),
                    change="--task-weight",
                )
        return cls(recipes, mixing, dict(common.get("train") or {}))

    @classmethod
    def from_yaml(cls, path: str | Path, overrides: Mapping[str, Any] | None = None) -> "MultiTaskRecipe":
        """Read a recipe from a YAML file.

        Args:
            path: the file.
            overrides: values that override those of the file, by dotted key. Those of `task` change every task.

        Raises:
            RecipeError: the file cannot be read, or `parse` refuses its contents.
        """
        return cls.parse(
            with_overrides(read_yaml(Path(path)), overrides or {}), origin=str(path), given=overrides or ()
        )

    @property
    def first(self) -> Recipe:
        """The recipe of the first task, of which all that the tasks have in common is read."""
        return next(iter(self.recipes.values()))

    def resolved(self, backbone: Backbone) -> "MultiTaskRecipe":
        """The recipe with every default filled in, and with paths that are valid from any folder."""
        found = {}
        for name, recipe in self.recipes.items():
            others = tuple(other for other in self.recipes if other != name)
            own = recipe.resolved(backbone, recipe.find_task(), recipe.find_method())
            found[name] = own.model_copy(update={"trained_with": others})
        return replace(self, recipes=found)

    def as_file(self) -> dict[str, Any]:
        """As a file has it, from which the same run can be made again."""
        every = {name: recipe.model_dump(mode="json") for name, recipe in self.recipes.items()}
        [values, *others] = every.values()
        same = {
            key: value if all(other["train"][key] == value for other in others) else self.given.get(key)
            for key, value in values["train"].items()
        }
        common = {key: value for key, value in values.items() if key not in OF_ONE}
        return {
            **common,
            TASKS: {name: own["task"] for name, own in every.items()},
            **self.mixing.model_dump(mode="json"),
            "train": same,
        }


def with_overrides(values: Mapping[str, Any], overrides: Mapping[str, Any]) -> dict[str, Any]:
    """Values of a recipe of several tasks with some replaced by dotted key; those of `task` are of every task."""
    of_tasks = {key: value for key, value in overrides.items() if key.startswith("task.")}
    found = override(values, {key: value for key, value in overrides.items() if key not in of_tasks})
    if of_tasks:
        tasks = _listed(found.get(TASKS), "the recipe")
        found[TASKS] = [override({"task": task}, of_tasks)["task"] for task in tasks]
    return found


def _listed(tasks: Any, origin: str) -> list[Any]:
    """The tasks in order."""
    if isinstance(tasks, Mapping):
        return [_named(name, own) for name, own in tasks.items()]
    if isinstance(tasks, Sequence) and not isinstance(tasks, str):
        return list(tasks)
    raise RecipeError(
        f"{origin}: tasks is {tasks!r}", expected="a list of tasks, or a mapping of them by name", change=origin
    )


def _named(name: Any, task: Any) -> Any:
    """A task under the name that it has in a mapping."""
    own = {"base": task} if isinstance(task, str) else task
    return {**own, "name": str(name)} if isinstance(own, Mapping) else task
