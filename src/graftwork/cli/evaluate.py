"""`graftwork evaluate`: scores of a saved adapter."""

from pathlib import Path
from typing import Annotated, Literal

from cyclopts.types import PositiveInt

from graftwork.cli.flags import NO_COLUMN_AT_ALL, EveryColumn
from graftwork.cli.settings import Switch
from graftwork.cli.starting import say_start


def evaluate(
    adapter: Path,
    /,
    *,
    split: Literal["train", "validation", "test"] | None = None,
    data: str | None = None,
    columns: EveryColumn = NO_COLUMN_AT_ALL,
    backbone: str | None = None,
    dtype: str = "auto",
    batch_size: PositiveInt = 64,
    generation_examples: PositiveInt | None = None,
    max_new_tokens: PositiveInt | None = None,
    num_beams: PositiveInt | None = None,
    without_parts: str | None = None,
    allow_backbone_mismatch: Annotated[bool, Switch] = False,
    quiet: Annotated[bool, Switch] = False,
    json: Annotated[bool, Switch] = False,
) -> None:
    """Score a saved adapter on a split of its task's data, or on other data of the same kind.

    Parameters
    ----------
    adapter
        The adapter's folder.
    split
        The split to score on. Default: validation; with --data FILE, all rows of the file.
    data
        Other data than the adapter was tuned on: a file, a folder or a hub id, with the task's own layout unless a
        flag names columns.
    backbone
        Folder or hub id of the backbone, if it has moved.
    dtype
        Precision of the frozen backbone: auto, float32, bfloat16, float16, float64.
    batch_size
        Rows in one forward pass.
    generation_examples
        For generation: generate and score texts for this many sources only, the first ones. Default: all.
    max_new_tokens
        For generation: most tokens to generate per source. Default: as in tuning.
    num_beams
        For generation: number of beams. Default: as in tuning.
    without_parts
        Of a fusion: names of parts to leave out, separated by commas.
    allow_backbone_mismatch
        Run the adapter on weights other than those it was made for, if their shapes are the same.
    quiet
        Print neither what is scored nor how far it is.
    json
        Print the scores as JSON.
    """
    from json import dumps

    say_start(quiet=quiet)
    from graftwork.adapters import Adapter
    from graftwork.backbones import Backbone
    from graftwork.cli.table import print_table
    from graftwork.training.display import shown_on_stderr
    from graftwork.training.evaluation import evaluate as score
    from graftwork.training.run_summary import of_loading

    loaded = Adapter.load(adapter)
    if without_parts is not None:
        loaded = loaded.without_parts([name.strip() for name in without_parts.split(",")])
    name = backbone or loaded.backbone.name
    with shown_on_stderr(shown=not quiet) as display:
        display.say(of_loading(name))
    scores = score(
        loaded,
        backbone=Backbone.load(name, dtype=dtype),
        split=split,
        data=data,
        columns=columns.given(),
        batch_size=batch_size,
        generation_examples=generation_examples,
        max_new_tokens=max_new_tokens,
        num_beams=num_beams,
        allow_backbone_mismatch=allow_backbone_mismatch,
        progress=not quiet,
    )
    on = split or (data if data and Path(data).is_file() else "validation")
    if json:
        print(dumps({"task": loaded.task.name, "split": on, **scores}))
        return
    print_table([{"task": loaded.task.name, "split": on, **{name: f"{value:.4f}" for name, value in scores.items()}}])
