"""`graftwork fuse`: combine adapters for a task, or show how much a fusion uses each of its parts."""

from pathlib import Path
from typing import Annotated, Any, Literal

from graftwork.cli.flags import NO_COLUMNS, PLAIN_RUN, Columns, Run
from graftwork.cli.settings import Settings, Switch, parse_settings
from graftwork.cli.starting import say_start
from graftwork.errors import RecipeError

KINDS_OF_FUSION = {"attention": "fuse", "gate": "gate", "average": "average", "stack": "stack"}
"""What `--kind` calls a composition -> the method."""


def fuse(
    *adapters: Path,
    output: Path,
    task: str | None = None,
    data: str | None = None,
    columns: Columns = NO_COLUMNS,
    kind: Literal["attention", "gate", "average", "stack"] = "attention",
    train_parts: Annotated[bool, Switch] = False,
    backbone: str | None = None,
    dtype: str | None = None,
    pooling: str | None = None,
    show: Annotated[bool, Switch] = False,
    split: Literal["train", "validation", "test"] | None = None,
    run: Run = PLAIN_RUN,
    settings: Settings = [],  # noqa: B006 (cyclopts makes a new list for each call)
) -> None:
    """Combine saved adapters for a task, and save the result as an adapter that needs none of their folders.

    Parameters
    ----------
    adapters
        The adapters' folders. Their sizes may differ, the places where they act may not. With --show, one fusion.
    output
        Folder for the result. It must not exist.
    task
        A built-in task or a task file (YAML), as for graftwork tune.
    data
        A file, a folder or a hub id of the data.
    kind
        attention: AdapterFusion. gate: a number for each token and adapter (--method.normalise softmax for a router).
        average: --method.weights equal, learned, or one number for each adapter. stack: one after the other.
    train_parts
        Train the adapters as well. By default they are frozen.
    backbone
        The adapters' backbone, if it has moved.
    dtype
        Precision of the frozen backbone: auto, float32, bfloat16, float16, float64. Default: auto.
    pooling
        How a text becomes one vector: auto (the backbone's own way), pooler, first, last, mean. Default: auto.
    show
        Measure how much a fusion uses each of its parts, in the mean over the tokens of a split; write a table
        (gates.csv) and a figure (gates.png, gates.svg) to the output folder.
    split
        With --show, the split to read. Default: validation.
    """
    if show:
        refused = {
            "--task": task,
            "--train-parts": train_parts or None,
            "--resume": run.resume or None,
            "--pooling": pooling,
            "--kind": None if kind == "attention" else kind,
        }
        given = [flag for flag, value in refused.items() if value is not None]
        if given or settings:
            raise RecipeError(
                f"{', '.join(given or ['settings'])} cannot be used with --show", expected="a fusion alone"
            )
        _show(adapters, output, backbone, dtype, split, data, columns, run=run)
        return
    if split is not None:
        raise RecipeError("--split does nothing without --show", change="--split")
    if not adapters:
        raise RecipeError("no adapters are given", expected="the folders of one or more adapters")
    if task is None and data is None:
        raise RecipeError("no task and no data are given", expected="--task NAME, or --data FILE with --text COLUMN")
    say_start(quiet=run.quiet)
    from graftwork.adapters.parts import read_part
    from graftwork.cli.tune import run_recipe
    from graftwork.methods import Average

    # It holds the parts' tensors, so that they are read once; and gives them different names.
    held = Average(parts=tuple(read_part(folder) for folder in adapters))
    dotted = parse_settings(settings)
    taken = {
        **{f"task.{name}": f"--{name.replace('_', '-')}" for name in ("data", "text", "text_pair", "label")},
        **{name: f"--{name}" for name in ("backbone", "dtype", "pooling", "task")},
        "method.name": "--kind",
        "method.parts": "the adapters' folders",
        "method.train_parts": "--train-parts",
    }
    for key in taken.keys() & dotted.keys():
        raise RecipeError(f"{key} cannot be given as a setting of fuse", expected=taken[key], change=f"--{key}")
    given_keys = {
        "backbone": backbone or held.parts[0].backbone_name,
        "dtype": dtype,
        "pooling": pooling,
        "task": task,
        "task.data": data,
        **columns.settings(),
        "method": {
            "name": KINDS_OF_FUSION[kind],
            "parts": held.model_dump(mode="json")["parts"],
            "train_parts": train_parts,
        },
    }
    overrides: dict[str, Any] = {key: value for key, value in given_keys.items() if value is not None}
    if task is None and "task.name" not in dotted:
        overrides["task.name"] = Path(str(data)).stem
    run_recipe(None, overrides | dotted, output=output, run=run)


def _show(
    adapters: tuple[Path, ...],
    output: Path,
    backbone: str | None,
    dtype: str | None,
    split: Literal["train", "validation", "test"] | None,
    data: str | None,
    columns: Columns,
    *,
    run: Run,
) -> None:
    from json import dumps

    if len(adapters) != 1:
        raise RecipeError(f"{len(adapters)} adapters are given with --show", expected="one fusion's folder")
    say_start(quiet=run.quiet)
    from graftwork.adapters import Adapter
    from graftwork.backbones import Backbone
    from graftwork.cli.table import print_table
    from graftwork.combine import PartWeights, part_weights

    PartWeights.refuse(output, overwrite=run.overwrite)
    adapter = Adapter.load(adapters[0])
    frozen = Backbone.load(backbone or adapter.backbone.name, dtype=dtype or "auto")
    weights = part_weights(adapter, backbone=frozen, split=split, data=data, columns=columns.given())
    weights.save(output, overwrite=run.overwrite)
    if run.json:
        print(dumps(weights.rows()))
        return
    print_table(
        [
            {"site": site, **{part: f"{weights.means[i, n]:.3f}" for n, part in enumerate(weights.parts)}}
            for i, site in enumerate(weights.sites)
        ]
    )
    print(f"saved in {output}")
