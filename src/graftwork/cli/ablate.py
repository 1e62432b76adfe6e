"""`graftwork ablate`: the score of an adapter without its ops in each span of layers."""

from pathlib import Path
from typing import Annotated, Literal

from cyclopts.types import PositiveInt

from graftwork.cli.flags import NO_COLUMN_AT_ALL, PLAIN, EveryColumn, Written
from graftwork.cli.settings import Switch
from graftwork.cli.starting import say_start


def ablate(
    adapter: Path,
    /,
    *,
    output: Path,
    task: str | None = None,
    data: str | None = None,
    columns: EveryColumn = NO_COLUMN_AT_ALL,
    split: Literal["train", "validation", "test"] = "validation",
    rows: PositiveInt | None = None,
    backbone: str | None = None,
    dtype: str = "auto",
    allow_backbone_mismatch: Annotated[bool, Switch] = False,
    batch_size: PositiveInt = 64,
    written: Written = PLAIN,
) -> None:
    """Bypass an adapter in every span of layers, without retraining, and score it on the validation split.

    The result is a heat map (PNG, SVG) of the relative change of the score, with the first bypassed layer down and the
    last one to the right, a table of all scores (CSV), and a record (JSON).

    Parameters
    ----------
    adapter
        The adapter's folder. Its method may be any that acts in layers.
    output
        Folder for the result. It must not exist.
    task
        A built-in task or a task file (YAML). Default: the task that the adapter was tuned on.
    data
        Other data than the adapter was tuned on: a file, a folder or a hub id, with the task's own layout unless a
        flag names columns.
    split
        The split to measure on.
    rows
        Measure on this many rows only, the first ones. Default: all.
    backbone
        Folder or hub id of the backbone, if it has moved.
    dtype
        Precision of the frozen backbone: auto, float32, bfloat16, float16, float64.
    allow_backbone_mismatch
        Accept a backbone of the same shape with other weights.
    batch_size
        Rows in one forward pass.
    """
    say_start(quiet=written.quiet)
    from json import dumps

    from graftwork.adapters import Adapter
    from graftwork.backbones import Backbone
    from graftwork.cli.table import print_table
    from graftwork.studies.ablation import ablate as measure
    from graftwork.studies.ablation import refuse

    refuse(output, overwrite=written.overwrite)
    loaded = Adapter.load(adapter)
    made = measure(
        loaded,
        backbone=Backbone.load(backbone or loaded.backbone.name, dtype=dtype),
        task=task,
        data=data,
        columns=columns.given(),
        split=split,
        rows=rows,
        batch_size=batch_size,
        allow_backbone_mismatch=allow_backbone_mismatch,
        progress=not written.quiet,
    )
    made.save(output, overwrite=written.overwrite)
    if written.json:
        print(dumps(made.record()))
        return
    print_table(
        [
            {"bypassed": "none", made.metric: f"{made.whole[made.metric]:.4f}", "relative change": ""},
            *(
                {
                    "bypassed": "all layers" if span == (0, len(made.layers) - 1) else f"layer {made.layers[span[0]]}",
                    made.metric: f"{made.spans[span][made.metric]:.4f}",
                    "relative change": "" if change is None else f"{100 * change:+.1f} %",
                }
                for span in dict.fromkeys([*((x, x) for x in range(len(made.layers))), (0, len(made.layers) - 1)])
                for change in [made.change(span)]
            ),
        ]
    )
    print(f"{len(made.spans)} spans at the cost of {made.evaluations:.1f} evaluations, saved in {output}")
