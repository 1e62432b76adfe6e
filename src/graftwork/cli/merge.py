"""`graftwork merge`: merge whole models, or adapters, into one."""

from pathlib import Path
from typing import Annotated, Any, Literal

from cyclopts import Parameter

from graftwork.arithmetic.merging.table import MERGE_METHODS
from graftwork.cli.flags import PLAIN_RUN, Run
from graftwork.cli.merge_shown import plan_of, show_result
from graftwork.cli.settings import Settings, Switch, parse_settings
from graftwork.cli.starting import say_start
from graftwork.errors import RecipeError

RECIPES = (".yaml", ".yml")


def _named(*acts: str) -> str:
    """The methods that act on that alone."""
    return ", ".join(name for name, own in MERGE_METHODS.items() if own.acts == acts)


METHOD = (
    f"For models and adapters: {_named('models', 'adapters')}. For models: {_named('models')}. Settings: --method.KEY "
    "VALUE. Or a recipe (YAML), and nothing else."
)
"""The help of the method."""


def merge(
    method: Annotated[str, Parameter(help=METHOD)],
    /,
    *models: Path,
    output: Path | None = None,
    base: str | None = None,
    weights: Annotated[str | None, Parameter(allow_leading_hyphen=True)] = None,
    heads: Literal["average", "keep", "base", "auto"] | None = None,
    dtype: str | None = None,
    rank: int | None = None,
    align: Literal["auto", "units", "none"] | None = None,
    task: list[str] = [],  # noqa: B006 (cyclopts makes a new list for each call)
    sweep: str | None = None,
    dry_run: Annotated[bool, Switch] = False,
    run: Run = PLAIN_RUN,
    settings: Settings = [],  # noqa: B006 (cyclopts makes a new list for each call)
) -> None:
    """Merge whole models into one, or adapters by what they change.

    Parameters
    ----------
    models
        Their folders, or .safetensors files. Or adapters' folders.
    output
        Folder for the result. It must not exist.
    base
        The model that they come from, for methods over what training changed. Of adapters: if it has moved.
    weights
        A number for each model, with commas between them.
    heads
        average: merged like the body, or averaged where the base has none. keep: the first model's, in emr that of its
        task. base: the base's. Default: average, in emr keep. Of adapters: auto (averaged where the labels agree, else
        kept for each task), average or keep.
    dtype
        Type of the result's numbers, such as bfloat16. Default: as in the models. Arithmetic is in float32.
    rank
        For adapters: rank of the LoRA that the result is to be. Default: the result says the merge exactly.
    align
        For bottleneck adapters: permute their units to match. Default: auto, where they did not begin alike.
    task
        Score the result and every operand on this task's validation rows; several: one for each model, whose head is
        used for it.
    sweep
        A setting and values, such as t=0,0.25,0.5,1: the one of which the result scores best is taken.
    dry_run
        Read headers only, and show what would be done with each tensor, and its bytes.
    """
    from graftwork.arithmetic.merging.recipe import MergeRecipe

    if output is None and not dry_run:
        raise RecipeError("no output is given", expected="a folder, or --dry-run", change="--output")
    given = {
        **{"base": base, "heads": heads, "dtype": dtype, "rank": rank, "align": align},
        **{"tasks": tuple(task) or None, "sweep": _swept(sweep)},
    }
    changes: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
    dotted = parse_settings(settings)
    wrong = [key for key in dotted if not key.startswith("method.")]
    if wrong:
        raise RecipeError(f"unknown setting {wrong[0]!r} of merge", expected="method.KEY", change=f"--{wrong[0]}")
    if Path(method).suffix in RECIPES:
        if models or weights is not None:
            raise RecipeError(
                "a recipe names its models and their weights",
                expected="the recipe alone",
                change="the models, --weights",
            )
        recipe = MergeRecipe.from_yaml(method, changes | dotted)
    else:
        own = {"name": method, **{key.removeprefix("method."): value for key, value in dotted.items()}}
        entries = _weighted([str(model) for model in models], weights)
        recipe = MergeRecipe.parse({"method": own, "models": entries, **changes}, origin="the command line")
    if dry_run:
        plan_of(recipe, as_json=run.json)
        return
    assert output is not None
    say_start(quiet=run.quiet)
    from graftwork.arithmetic.merging.merging import merge as start

    result = start(recipe, output, resume=run.resume, overwrite=run.overwrite, progress=not run.quiet)
    show_result(result, as_json=run.json)


def _weighted(models: list[str], weights: str | None) -> list[dict[str, Any]]:
    """Models, with their weights if there are some."""
    if weights is None:
        return [{"model": model} for model in models]
    from graftwork.settings.yamlfile import read_value

    values = (
        read_value(weights) if weights.startswith("[") else [read_value(part.strip()) for part in weights.split(",")]
    )
    if not isinstance(values, list) or len(values) != len(models):
        count = len(values) if isinstance(values, list) else 1
        raise RecipeError(
            f"{count} weights are given for {len(models)} models", expected="one each", change="--weights"
        )
    return [{"model": model, "weight": value} for model, value in zip(models, values, strict=True)]


def _swept(sweep: str | None) -> dict[str, list[Any]] | None:
    """A setting and its values."""
    if sweep is None:
        return None
    from graftwork.settings.yamlfile import read_value

    name, equals, values = sweep.partition("=")
    if not equals or not values:
        raise RecipeError(f"--sweep {sweep!r} names no values", expected="KEY=VALUE,VALUE,…", change="--sweep")
    own = name.removeprefix("method.")
    return {own: read_value(values) if values.startswith("[") else [read_value(v.strip()) for v in values.split(",")]}
