"""`graftwork tune` with several tasks, which train one adapter together."""

import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from graftwork.cli.flags import Run

if TYPE_CHECKING:
    from graftwork.adapters import Adapter


def run_tasks(
    recipe: Path | None,
    overrides: dict[str, Any],
    *,
    output: Path,
    run: Run,
) -> None:
    """Tune, and say what came of it."""
    from graftwork.training.multi_task import tune_multi_task_recipe
    from graftwork.training.multi_task_recipe import MultiTaskRecipe, with_overrides

    if recipe is not None:
        several = MultiTaskRecipe.from_yaml(recipe, overrides)
    else:
        several = MultiTaskRecipe.parse(with_overrides({}, overrides), origin="the command line", given=overrides)
    start = time.perf_counter()
    found = tune_multi_task_recipe(
        several, output=output, resume=run.resume, overwrite=run.overwrite, progress=not run.quiet
    )
    _report(found, output, time.perf_counter() - start, as_json=run.json)


def _report(adapters: "Mapping[str, Adapter]", output: Path, seconds: float, *, as_json: bool) -> None:
    from json import dumps

    from graftwork.adapters.card import readable_score
    from graftwork.cli.table import print_table
    from graftwork.training.multi_task_folder import read_tasks_file

    about = read_tasks_file(output)
    if as_json:
        tasks = {
            name: {**entry.model_dump(mode="json"), "baseline": adapters[name].baseline, "output": str(output / name)}
            for name, entry in about.tasks.items()
        }
        result = {**about.model_dump(mode="json"), "tasks": tasks, "seconds": seconds, "output": str(output)}
        print(dumps(result))
        return
    print_table(
        [
            {
                "task": name,
                "share": f"{100 * entry.share:.1f} %",
                "own": f"{entry.parameters:,}",
                **{
                    split: f"{entry.metric} {readable_score(own[entry.metric], adapters[name].rows.get(split))}"
                    if (own := entry.metrics.get(split))
                    else ""
                    for split in ("validation", "test")
                },
            }
            for name, entry in about.tasks.items()
        ]
    )
    print(
        f"method {about.method}: {about.shared_parameters:,} trained parameters shared by all tasks, beside their own"
    )
    print(f"mean score {about.score:.4f}; saved in {output} in {seconds:.0f} s")
