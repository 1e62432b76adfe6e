"""The quality of the fast training step against a plain one: LoRA on four GLUE tasks with MiniLM.

The fast step is the default one: no dropout in the frozen backbone, texts of like length in a batch, and bf16 where the
machine is good at it. The plain one is float32 with the backbone's dropout and random batches.

    python -m studies.fast_step --data GLUE [--workers 2]

GLUE holds the tasks' folders. A run takes up where an earlier one stopped.
"""

import argparse
import math
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from studies.grid import REPORTED, Grid, Record, markdown

BATCH = 16
STEPS = {"stsb": 200, "mrpc": 150, "cola": 800, "rte": 160}
SEEDS = {"stsb": 5, "mrpc": 5, "cola": 1, "rte": 1}
MODES: dict[str, dict[str, Any]] = {
    "fast": {},
    "plain": {"backbone_dropout": "keep", "train_sampling_strategy": "random"},
}


def measure(task: str, mode: str, seed: int, *, data: str) -> Mapping[str, Any]:
    """Tune once, on one thread.

    Returns:
        metric: the task's main one; score: on its validation split; dtype: the frozen backbone's; seconds: of the
        processor.
    """
    import time

    import torch

    import graftwork as gw
    from graftwork.training.evaluation import task_of

    torch.set_num_threads(1)
    begun = time.process_time()
    backbone = gw.Backbone.load("minilm", dtype="auto" if mode == "fast" else "float32")
    adapter = gw.tune(
        backbone,
        task=task,
        method="lora",
        data=data,
        seed=seed,
        max_steps=STEPS[task],
        per_device_train_batch_size=BATCH,
        prefix_cache="off",
        **MODES[mode],
    )
    metric = REPORTED.get(task, task_of(adapter).main_metric)
    return {
        "metric": metric,
        "score": adapter.metrics["validation"][metric],
        "dtype": str(backbone.dtype).removeprefix("torch."),
        "seconds": round(time.process_time() - begun),
    }


def interval(differences: list[float]) -> tuple[float, float]:
    """The mean, and half the width of its 95 % interval (Student's t); infinite for a single one."""
    from scipy.stats import sem, t

    mean = sum(differences) / len(differences)
    if len(differences) < 2:
        return mean, math.inf
    return mean, float(sem(differences) * t.ppf(0.975, len(differences) - 1))


def report(records: list[Record]) -> str:
    """The page that is kept beside the records."""
    scores = {(record["task"], record["mode"], record["seed"]): record["score"] for record in records}
    metrics = {record["task"]: record["metric"] for record in records}
    rows = []
    for task in (task for task in STEPS if task in metrics):
        seeds = [seed for seed in range(SEEDS[task]) if all((task, mode, seed) in scores for mode in MODES)]
        if not seeds:
            continue
        by_mode = [[scores[task, mode, seed] for seed in seeds] for mode in MODES]
        mean, half = interval([fast - plain for fast, plain in zip(*by_mode, strict=True)])
        means = [f"{sum(values) / len(values):.4f}" for values in by_mode]
        difference = f"{mean:+.4f}" + ("" if math.isinf(half) else f" ± {half:.4f}")
        rows.append([task, metrics[task], str(STEPS[task]), str(len(seeds)), *means, difference])
    kinds = " and ".join(sorted({record["dtype"] for record in records if record["mode"] == "fast"}))
    table = markdown(["task", "metric", "steps", "seeds", *MODES, "fast − plain, 95 % interval"], rows)
    return f"""# The fast step's quality

LoRA with its defaults on MiniLM, {BATCH} texts a batch; scores of the validation split.
Fast: graftwork's defaults, here with the backbone in {kinds}. Plain: float32, the backbone's dropout, random batches.
The interval is Student's t over the seeds' differences. Made by `python -m studies.fast_step`.

{table}
"""


HERE = Path(__file__)
GRID = Grid(HERE.with_suffix(".jsonl"), ("task", "mode", "seed"), HERE.with_name("FAST_STEP.md"), report)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m studies.fast_step", description=__doc__.splitlines()[0])
    parser.add_argument("--data", required=True, help="a local GLUE folder")
    parser.add_argument("--workers", type=int, default=1, help="processes beside each other, one thread each")
    given = parser.parse_args()
    wanted = [(task, mode, seed) for task in STEPS for seed in range(SEEDS[task]) for mode in MODES]
    GRID.fill(wanted, partial(measure, data=given.data), workers=given.workers)


if __name__ == "__main__":
    main()
