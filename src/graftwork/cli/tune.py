"""`graftwork tune`: make an adapter out of data."""

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from graftwork.cli.flags import NO_COLUMN_AT_ALL, PLAIN_RUN, EveryColumn, Run, with_settings
from graftwork.cli.settings import Settings, Switch
from graftwork.cli.starting import say_start
from graftwork.errors import RecipeError
from graftwork.kinds import DEFAULT_KIND, KINDS, KindName

if TYPE_CHECKING:
    from collections.abc import Mapping

    from graftwork.adapters import Adapter


def tune(
    recipe: Path | None = None,
    /,
    *,
    output: Path,
    task: Annotated[list[str], Parameter(negative=())] = [],  # noqa: B006 (cyclopts makes a new list for each call)
    sampling_temperature: float | None = None,
    task_weight: Annotated[list[str], Parameter(negative=())] = [],  # noqa: B006
    data: str | None = None,
    columns: EveryColumn = NO_COLUMN_AT_ALL,
    kind: KindName | None = None,
    backbone: str | None = None,
    dtype: str | None = None,
    method: str | None = None,
    pooling: str | None = None,
    add_tokens: Path | None = None,
    report_to: str | None = None,
    compile: Annotated[bool, Switch] = False,
    run: Run = PLAIN_RUN,
    settings: Settings = [],  # noqa: B006 (cyclopts makes a new list for each call)
) -> None:
    """Tune an adapter on a task and save it; or, with several tasks, one that they share.

    Parameters
    ----------
    recipe
        A recipe file (YAML); flags override what it says.
    output
        Folder for the adapter. It must not exist.
    task
        A built-in task (`graftwork tasks` lists them) or a task file (YAML). Given several times, the tasks train one
        adapter together, each with a head of its own; what is said of data and columns is then of all of them.
    sampling_temperature
        T, with several tasks: a task of N rows has a share of the training rows in proportion to N^(1/T). Default: 10.
    task_weight
        NAME=NUMBER, with several tasks: the factor of a task's loss. May be repeated.
    data
        A file (CSV, TSV, JSON lines, Parquet), a folder, or a hub id. For a built-in task, its file or the folder that
        holds it (`graftwork tasks` says where it can be had); for images, a folder with one folder per class.
    kind
        The kind of task, which decides the head; see docs/tasks.md. Default: classification.
    backbone
        minilm or smollm2 (carried by Python packages), a local folder, or a hub id. Default: minilm.
    dtype
        Precision of the frozen backbone: auto, float32, bfloat16, float16, float64. Default: auto.
    method
        A method that `graftwork methods` lists. Default: houlsby. Its settings: --method.KEY VALUE.
    pooling
        How a text becomes one vector: auto (the backbone's own way), pooler, first, last, mean. Default: auto.
    add_tokens
        File of tokens to add to the backbone's, one per line; their embeddings are trained and saved with the adapter.
    report_to
        Experiment trackers, by transformers' names.
    compile
        Compile the layers with torch.compile: for long runs on a GPU. Short for --train.torch_compile true.
    """
    flags: dict[str, Any] = {
        "backbone": backbone,
        "dtype": dtype,
        "pooling": pooling,
        "add_tokens": None if add_tokens is None else _read_tokens(add_tokens),
        "method": method,
        "train.report_to": report_to,
        "train.torch_compile": True if compile else None,
        "task.data": data,
        **columns.settings(),
        "task.kind": kind,
        "sampling_temperature": sampling_temperature,
    }
    taken = {"task": task or None, "method.name": method}
    overrides = with_settings(
        {**flags, **_weights(task_weight)}, settings, taken=[key for key, value in taken.items() if value is not None]
    )
    if len(task) > 1:
        overrides = {"tasks": task, **overrides}
    elif task:
        overrides = {"task": task[0], **overrides}
    if recipe is None:
        overrides = {"method": "houlsby", **overrides}
        has_task = bool({"task", "tasks", "task.base"} & overrides.keys())
        kind = str(overrides.get("task.kind", DEFAULT_KIND))
        images = kind in KINDS and "image" in KINDS[kind].needed
        if not has_task and not {"task.data", *(() if images else ("task.text",))} <= overrides.keys():
            raise RecipeError(
                "no task and no data are given",
                expected="a recipe, --task NAME, or --data FILE with --text COLUMN and --label COLUMN (for images, "
                "--data FOLDER with --kind image-classification)",
            )
        if not has_task:
            overrides.setdefault("task.name", Path(str(overrides["task.data"])).stem)
    run_recipe(recipe, overrides, output=output, run=run)


