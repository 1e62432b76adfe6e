"""A merge as a checked and saved file: method, models with their weights, base, and what becomes of heads and types."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from graftwork.arithmetic.merging.method import MergeMethod
from graftwork.arithmetic.merging.plan import Heads, Plan, planned
from graftwork.arithmetic.merging.registry import make_merge_method
from graftwork.arithmetic.values.checkpoint import Checkpoint
from graftwork.arithmetic.values.filters import Number
from graftwork.errors import RecipeError, nearest
from graftwork.folders import resolved_path
from graftwork.settings.problems import describe
from graftwork.settings.yamlfile import dump_yaml, read_yaml

FILE = "recipe.yaml"


class MergedModel(BaseModel):
    """A model that is merged.

    Attributes:
        model: its folder or file.
        weight: by what it, or what it differs by from the base, is multiplied. None: as the method has it.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    model: str = Field(min_length=1)
    weight: Number | None = None


class MergeRecipe(BaseModel):
    """Everything that determines a merge. The same recipe gives the same model, byte for byte.

    Attributes:
        method: `name` and settings of the method.
        models: the models, each a path, or a path with its weight.
        base: the model that they come from.
        heads: what becomes of heads: `average`, `keep` (the first model's), or `base`.
        dtype: type of the output's numbers. None: as in the operands.
        tasks: tasks by which the result and the operands are scored.
        sweep: name and values of a setting; the value of which the result scores best is taken.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    method: dict[str, Any]
    models: tuple[MergedModel, ...] = Field(min_length=1)
    base: str | None = None
    heads: Heads = "average"
    dtype: str | None = None
    tasks: tuple[str, ...] = ()
    sweep: dict[str, tuple[Number, ...]] | None = Field(default=None, min_length=1, max_length=1)

    @field_validator("models", mode="before")
    @classmethod
    def _paths(cls, value: Any) -> Any:
        """Plain paths are models without weights."""
        if not isinstance(value, list | tuple):
            return value
        return [{"model": str(one)} if isinstance(one, str | Path) else one for one in value]

    @field_validator("method", mode="before")
    @classmethod
    def _named(cls, value: Any) -> Any:
        """A plain name is a method without settings."""
        return {"name": value} if isinstance(value, str) else value

    @classmethod
    def parse(cls, values: Mapping[str, Any], *, origin: str = "the recipe") -> "MergeRecipe":
        """Make a recipe of plain values.

        Args:
            values: the values.
            origin: where they come from, for errors.

        Raises:
            RecipeError: names all unknown keys and all values of the wrong type.
        """
        try:
            return cls.model_validate(dict(values))
        except ValidationError as error:
            raise RecipeError(f"invalid settings in {origin}: {describe(error.errors(), cls)}", change=origin) from None

    @classmethod
    def from_yaml(cls, path: str | Path, overrides: Mapping[str, Any] | None = None) -> "MergeRecipe":
        """Read a recipe from a YAML file. Relative paths are looked up beside the file first.

        Args:
            path: the file.
            overrides: values that override those of the file, `method.KEY` among them.

        Raises:
            RecipeError: the file cannot be read, or `parse` refuses its contents.
        """
        file = Path(path)
        values = read_yaml(file)
        if isinstance(values.get("models"), list):
            values["models"] = [_beside(file, one) for one in values["models"]]
        if isinstance(values.get("tasks"), list):
            values["tasks"] = [_beside(file, one) for one in values["tasks"]]
        if "base" in values:
            values["base"] = _beside(file, values["base"])
        for key, value in (overrides or {}).items():
            section, _, name = key.partition(".")
            if name:
                old = cls._named(values.get(section, {}))
                values[section] = {**old, name: value} if isinstance(old, dict) else old
            else:
                values[key] = value
        return cls.parse(values, origin=str(path))

    def find_method(self, **changes: Any) -> MergeMethod:
        """The method that it names.

        Args:
            changes: settings in the place of those that it has.

        Raises:
            MethodError: the name is missing or unknown, or settings are.
        """
        settings = {**self.method, **changes}
        return make_merge_method(str(settings.pop("name", "")), settings)

    @property
    def weights(self) -> list[Number] | None:
        """A number for each model; None where none has one."""
        given = [one.weight for one in self.models]
        return None if all(weight is None for weight in given) else [1.0 if w is None else w for w in given]

    def plan(self) -> Plan:
        """What it does with each tensor, decided from headers alone.

        Raises:
            RecipeError: the method does not take these operands, or has not the setting that is swept.
            WeightsError: the operands do not fit each other.
        """
        method = self.find_method()
        method.check(
            len(self.models), base=self.base is not None, weights=self.weights is not None, tasks=len(self.tasks)
        )
        for name in self.sweep or ():
            if name not in type(method).model_fields:
                raise RecipeError(
                    f"{method.name} has no setting {name!r}",
                    expected=nearest(name, type(method).model_fields),
                    change="--sweep",
                )
            if not self.tasks:
                raise RecipeError("a sweep chooses by scores, and no task is given", change="--task")
        models = [Checkpoint.read(one.model) for one in self.models]
        base = None if self.base is None else Checkpoint.read(self.base)
        return planned(models, base, heads=self.heads, dtype=self.dtype, vectors=method.vectors)

    def resolved(self, plan: Plan, method: MergeMethod | None = None) -> "MergeRecipe":
        """The recipe with every default filled in, and with paths that are valid from any folder.

        Args:
            plan: its own.
            method: the one that was chosen in a sweep, which is then over.
        """
        chosen = (self.find_method() if method is None else method).settled()
        models = [
            MergedModel(model=str(checkpoint.path), weight=one.weight)
            for checkpoint, one in zip(plan.models, self.models, strict=True)
        ]
        changes = {
            "method": {"name": chosen.name, **chosen.model_dump(mode="json", exclude_none=True)},
            "models": tuple(models),
            "base": None if plan.base is None else str(plan.base.path),
            "tasks": tuple(resolved_path(Path(task)) if Path(task).is_file() else task for task in self.tasks),
            "sweep": None,
        }
        return self.model_copy(update=changes)

    def as_text(self) -> str:
        """Its file's text."""
        return dump_yaml(self.model_dump(mode="json", exclude_none=True, exclude=None if self.tasks else {"tasks"}))


def _beside(file: Path, given: Any) -> Any:
    """A path in a file, looked up beside it first."""
    if isinstance(given, dict) and isinstance(given.get("model"), str):
        return {**given, "model": _beside(file, given["model"])}
    if isinstance(given, str) and (file.parent / given).exists():
        return str(file.parent / given)
    return given
