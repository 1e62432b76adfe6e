"""A joint recipe: adapters that are tuned together on one backbone, each by its own recipe, as one checked file."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from graftwork.errors import RecipeError, nearest
from graftwork.methods import Method
from graftwork.settings.yamlfile import read_yaml
from graftwork.tasks import Task
from graftwork.training.recipe import Recipe, override

KEYS = ("backbone", "dtype", "train", "adapters")
OWN_KEYS = ("task", "data", "method", "pooling", "add_tokens", "train", "seeds")
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
"""A name is a folder's, too."""


@dataclass(frozen=True)
class JointRecipe:
    """Several adapters that are tuned together on one backbone.

    Attributes:
        backbone: name, folder or hub id of the backbone.
        dtype: precision of the backbone.
        recipes: the recipe of each adapter, by name.
    """

    backbone: str
    dtype: str
    recipes: Mapping[str, Recipe]

    @classmethod
    def parse(cls, values: Mapping[str, Any], *, origin: str = "the joint recipe") -> "JointRecipe":
        """Make a joint recipe from plain values: `backbone`, `dtype`, `train` (defaults for all adapters), and
        `adapters`, by name. Each adapter has `task`, `method`, `pooling`, `add_tokens` and `train` as in a recipe;
        `data`, where the task's data are; and `seeds`, each of which gives an adapter NAME-SEED.

        Args:
            values: the values.
            origin: the source of the values, for error messages.

        Raises:
            RecipeError: keys are unknown, values are of the wrong type, or two adapters have one name; says where.
        """
        _refuse_unknown(values, KEYS, origin)
        adapters, shared = values.get("adapters"), values.get("train") or {}
        for name, given in (("adapters", adapters), ("train", shared)):
            if not isinstance(given, Mapping):
                raise RecipeError(
                    f"{origin} has no {name}" if given is None else f"{origin}: {name} is {given!r}",
                    expected=f"{name}: a mapping with at least one key",
                    change=origin,
                )
        assert isinstance(adapters, Mapping)
        if not adapters:
            raise RecipeError(f"{origin} has no adapters", expected="at least one", change=origin)
        same = {name: str(values[name]) for name in ("backbone", "dtype") if name in values}
        recipes: dict[str, Recipe] = {}
        for name, given in adapters.items():
            where = f"adapter {str(name)!r} of {origin}"
            for full, own in _expanded(str(name), given, where).items():
                if full in recipes:
                    raise RecipeError(f"{origin} has two adapters named {full!r}", change="seeds, or one of the names")
                if not NAME.fullmatch(full):
                    raise RecipeError(
                        f"{where}: it cannot be a folder's name",
                        expected="letters, digits, '.', '_' and '-', the first one a letter or digit",
                        change=origin,
                    )
                recipes[full] = _recipe({**same, **own}, shared, where)
        first = next(iter(recipes.values()))
        return cls(first.backbone, first.dtype, recipes)

    @classmethod
    def from_yaml(cls, path: str | Path) -> "JointRecipe":
        """Read a joint recipe from a YAML file.

        Raises:
            RecipeError: the file cannot be read, or its contents are refused by `parse`.
        """
        return cls.parse(read_yaml(Path(path)), origin=str(path))


def plain(given: Mapping[str, Any]) -> dict[str, Any]:
    """An adapter's values as a file has them, where `task` may be a `Task` and `method` a `Method`."""
    values = dict(given)
    task, method = values.get("task"), values.get("method")
    if isinstance(task, Task):
        values["task"] = task.model_dump(mode="json", exclude_none=True)
    if isinstance(method, Method):
        values["method"] = {"name": method.name, **method.model_dump(mode="json")}
    return values


def _expanded(name: str, given: Any, where: str) -> dict[str, dict[str, Any]]:
    """One adapter for each of its seeds, or the one that it is."""
    if not isinstance(given, Mapping):
        raise RecipeError(f"{where} is {given!r}", expected="task: NAME, and what else a recipe has", change=where)
    _refuse_unknown(given, OWN_KEYS, where)
    values = dict(given)
    train = values.get("train") or {}
    if not isinstance(train, Mapping):
        raise RecipeError(f"{where}: train is {train!r}", expected="settings under it", change=where)
    values["train"] = train
    if "seeds" not in values:
        return {name: values}
    seeds = values.pop("seeds")
    if not isinstance(seeds, Sequence) or isinstance(seeds, str) or not seeds:
        raise RecipeError(f"{where}: seeds is {seeds!r}", expected="a list of them", change=where)
    if "seed" in train:
        raise RecipeError(f"{where} has both seeds and train.seed", expected="one of the two", change=where)
    if len(set(map(str, seeds))) < len(seeds):
        raise RecipeError(f"{where}: a seed is repeated", change=where)
    return {f"{name}-{seed}": {**values, "train": {**train, "seed": seed}} for seed in seeds}


def _recipe(values: Mapping[str, Any], shared: Mapping[str, Any], where: str) -> Recipe:
    values = {**values, "train": {**shared, **values["train"]}}
    if "task" not in values:
        raise RecipeError(f"{where} has no task", expected="task: NAME", change=where)
    data = values.pop("data", None)
    return Recipe.parse(values if data is None else override(values, {"task.data": data}), origin=where)


def _refuse_unknown(values: Mapping[str, Any], known: Sequence[str], where: str) -> None:
    for key in values:
        if key not in known:
            raise RecipeError(f"{where} has an unknown key {key!r}", expected=nearest(str(key), known), change=where)