def _read_tokens(file: Path) -> list[str]:
    from graftwork.tasks.texts import read_tokens

    return read_tokens(file)


def _weights(given: list[str]) -> dict[str, Any]:
    """Weights by dotted key.

    Raises:
        RecipeError: one has no name, or is given twice.
    """
    from graftwork.settings.yamlfile import read_value

    found: dict[str, Any] = {}
    for weight in given:
        name, equals, value = weight.partition("=")
        if not name or not equals or name in found:
            what = "is given twice" if name in found else "is none"
            raise RecipeError(f"--task-weight {weight} {what}", expected="NAME=NUMBER", change="--task-weight")
        found[name] = read_value(value)
    return {"task_weights": found} if found else {}


def run_recipe(
    recipe: Path | None,
    overrides: dict[str, Any],
    *,
    output: Path,
    run: Run,
) -> None:
    """Tune by a recipe file, or by the settings of the command line alone, and say what came of it."""
    say_start(quiet=run.quiet)
    from graftwork.settings.yamlfile import read_yaml
    from graftwork.training.multi_task_recipe import TASKS
    from graftwork.training.processes import Processes
    from graftwork.training.recipe import Recipe, override
    from graftwork.training.tuning import tune_recipe

    if TASKS in overrides or (recipe is not None and TASKS in read_yaml(recipe)):
        from graftwork.cli.tune_tasks import run_tasks

        run_tasks(recipe, overrides, output=output, run=run)
        return
    of_several = {"sampling_temperature": "--sampling-temperature", "task_weights": "--task-weight"}.items()
    idle = [flag for key, flag in of_several if key in overrides]
    if idle:
        raise RecipeError(
            f"{' and '.join(idle)} would do nothing with one task", expected="two or more", change="--task"
        )
    if recipe is not None:
        resolved = Recipe.from_yaml(recipe, overrides)
    else:
        resolved = Recipe.parse(override({}, overrides), origin="the command line", given=overrides)
    start = time.perf_counter()
    adapter = tune_recipe(resolved, output=output, resume=run.resume, overwrite=run.overwrite, progress=not run.quiet)
    if Processes.here().first:
        _report(adapter, output, time.perf_counter() - start, as_json=run.json)


def _report(adapter: "Adapter", output: Path, seconds: float, *, as_json: bool) -> None:
    import json

    from graftwork.adapters.card import readable_score
    from graftwork.backbones import Backbone
    from graftwork.cli.table import print_table, readable_bytes
    from graftwork.training.planning import trained_for

    total = Backbone.outline(str(adapter.recipe["backbone"])).num_parameters
    trained = trained_for(adapter)
    percent = 100 * trained / total
    if as_json:
        result = {
            "task": adapter.task.name,
            "method": adapter.method.name,
            "trained": trained,
            "percent": percent,
            "bytes": adapter.num_bytes,
            "metrics": {split: dict(scores) for split, scores in adapter.metrics.items()},
            "baseline": {split: dict(scores) for split, scores in adapter.baseline.items()},
            "rows": dict(adapter.rows),
            "seconds": seconds,
            "output": str(output),
        }
        print(json.dumps(result))
        return
    row = {
        "task": adapter.task.name,
        "method": adapter.method.name,
        "trained": f"{trained:,} ({percent:.2f} %)",
        "weights": readable_bytes(adapter.num_bytes),
    }
    for split, scores in adapter.metrics.items():
        rows = adapter.rows.get(split)
        row |= {f"{split} {name}": readable_score(value, rows) for name, value in scores.items() if name != "loss"}
    print_table([{**row, "time": f"{seconds:.0f} s"}])
    if adapter.baseline:
        print(f"{KINDS[adapter.kind].baseline} on the frozen embeddings: {_scores(adapter.baseline)}")
    print(f"saved in {output}")


def _scores(metrics: "Mapping[str, Mapping[str, float]]") -> str:
    return ", ".join(f"{split} {m} {value:.4f}" for split, own in metrics.items() for m, value in own.items())
