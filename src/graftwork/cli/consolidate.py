"""`graftwork consolidate`: add tasks to a pool of adapters of fixed size."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from graftwork.cli.flags import NO_COLUMNS, Columns, with_settings
from graftwork.cli.settings import Settings, Switch
from graftwork.cli.starting import say_start
from graftwork.errors import AdapterError, RecipeError, nearest
from graftwork.kinds import KindName

if TYPE_CHECKING:
    from graftwork.combine import Pool


def consolidate(
    pool: Path,
    /,
    *,
    task: list[str] = [],  # noqa: B006 (cyclopts makes a new list for each call)
    data: str | None = None,
    columns: Columns = NO_COLUMNS,
    kind: KindName | None = None,
    capacity: int | None = None,
    backbone: str | None = None,
    dtype: str = "auto",
    method: str | None = None,
    selection: Literal["transrate", "leep", "random"] | None = None,
    consolidation: Literal["distillation", "sequential"] | None = None,
    examples: int | None = None,
    student_epochs: float | None = None,
    adapter: list[Path] = [],  # noqa: B006 (cyclopts makes a new list for each call)
    seed: int | None = None,
    report: Path | None = None,
    export: str | None = None,
    output: Path | None = None,
    overwrite: Annotated[bool, Switch] = False,
    quiet: Annotated[bool, Switch] = False,
    json: Annotated[bool, Switch] = False,
    settings: Settings = [],  # noqa: B006 (cyclopts makes a new list for each call)
) -> None:
    """Add tasks to a pool of at most K adapters, one after another; without a task, show what is in it.

    The same command goes on with what an interrupted one has done: tasks that the pool has by the same settings and
    adapters are not added again.

    Parameters
    ----------
    pool
        Folder of the pool. It is made with the first task.
    task
        A built-in task or a task file (YAML); several are added in turn.
    data
        A file, a folder, or a hub id, for one task.
    kind
        The kind of task: classification, regression or multi-label-classification. Default: classification.
    capacity
        K, the largest number of adapters, decided when the pool is made. Default: one for each task, without end.
    backbone
        minilm or smollm2, a local folder, or a hub id. Default: the pool's, or minilm.
    dtype
        Precision of the frozen backbone: auto, float32, bfloat16, float16, float64.
    method
        The method of all adapters. Default: houlsby. Its settings: --method.KEY VALUE.
    selection
        How the adapter is chosen that takes in a task when the pool is full. Default: transrate.
    consolidation
        How it does: by distillation, or by being tuned on (sequential, which forgets). Default: distillation.
    examples
        The largest number of a task's training texts that are used to choose and to distil. Default: 1000.
    student_epochs
        Epochs of a distillation. Default: those of the task's own adapter.
    adapter
        Folder of an adapter that is tuned already for the task of its name, on these data or others with the same
        labels; several for several tasks. Others are tuned. Settings of training are then those of its student.
    seed
        Seed of what the pool draws. Default: 0. That of training: --train.seed.
    report
        Folder for a table and a figure of the scores of all tasks, forgetting, bytes and time after each task, written
        after each. The validation rows of all tasks are read for it.
    export
        Save the adapter of this task of the pool, as an ordinary one, in --output.
    output
        Folder for the adapter that is exported. It must not exist.
    overwrite
        Replace an existing report, and an existing output.
    quiet
        Print neither what is tuned nor how far it is.
    json
        Print the result as JSON.
    """
    flags = {**columns.settings(), "task.kind": kind, "task.data": data, "method.name": method}
    every = with_settings(flags, settings)
    dotted = {key: value for key, value in every.items() if flags.get(key) is None}
    changes = {key: value for key, value in every.items() if key.startswith("task.")}
    fields = {key.removeprefix("task.") for key in changes}
    wrong = [key for key in dotted if not key.startswith(("task.", "train.", "method."))]
    if wrong:
        raise RecipeError(f"unknown setting {wrong[0]!r}", expected="task.KEY, train.KEY or method.KEY", change="--set")
    if report is not None and not task and not fields:
        raise RecipeError(
            "a report is of tasks that are added, and none is given", expected="--task NAME", change="--report, --task"
        )
    if (export is None) != (output is None):
        raise RecipeError(
            "--export and --output are given together", expected="a task and a folder", change="--export, --output"
        )
    if fields and (len(task) > 1 or (not task and not {"data", "text"} <= fields)):
        raise RecipeError(
            f"{', '.join(sorted(fields))} is given for {len(task)} tasks",
            expected="--task NAME, or --data FILE with --text COLUMN",
            change="--task",
        )
    say_start(quiet=quiet)
    from graftwork.adapters import Adapter
    from graftwork.adapters.folder import refuse_existing
    from graftwork.backbones import Backbone
    from graftwork.combine import Pool
    from graftwork.combine.poolfile import PoolFile
    from graftwork.combine.sequence import add_in_turn, add_next
    from graftwork.training.recipe import Recipe, override
    from graftwork.training.settings import TrainingSettings

    given = {
        "capacity": capacity,
        "selection": selection,
        "consolidation": consolidation,
        "examples": examples,
        "student_epochs": student_epochs,
        "seed": seed,
    }
    training = {key.removeprefix("train."): value for key, value in dotted.items() if key.startswith("train.")}
    TrainingSettings(**training)  # other keys would be taken for arguments of the functions below
    if output is not None:
        refuse_existing(output, overwrite=overwrite)
    tuned = [(folder, Adapter.load(folder)) for folder in adapter]
    found = PoolFile.read(pool)
    if found is None and not task and not fields:
        raise RecipeError(f"there is no pool in {str(pool)!r}", expected="a pool, or --task NAME", change="--task")
    if fields and not task:
        changes.setdefault("task.name", Path(str(changes["task.data"])).stem)
    bases: list[dict[str, Any]] = [{"task": one} for one in task] or ([{}] if fields else [])
    origin = "the command line"
    tasks = [Recipe.parse(override(base, changes), origin=origin, given=changes).find_task() for base in bases]
    names = [*(() if found is None else found.tasks), *(one.name for one in tasks)]
    if export is not None and export not in names:
        raise AdapterError(f"the pool has no task {export!r}", expected=nearest(export, names), change="--export")
    adapters: dict[str, Path] = {}
    for folder, own_adapter in tuned:
        own_task = own_adapter.task.name
        if own_task not in (one.name for one in tasks) or own_task in adapters:
            raise AdapterError(
                f"{str(folder)!r} is an adapter of task {own_task!r}, which is "
                + ("given twice" if own_task in adapters else "not among those that are added"),
                expected=", ".join(one.name for one in tasks) or "--task NAME",
                change="--adapter",
            )
        adapters[own_task] = folder
    name = backbone or ("minilm" if found is None else found.backbone.name)
    chosen: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
    own = {key.removeprefix("method."): value for key, value in dotted.items() if key.startswith("method.")}
    if method is not None or own:
        from graftwork.methods import as_method

        chosen["method"] = as_method({"name": method or "houlsby", **own})
    opened = Pool(pool, backbone=Backbone.load(name, dtype=dtype), **chosen)
    new = opened.missing(tasks, adapters=adapters, **training)
    if not quiet:
        for one in tasks:
            if one.name not in {other.name for other in new}:
                print(f"the pool has the task {one.name!r} already: it is not added again", file=sys.stderr)
    if report is not None:
        add_in_turn(
            *(opened, tasks), adapters=adapters, report=report, overwrite=overwrite, progress=not quiet, **training
        )
    else:
        for one in new:
            add_next(opened, one, adapters, progress=not quiet, **training)
    if export is not None and output is not None:
        opened.adapter(export).save(output, overwrite=overwrite)
    _show(opened, as_json=json)


def _show(pool: "Pool", *, as_json: bool) -> None:
    """The history of a pool."""
    from json import dumps

    from graftwork.cli.table import print_table, readable_bytes

    if as_json:
        content = {
            "members": pool.members,
            "bytes": pool.nbytes,
            "history": [step.model_dump(mode="json") for step in pool.history],
        }
        print(dumps(content))
        return
    rows = []
    for step in pool.history:
        metric = next(iter(step.after), "")
        main = next((name for name in step.after if name != "loss"), metric)
        rows.append(
            {
                "task": step.task,
                "member": str(step.member),
                "consolidated": "yes" if step.consolidated else "no",
                "score": f"{main} {step.after.get(main, 0.0):.4f}",
                "alone": f"{step.before.get(main, 0.0):.4f}",
                "agreement": ", ".join(f"{name} {own:.3f}" for name, own in step.agreement.items()) or "-",
                "size": readable_bytes(step.nbytes),
            }
        )
    print_table(rows)
