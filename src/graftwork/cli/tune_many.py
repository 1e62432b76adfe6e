"""`graftwork tune-many`: make several adapters at once, in passes that they share."""

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from graftwork.cli.settings import Switch
from graftwork.cli.starting import say_start

if TYPE_CHECKING:
    from collections.abc import Mapping

    from graftwork.adapters import Adapter


def tune_many(
    recipe: Path,
    /,
    *,
    output: Path,
    resume: Annotated[bool, Switch] = False,
    overwrite: Annotated[bool, Switch] = False,
    quiet: Annotated[bool, Switch] = False,
    json: Annotated[bool, Switch] = False,
) -> None:
    """Tune several adapters at once: their batches share forward passes, and each result is as if tuned alone.

    Parameters
    ----------
    recipe
        A joint recipe (YAML): backbone, dtype, train (settings for all) and adapters, by name, each with task, method,
        data, pooling, train and seeds.
    output
        Folder in which each adapter is saved under its name, as soon as it is finished.
    resume
        Resume interrupted and failed runs. Finished adapters are not tuned again.
    overwrite
        Replace existing adapters, and discard interrupted runs.
    quiet
        Print neither what is tuned nor how far it is.
    json
        Print the results as JSON.
    """
    say_start(quiet=quiet)
    from graftwork.training import JointRecipe, tune_joint_recipe

    joint = JointRecipe.from_yaml(recipe)
    start = time.perf_counter()
    found = tune_joint_recipe(joint, output=output, resume=resume, overwrite=overwrite, progress=not quiet)
    _report(found, output, time.perf_counter() - start, as_json=json)


def _report(adapters: "Mapping[str, Adapter]", output: Path, seconds: float, *, as_json: bool) -> None:
    from json import dumps

    from graftwork.cli.table import print_table
    from graftwork.training.planning import trained_for

    if as_json:
        results = {
            name: {
                "task": adapter.task.name,
                "method": adapter.method.name,
                "trained": trained_for(adapter),
                "metrics": {split: dict(scores) for split, scores in adapter.metrics.items()},
                "baseline": {split: dict(scores) for split, scores in adapter.baseline.items()},
                "rows": dict(adapter.rows),
                "output": str(output / name),
            }
            for name, adapter in adapters.items()
        }
        print(dumps({"adapters": results, "seconds": seconds, "output": str(output)}))
        return
    compared = any(adapter.baseline for adapter in adapters.values())
    print_table(
        [
            {
                "adapter": name,
                "task": adapter.task.name,
                "method": adapter.method.name,
                "trained": f"{trained_for(adapter):,}",
                **{split: _score(adapter, adapter.metrics, split) for split in ("validation", "test")},
                **({"baseline": _score(adapter, adapter.baseline, "validation")} if compared else {}),
            }
            for name, adapter in adapters.items()
        ]
    )
    print(f"saved in {output} in {seconds:.0f} s")


def _score(adapter: "Adapter", scores: "Mapping[str, Mapping[str, float]]", split: str) -> str:
    """The score on a split by the metric that chose the checkpoint."""
    from graftwork.adapters.card import readable_score
    from graftwork.training.evaluation import task_of

    metric = task_of(adapter).main_metric
    found = scores.get(split, {})
    return f"{metric} {readable_score(found[metric], adapter.rows.get(split))}" if metric in found else ""
