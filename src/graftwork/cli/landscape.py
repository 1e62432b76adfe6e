"""`graftwork landscape`: loss and scores along the line between two results, over the plane of three, or around one."""

from pathlib import Path
from typing import Annotated, Literal

from cyclopts.types import NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt

from graftwork.cli.flags import NO_COLUMN_AT_ALL, PLAIN, EveryColumn, Written
from graftwork.cli.settings import Switch
from graftwork.cli.starting import say_start
from graftwork.errors import RecipeError


def landscape(
    *adapters: Path,
    output: Path,
    task: str | None = None,
    data: str | None = None,
    columns: EveryColumn = NO_COLUMN_AT_ALL,
    split: Literal["train", "validation", "test"] = "validation",
    rows: PositiveInt | None = None,
    points: PositiveInt | None = None,
    align: Annotated[bool, Switch] = False,
    fixed: str | None = None,
    span: PositiveFloat | None = None,
    margin: NonNegativeFloat | None = None,
    seed: NonNegativeInt | None = None,
    backbone: str | None = None,
    dtype: str = "auto",
    batch_size: PositiveInt = 64,
    written: Written = PLAIN,
) -> None:
    """Measure loss and scores between results or around one; write a table (CSV), a figure (PNG, SVG) and a record.

    Two adapters: along the line between them. Three: over their plane. One: around it, in two random directions whose
    filters are as long as those of the adapter.

    Parameters
    ----------
    adapters
        The folders of one, two or three adapters of one method, with the same settings, head and labels; or of
        fine-tuned Hugging Face models.
    output
        Folder for the result. It must not exist.
    task
        A built-in task or a task file (YAML). Default: the task that the first adapter was tuned on. For models it is
        required.
    data
        Other data than the adapter was tuned on: a file, a folder or a hub id, with the task's own layout unless a
        flag names columns.
    split
        The split to measure on.
    rows
        Measure on this many rows only, the first ones. Default: all.
    points
        Points of the line, ends included (25), or along each side of the grid (11).
    align
        Permute the units of the others to match the first one's weights (Git Re-Basin). On a line there are then two
        curves, before and after. For adapters of full-fine-tuning.
    fixed
        With --align: groups of units that are not permuted, separated by commas, such as residual.
    span
        Around one adapter: how far the grid goes in each direction. Default: 1, as far as random filters of the
        adapter's own length.
    margin
        Over a plane: how far the grid goes beyond the adapters, relative to their extent. Default: 0.2.
    seed
        Around one adapter, of the directions; with --align, of the order of matching. Default: 0.
    backbone
        Folder or hub id of the backbone, if it has moved; of models, the one that they were tuned from. Default for
        models: the first of them.
    dtype
        Precision of the frozen backbone: auto, float32, bfloat16, float16, float64.
    batch_size
        Rows in one forward pass.
    """
    if not 1 <= len(adapters) <= 3:
        raise RecipeError(f"{len(adapters)} adapters are given", expected="one, two or three adapters' folders")
    uses = {
        "--align": (align or None, len(adapters) > 1, "with two or three adapters"),
        "--fixed": (fixed, align, "with --align"),
        "--span": (span, len(adapters) == 1, "with one adapter"),
        "--margin": (margin, len(adapters) == 3, "with three adapters"),
        "--seed": (seed, align or len(adapters) == 1, "with one adapter or with --align"),
    }
    for flag, (value, used, where) in uses.items():
        if value is not None and not used:
            raise RecipeError(f"{flag} does nothing here", expected=f"{flag} {where}", change=flag)
    if points is not None and points < 2:
        raise RecipeError(f"--points {points} makes no landscape", expected="2 or more", change="--points")
    say_start(quiet=written.quiet)
    from json import dumps

    from graftwork.arithmetic.landscapes.files import Line, refuse
    from graftwork.arithmetic.landscapes.surveying import landscape as measure
    from graftwork.arithmetic.landscapes.surveying import read_operands
    from graftwork.cli.table import print_pairs, print_table

    refuse(output, overwrite=written.overwrite)
    loaded, frozen = read_operands(adapters, task=task, backbone=backbone, dtype=dtype)
    made = measure(
        loaded,
        backbone=frozen,
        task=task,
        data=data,
        columns=columns.given(),
        split=split,
        rows=rows,
        points=points,
        align=align,
        fixed=[group.strip() for group in fixed.split(",")] if fixed else [],
        span=1.0 if span is None else span,
        margin=0.2 if margin is None else margin,
        seed=seed or 0,
        batch_size=batch_size,
        progress=not written.quiet,
    )
    made.save(output, overwrite=written.overwrite)
    if written.json:
        print(dumps(made.record()))
        return
    if isinstance(made, Line):
        middle = len(made.alphas) // 2
        print_table(
            [
                {
                    "curve": curve,
                    "loss at ends": f"{values[0]['loss']:.4f} {values[-1]['loss']:.4f}",
                    f"at {made.alphas[middle]:.2g}": f"{values[middle]['loss']:.4f}",
                    "barrier": f"{made.barrier(curve):.4f}",
                }
                for curve, values in made.curves.items()
            ]
        )
    else:
        lowest = made.record()["lowest"]
        print_pairs({f"lowest {name}" if name == "loss" else f"{name} there": f"{lowest[name]:.4f}" for name in lowest})
    print(f"saved in {output}")
