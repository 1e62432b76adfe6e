"""`graftwork distill`: make an adapter that learns from teachers."""

from pathlib import Path
from typing import Literal

from graftwork.cli.flags import NO_COLUMNS, PLAIN_RUN, Columns, Run, with_settings
from graftwork.cli.settings import Settings
from graftwork.cli.tune import run_recipe
from graftwork.errors import RecipeError
from graftwork.kinds import KindName


def distill(
    *,
    teacher: list[Path],
    output: Path,
    task: str | None = None,
    data: str | None = None,
    columns: Columns = NO_COLUMNS,
    kind: KindName | None = None,
    backbone: str | None = None,
    dtype: str | None = None,
    method: str = "houlsby",
    pooling: str | None = None,
    alpha: float | None = None,
    temperature: float | None = None,
    loss: Literal["logits", "centred"] | None = None,
    hidden: float | None = None,
    run: Run = PLAIN_RUN,
    settings: Settings = [],  # noqa: B006 (cyclopts makes a new list for each call)
) -> None:
    """Tune an adapter that learns from teachers, on texts with or without labels, and save it.

    Parameters
    ----------
    teacher
        Folder of an adapter, or of a fine-tuned Hugging Face model for sequence or token classification, with the
        task's labels. Several: their probabilities are averaged.
    output
        Folder for the adapter. It must not exist.
    task
        A built-in task or a task file (YAML), as for tune.
    data
        A file (CSV, TSV, JSON lines, Parquet), a folder, or a hub id. Without a column of labels, the teachers' answers
        stand for them in validation.
    kind
        The kind of task: classification, regression, multi-label-classification or token-classification. Default:
        classification.
    backbone
        The student's: minilm or smollm2, a local folder, or a hub id. Default: minilm.
    dtype
        Precision of the frozen backbone: auto, float32, bfloat16, float16, float64. Default: auto.
    method
        The student's: a method that `graftwork methods` lists. Its settings: --method.KEY VALUE.
    pooling
        How a text becomes one vector: auto, pooler, first, last, mean. Default: auto.
    alpha
        The teachers' share of the loss, from 0 to 1; the rest is the labels'. Default: 0.5, or 1 without labels.
    temperature
        What divides logits before the softmax. Default: 2.
    loss
        logits: the divergence of the probabilities at that temperature; centred: the mean squared difference from the
        teachers' logits less their mean. Default: logits.
    hidden
        Weight of the mean squared difference of the pooled vectors of texts, or of the last states of words.
        Default: 0.
    """
    flags = {
        "distill.teachers": [str(folder) for folder in teacher],
        "distill.alpha": alpha,
        "distill.temperature": temperature,
        "distill.loss": loss,
        "distill.hidden": hidden,
        "backbone": backbone,
        "dtype": dtype,
        "pooling": pooling,
        "method.name": method,
        "task.data": data,
        **columns.settings(),
        "task.kind": kind,
    }
    overrides = with_settings(flags, settings)
    if task is not None:
        overrides = {"task": task, **overrides}
    elif not {"task.data", "task.text"} <= overrides.keys():
        raise RecipeError(
            "no task and no data are given", expected="--task NAME, or --data FILE with --text COLUMN", change="--task"
        )
    else:
        overrides.setdefault("task.name", Path(str(overrides["task.data"])).stem)
    run_recipe(None, overrides, output=output, run=run)
