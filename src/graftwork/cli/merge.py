"""`graftwork merge`: merge whole models into one."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import Parameter

from graftwork.cli.settings import Settings, Switch, parse_settings
from graftwork.cli.starting import say_start
from graftwork.errors import RecipeError

if TYPE_CHECKING:
    from graftwork.arithmetic.merging.merging import MergeResult
    from graftwork.arithmetic.merging.plan import Plan

RECIPES = (".yaml", ".yml")


def merge(
    method: str,
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
    resume: Annotated[bool, Switch] = False,
    overwrite: Annotated[bool, Switch] = False,
    quiet: Annotated[bool, Switch] = False,
    json: Annotated[bool, Switch] = False,
    settings: Settings = [],  # noqa: B006 (cyclopts makes a new list for each call)
) -> None:
    """Merge whole models into one, of any size at bounded memory; or adapters, by what they change.

    Parameters
    ----------
    method
        average, soup, interpolate, slerp, arithmetic, analogy, ties, dare, breadcrumbs, della, sce, model-stock, iso-c,
        tsv-m, emr or rebasin; settings: --method.KEY VALUE. Or a recipe (YAML). For adapters, and for models with a
        head for their task: also knots, fisher, donor, regmean or adamerging.
    models
        Their folders, or .safetensors files. Or adapters' folders.
    output
        Folder for the result. It must not exist.
    base
        The model that they come from, for methods over what training changed. Of adapters: if it has moved.
    weights
        A number for each model, with commas between them.
    heads
        average: merged like the body, or averaged where the base has none. keep: the first model's. base: the base's.
        Default: average. Of adapters: auto (averaged where the labels agree, else kept for each task), average or keep.
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
    resume
        Go on with an interrupted merge that reads data, to the same output.
    overwrite
        Replace an existing output, and discard an interrupted merge.
    quiet
        Print neither what is done nor how far it is.
    json
        Print the result as JSON.
    """
    from graftwork.cli.merge_adapters import are_adapters, merge_adapters

    if are_adapters(method, models):
        idle = {
            "--dtype": dtype,
            "--sweep": sweep,
            "--dry-run": dry_run or None,
            "--heads base": heads == "base" or None,
        }
        _refuse_idle(idle, "of adapters")
        asked: dict[str, Any] = {"heads": heads, "rank": rank, "align": align}
        options = {name: value for name, value in asked.items() if value is not None}
        if weights is not None:
            options["weights"] = [entry["weight"] for entry in _weighted([str(model) for model in models], weights)]
        flags = {"resume": resume, "overwrite": overwrite, "quiet": quiet, "as_json": json}
        merge_adapters(method, models, output, base, task, parse_settings(settings), options, **flags)
        return
    _refuse_idle(
        {"--rank": rank, "--align": align, "--resume": resume or None, "--heads auto": heads == "auto" or None},
        "of whole models",
    )
    from graftwork.arithmetic.merging.recipe import MergeRecipe

    if output is None and not dry_run:
        raise RecipeError("no output is given", expected="a folder, or --dry-run", change="--output")
    given = {"base": base, "heads": heads, "dtype": dtype, "tasks": tuple(task) or None, "sweep": _swept(sweep)}
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
        _show_plan(recipe.plan(), as_json=json)
        return
    assert output is not None
    say_start(quiet=quiet)
    from graftwork.arithmetic.merging.merging import merge as run

    result = run(recipe, output, overwrite=overwrite, progress=not quiet)
    _show_result(result, as_json=json)


def _refuse_idle(given: dict[str, Any], of: str) -> None:
    """Refuse flags that a merge does not have."""
    idle = [flag for flag, value in given.items() if value is not None]
    if idle:
        raise RecipeError(f"{', '.join(idle)} would do nothing in a merge {of}", change=", ".join(idle))


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


def _show_plan(plan: "Plan", *, as_json: bool) -> None:
    from dataclasses import asdict
    from json import dumps

    from graftwork.cli.table import print_table, readable_bytes

    left_out = {plan.operands[i].name: [*names] for i, names in plan.left_out.items()}
    if as_json:
        content = {
            "tensors": [asdict(tensor) for tensor in plan.tensors],
            "left_out": left_out,
            "bytes_read": plan.bytes_read,
            "bytes": plan.nbytes,
        }
        print(dumps(content))
        return
    print_table(
        [
            {
                "tensor": tensor.name,
                "role": tensor.role,
                "shape": "x".join(map(str, tensor.shape)) or "-",
                "type": tensor.dtype,
                "bytes": f"{tensor.nbytes:,}",
                "is": tensor.action + (f" from {tensor.source}" if tensor.source else ""),
            }
            for tensor in plan.tensors
        ]
    )
    for name, names in left_out.items():
        print(f"left out of {name}: {', '.join(names)}")
    counts = {action: len(plan.named(action)) for action in ("merged", "averaged", "kept")}
    print(
        f"{len(plan.tensors)} tensors ({', '.join(f'{count} {action}' for action, count in counts.items() if count)}), "
        f"{readable_bytes(plan.nbytes)}; {readable_bytes(plan.bytes_read)} are read"
    )


def _show_result(result: "MergeResult", *, as_json: bool) -> None:
    from json import dumps

    from graftwork.cli.table import print_table, readable_bytes

    chosen = {"name": result.method.name, **result.method.model_dump(mode="json", exclude_none=True)}
    if as_json:
        content = {
            "output": str(result.output),
            "method": chosen,
            "tensors": len(result.plan.tensors),
            "bytes": result.plan.nbytes,
            "scores": {name: dict(scores) for name, scores in result.scores.items()},
            "sweep": [{"value": value, **scores} for value, scores in result.swept],
        }
        print(dumps(content))
        return
    if result.swept:
        print_table([{"value": str(value), **_cells(scores)} for value, scores in result.swept])
    if result.scores:
        columns = dict.fromkeys(key for scores in result.scores.values() for key in scores)
        print_table(
            [
                {"model": name, **{key: f"{scores[key]:.4f}" if key in scores else "-" for key in columns}}
                for name, scores in result.scores.items()
            ]
        )
    print(f"saved in {result.output} ({len(result.plan.tensors)} tensors, {readable_bytes(result.plan.nbytes)})")


def _cells(scores: Any) -> dict[str, str]:
    return {name: f"{value:.4f}" for name, value in scores.items()}
