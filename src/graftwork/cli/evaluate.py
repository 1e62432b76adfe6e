"""`graftwork evaluate`: scores of a saved adapter."""

from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter

Switch = Parameter(negative=())


def evaluate(
    adapter: Path,
    /,
    *,
    split: Literal["train", "validation", "test"] = "validation",
    data: str | None = None,
    text: str | None = None,
    text_pair: str | None = None,
    label: str | None = None,
    backbone: str | None = None,
    dtype: str = "auto",
    batch_size: int = 64,
    allow_backbone_mismatch: Annotated[bool, Switch] = False,
    json: Annotated[bool, Switch] = False,
) -> None:
    """Score a saved adapter on a split of its task's data, or on other data of the same kind.

    Parameters
    ----------
    adapter
        The adapter's folder.
    split
        Which split to score on.
    data
        Other data than those the adapter was tuned on: a file, a folder or a hub id.
    text
        Column of the text in those data.
    text_pair
        Column of the second text.
    label
        Column of the label.
    backbone
        Where the backbone is, when not where it was.
    dtype
        Precision of the frozen backbone: auto, float32, bfloat16, float16.
    batch_size
        Texts in one forward pass.
    allow_backbone_mismatch
        Run an adapter on other weights of the same shape than those it was made for.
    json
        Print the scores as JSON.
    """
    from json import dumps

    from graftwork.adapters import Adapter
    from graftwork.backbones import Backbone
    from graftwork.cli.table import print_table
    from graftwork.training.evaluation import evaluate as score
    from graftwork.training.evaluation import task_of

    loaded = Adapter.load(adapter)
    given = {"data": data, "text": text, "text_pair": text_pair, "label": label}
    task = task_of(loaded, {name: value for name, value in given.items() if value is not None})
    scores = score(
        loaded,
        backbone=Backbone.load(backbone or loaded.backbone.name, dtype=dtype),
        split=split,
        task=task,
        batch_size=batch_size,
        allow_backbone_mismatch=allow_backbone_mismatch,
    )
    if json:
        print(dumps({"task": task.name, "split": split, **scores}))
        return
    print_table([{"task": task.name, "split": split, **{name: f"{value:.4f}" for name, value in scores.items()}}])
