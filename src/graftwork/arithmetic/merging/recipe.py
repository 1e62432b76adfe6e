"""A merge as a checked and saved file: method, models or adapters with their weights, base, and what becomes of heads
and types.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, PositiveInt, ValidationError, field_validator

from graftwork.arithmetic.merging.method import ChosenMethod, make_merge_method, settings_of
from graftwork.arithmetic.merging.plan import Heads, Plan, planned
from graftwork.arithmetic.values.checkpoint import Checkpoint
from graftwork.arithmetic.values.filters import Number, relevant
from graftwork.errors import RecipeError, nearest
from graftwork.folders import resolved_path
from graftwork.settings.problems import describe
from graftwork.settings.yamlfile import dump_yaml, read_yaml

FILE = "recipe.yaml"

ADAPTER = "adapter.json"
"""The file by which an adapter's folder is known."""

MERGED, RECIPE = "merged", "recipe"
"""Where the recipe is in those of adapters, which say first what they were tuned on."""


class MergedModel(BaseModel):
    """A model, or an adapter, that is merged.

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
        models: the models or adapters, each a path, or a path with its weight.
        base: the model that they come from.
        heads: what becomes of heads: `average`, `keep` (the first model's; of adapters, one for each), `base`, or, of
            adapters, `auto` (averaged where the labels agree). None: `average`, or of adapters `auto`; of a result for
            the task of one model (EMR), that model's.
        dtype: type of the output's numbers. None: as in the operands.
        rank: of adapters, rank of the LoRA that the result is to be. None: the result says the merge exactly.
        align: of bottleneck adapters, whether their units are permuted to match. None: `auto`.
        tasks: tasks by which the result and the operands are scored.
        sweep: name and values of a setting; the value of which the result scores best is taken.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    method: dict[str, Any]
    models: tuple[MergedModel, ...] = Field(min_length=1)
    base: str | None = None
    heads: Heads | Literal["auto"] | None = None
    dtype: str | None = None
    rank: PositiveInt | None = None
    align: Literal["auto", "units", "none"] | None = None
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
        """Read a recipe from a YAML file; also from that of a merged adapter, or of a folder of several. Relative paths
        are looked up beside the file first.

        Args:
            path: the file.
            overrides: values that override those of the file, `method.KEY` among them.

        Raises:
            RecipeError: the file cannot be read, or `parse` refuses its contents.
        """
        file = Path(path)
        values = read_yaml(file)
        if "method" not in values and isinstance(values.get(MERGED), dict) and RECIPE in values[MERGED]:
            values = dict(values[MERGED][RECIPE])
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

    def find_method(self) -> ChosenMethod:
        """The method that it names.

        Raises:
            MethodError: the name is missing or unknown, or settings are.
        """
        settings = dict(self.method)
        return make_merge_method(str(settings.pop("name", "")), settings)

    @property
    def of_adapters(self) -> bool:
        """Whether it is a merge of adapters, or of fully fine-tuned models as such: by its operands, or its method.

        Raises:
            MethodError: there is no such method.
        """
        over = self.find_method().method.over
        return over == "adapters" or any((Path(one.model) / ADAPTER).is_file() for one in self.models)

    @property
    def weights(self) -> list[Number] | None:
        """A number for each model; None where none has one."""
        given = [one.weight for one in self.models]
        return None if all(weight is None for weight in given) else [1.0 if w is None else w for w in given]

    def plan(self) -> Plan:
        """What it does with each tensor, decided from headers alone.

        Raises:
            RecipeError: the method does not take these operands or numbers, or has not the setting that is swept.
            WeightsError: the operands do not fit each other.
        """
        chosen = self.find_method()
        self.refuse({"--rank": self.rank, "--align": self.align, "--heads auto": self.heads == "auto" or None})
        chosen.check(
            len(self.models), base=self.base is not None, weights=self.weights is not None, tasks=len(self.tasks)
        )
        self.check_sweep(scored=bool(self.tasks))
        models = [Checkpoint.read(one.model) for one in self.models]
        base = None if self.base is None else Checkpoint.read(self.base)
        heads = self._heads(chosen)
        assert heads != "auto"
        plan = planned(models, base, heads=heads, dtype=self.dtype, chosen=chosen)
        self._check_numbers(chosen, plan)
        return plan

    def _heads(self, chosen: ChosenMethod) -> Heads | Literal["auto"]:
        """What becomes of heads, with its default."""
        if self.heads is None and not self.of_adapters:
            return "average" if chosen.result_of is None else "keep"
        return self.heads or "auto"

    def _check_numbers(self, chosen: ChosenMethod, plan: Plan) -> None:
        """Refuse numbers that do not suit the tensors that are merged or averaged. Defaults suit all, so that torch is
        imported for what is given alone."""
        if self.weights is None and self.sweep is None and not chosen.settings.model_fields_set:
            return
        from graftwork.arithmetic.merging.checking import check_numbers
        from graftwork.arithmetic.merging.shares import shares_at
        from graftwork.arithmetic.values.dtypes import TYPES

        merged = {name: plan.like.entries[name] for name in plan.named("merged")}
        shapes = {name: entry.shape for name, entry in merged.items()}
        dtypes = {name: TYPES[entry.dtype] for name, entry in merged.items()}
        averaged = plan.named("averaged")
        for one in self.each_of_sweep(chosen):
            between = plan.base is not None and one.method.base == "optional"
            if averaged:
                shares_at(one, self.weights, len(plan.models) + between, averaged, beside=merged)
            weights = None if self.weights is None else [relevant(own, merged, averaged) for own in self.weights]
            own = one.at(merged, averaged)
            check_numbers(own, shapes, dtypes, len(plan.models), base=plan.base is not None, weights=weights)

    def refuse(self, given: Mapping[str, Any], of: str = "of whole models") -> None:
        """Refuse flags that a merge has no use for.

        Raises:
            RecipeError: one of them is given; names them.
        """
        idle = [flag for flag, value in given.items() if value is not None]
        if idle:
            raise RecipeError(f"{', '.join(idle)} would do nothing in a merge {of}", change=", ".join(idle))

    def check_sweep(self, *, scored: bool) -> None:
        """Refuse a sweep over what the method has not, or with nothing to choose by.

        Args:
            scored: whether there is a task to score on.

        Raises:
            RecipeError: names what is wrong.
        """
        chosen = self.find_method()
        name = chosen.name
        known = settings_of(name).model_fields
        for key in self.sweep or ():
            if key not in known:
                raise RecipeError(f"{name} has no setting {key!r}", expected=nearest(key, known), change="--sweep")
            if {one.result_of for one in self.each_of_sweep(chosen)} != {chosen.result_of}:
                raise RecipeError(f"a sweep over {key} compares results for different tasks", change="--sweep")
            if not scored:
                raise RecipeError("a sweep chooses by scores, and no task is given", change="--task")

    def each_of_sweep(self, chosen: ChosenMethod) -> list[ChosenMethod]:
        """The method with each value of the setting that is swept; itself where there is no sweep.

        Raises:
            MethodError: a value is of the wrong type.
        """
        for name, values in (self.sweep or {}).items():
            return [chosen.with_settings({name: value}) for value in values]
        return [chosen]

    def resolved(self, paths: Sequence[Path], base: str | Path | None, chosen: ChosenMethod) -> "MergeRecipe":
        """The recipe with every default filled in, and with paths that are valid from any folder.

        Args:
            paths: of the models or adapters.
            base: what they come from.
            chosen: the method; with the setting that was chosen where there was a sweep, which is then over.
        """
        models = [MergedModel(model=str(path), weight=one.weight) for path, one in zip(paths, self.models, strict=True)]
        changes = {
            "method": chosen.described(),
            "models": tuple(models),
            "base": None if base is None else str(base),
            "heads": self._heads(chosen),
            "tasks": tuple(resolved_path(Path(task)) if Path(task).is_file() else task for task in self.tasks),
            "sweep": None,
        }
        return self.model_copy(update=changes)

    def plain(self) -> dict[str, Any]:
        """What its file holds."""
        return self.model_dump(mode="json", exclude_none=True, exclude=None if self.tasks else {"tasks"})

    def as_text(self) -> str:
        """Its file's text."""
        return dump_yaml(self.plain())


def _beside(file: Path, given: Any) -> Any:
    """A path in a file, looked up beside it first."""
    if isinstance(given, dict) and isinstance(given.get("model"), str):
        return {**given, "model": _beside(file, given["model"])}
    if isinstance(given, str) and (file.parent / given).exists():
        return str(file.parent / given)
    return given
