"""`graftwork generate`: an ordinary adapter out of a hypernetwork."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from graftwork.cli.flags import NO_COLUMNS, PLAIN_RUN, Columns, Run, with_settings
from graftwork.cli.settings import Settings, training_settings
from graftwork.cli.starting import say_start
from graftwork.errors import RecipeError
from graftwork.kinds import KindName

if TYPE_CHECKING:
    from graftwork.tasks import Task


OF_EXAMPLES = (
    *("data", "splits", "layout", "source", "subset", "header", "homepage"),
    *("test_fraction", "validation_fraction"),
)
"""Settings of a task about where its rows are and which are held out, of which examples have none."""


def generate(
    hypernetwork: Path,
    /,
    *,
    output: Path,
    task: str | None = None,
    examples: Path | None = None,
    columns: Columns = NO_COLUMNS,
    kind: KindName | None = None,
    backbone: str | None = None,
    dtype: str = "auto",
    run: Run = PLAIN_RUN,
    settings: Settings = [],  # noqa: B006 (cyclopts makes a new list for each call)
) -> None:
    """Generate an adapter for a task by a hypernetwork, and save it as an ordinary one.

    Parameters
    ----------
    hypernetwork
        A folder of several tasks that were tuned together, or an adapter's folder, of a method with a hypernetwork
        (hyperformer, bihnet, hypergrid).
    output
        Folder for the adapter. It must not exist.
    task
        A task that trained the hypernetwork. With --examples, another one: a built-in task, a task file (YAML), or with
        --text a name for it.
    examples
        A file of labelled examples of another task, such as 16 or 64. What each task has of its own is trained on them;
        the hypernetwork stays as it is.
    kind
        The kind of task; see docs/tasks.md. Default: classification.
    backbone
        Folder or hub id of the backbone, if it has moved.
    dtype
        With --examples, precision of the frozen backbone: auto, float32, bfloat16, float16, float64.
    """
    flags = {**columns.settings(), "task.kind": kind}
    every = with_settings(flags, settings)
    given = {key: value for key, value in flags.items() if value is not None}
    dotted = {key: value for key, value in every.items() if key not in given}
    wrong = [key for key in dotted if not key.startswith(("train.", "task."))]
    if wrong:
        raise RecipeError(f"{wrong[0]} is no setting of generate", expected="--train.KEY or --task.KEY", change="--set")
    of_task = [key for key in dotted if key.startswith("task.")]
    if examples is None:
        idle = [
            *(_flag(key) for key in given),
            *(f"--{key}" for key in of_task),
            *(["--dtype"] if dtype != "auto" else []),
            *(["--resume"] if run.resume else []),
        ]
        if idle:
            raise RecipeError(f"{', '.join(idle)} would do nothing without examples", change="--examples")
    elsewhere = [f"--{key}" for key in of_task if key.split(".")[1] in OF_EXAMPLES]
    if elsewhere:
        raise RecipeError(
            f"{', '.join(elsewhere)} would do nothing: the rows are those of the examples",
            expected="settings of the columns and labels",
            change=", ".join(elsewhere),
        )
    given = {key.removeprefix("task."): value for key, value in {**given, **dotted}.items() if key.startswith("task.")}
    say_start(quiet=run.quiet)
    training = training_settings(dotted)
    from graftwork.adapters.folder import refuse_existing
    from graftwork.backbones import Backbone
    from graftwork.combine import generate_adapter

    if not run.resume:
        refuse_existing(output, overwrite=run.overwrite)
    found = generate_adapter(
        hypernetwork,
        task if examples is None else _new_task(task, given, examples),
        examples=examples,
        backbone=None if backbone is None else Backbone.load(backbone, dtype=dtype),
        dtype="auto" if backbone is not None else dtype,
        output=output,
        resume=run.resume,
        overwrite=run.overwrite,
        progress=not run.quiet,
        **training,
    )
    _report(found, output, as_json=run.json)


def _flag(key: str) -> str:
    return "--" + key.removeprefix("task.").replace("_", "-")


def _new_task(task: str | None, given: dict[str, Any], examples: Path) -> "Task":
    """The task of the examples: one that is known, with other fields; or one of these fields."""
    from graftwork.tasks import BUILTIN, Task, find_task

    if task is not None and (task in BUILTIN or task.endswith((".yaml", ".yml"))):
        known = find_task(task)
        return known.override(**given) if given else known
    return Task.parse({"name": task or examples.stem, "data": str(examples), **given}, origin="the command line")


def _report(found: Any, output: Path, *, as_json: bool) -> None:
    from json import dumps

    from graftwork.cli.table import print_pairs, readable_bytes

    adapter = found.adapter
    if as_json:
        result = {
            "task": adapter.task.name,
            "method": adapter.method.name,
            "hypernetwork": found.hypernetwork,
            "bytes": adapter.num_bytes,
            "own_parameters": found.own_parameters,
            "own_bytes": found.own_bytes,
            "metrics": {split: dict(scores) for split, scores in adapter.metrics.items()},
            "rows": dict(adapter.rows),
            "output": str(output),
        }
        print(dumps(result))
        return
    scores = (f"{split} {n} {v:.4f}" for split, own in adapter.metrics.items() for n, v in own.items() if n != "loss")
    print_pairs(
        {
            "task": adapter.task.name,
            "generated by": found.hypernetwork,
            "as": f"{adapter.method.name}, {readable_bytes(adapter.num_bytes)}",
            "of the task alone": f"{found.own_parameters:,} numbers, {readable_bytes(found.own_bytes)}",
            "scores": ", ".join(scores),
        }
    )
    print(f"saved in {output}")
