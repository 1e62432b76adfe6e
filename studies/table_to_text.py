"""Texts from tables: SmolLM2-135M tuned on a small part of E2E, its loss on held-out tables, and what it then says.

    python -m studies.table_to_text --data E2E [--workers 2] [--methods lora prefix-tuning]

E2E is the folder of the E2E release, of which the devset is used: some of its tables are trained on, others are held
out. A run takes up where an earlier one stopped.
"""

import argparse
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from studies.grid import Grid, Record, markdown

BATCH, STEPS = 8, 40
HELD_OUT, TEXTS_OF_EACH = 40, 3
GENERATED, SHOWN = 16, 3
UNTUNED = "untuned"
METHODS: dict[str, tuple[str, dict[str, Any]]] = {
    UNTUNED: ("lora", {}),
    "lora": ("lora", {}),
    "houlsby": ("houlsby", {}),
    "prefix-tuning": ("prefix-tuning", {"num_virtual_tokens": 10}),
}


def split(data: Path, folder: Path) -> list[str]:
    """Write a training and a validation file that share no table.

    Args:
        data: the release's folder.
        folder: where the files are written.

    Returns:
        The tables that are held out.
    """
    import pandas as pd

    rows = pd.read_csv(data / "devset.csv")
    tables = rows["mr"].drop_duplicates().sample(frac=1, random_state=0)
    held_out = tables[:HELD_OUT].tolist()
    rows[rows["mr"].isin(held_out)].groupby("mr").head(TEXTS_OF_EACH).to_csv(folder / "validation.csv", index=False)
    others = rows[~rows["mr"].isin(held_out)]
    others.sample(BATCH * STEPS, random_state=0).to_csv(folder / "train.csv", index=False)
    return held_out


def measure(row: str, *, data: Path) -> Mapping[str, Any]:
    """Tune once, on one thread.

    Args:
        row: of the table. The untuned model is a LoRA after one step at a rate of nothing.

    Returns:
        loss: mean over the held-out texts' tokens; bleu: of what is generated of the first held-out tables; trained:
        number of parameters; seconds: of the processor; said: the first tables, and what is generated of each.
    """
    import tempfile
    import time

    import torch

    import graftwork as gw
    from graftwork.training.planning import trained_for

    torch.set_num_threads(1)
    name, settings = METHODS[row]
    begun = time.process_time()
    backbone = gw.Backbone.load("smollm2", dtype="float32")
    changed: dict[str, Any] = {"max_steps": 1, "learning_rate": 1e-12} if row == UNTUNED else {"max_steps": STEPS}
    with tempfile.TemporaryDirectory() as folder:
        held_out = split(data, Path(folder))
        adapter = gw.tune(
            backbone,
            task=gw.Task(
                name="e2e",
                kind="generation",
                text="mr",
                label="ref",
                splits={"train": "train.csv", "validation": "validation.csv"},
                data=folder,
            ),
            method=gw.make_method(name, settings),
            per_device_train_batch_size=BATCH,
            per_device_eval_batch_size=GENERATED,
            generation_examples=GENERATED,
            max_new_tokens=60,
            prefix_cache="off",
            **changed,
        )
    scores = adapter.metrics["validation"]
    said = gw.AdaptedModel(backbone, {row: adapter}).predict(held_out[:SHOWN])
    return {
        "loss": scores["loss"],
        "bleu": scores["bleu"],
        "trained": 0 if row == UNTUNED else trained_for(adapter),
        "seconds": round(time.process_time() - begun),
        "said": {table: one.generated for table, one in zip(held_out, said, strict=False)},
    }


def report(records: list[Record]) -> str:
    """The page that is kept beside the records."""
    by_method = {record["method"]: record for record in records}
    rows = [by_method[name] for name in METHODS if name in by_method]
    table = markdown(
        ["method", "trained", "held-out loss", "BLEU", "seconds"],
        [[r["method"], f"{r['trained']:,}", f"{r['loss']:.3f}", f"{r['bleu']:.1f}", f"{r['seconds']}"] for r in rows],
    )
    shown = "\n\n".join(
        "\n".join([f"`{source}`", "", *(f"- {r['method']}: {r['said'][source]}" for r in rows)])
        for source in rows[0]["said"]
    )
    return f"""# Texts from tables

SmolLM2-135M (float32, seed 0), {STEPS} steps of {BATCH} texts of E2E's devset; all else is each method's default, but
for prefix tuning's 10 rows. Held out: {HELD_OUT} other tables, up to {TEXTS_OF_EACH} texts of each. BLEU is of what is
generated of {GENERATED} of them. Seconds are the processor's, one thread. Made by `python -m studies.table_to_text`.

{table}

## What they say

{shown}
"""


HERE = Path(__file__)
GRID = Grid(HERE.with_suffix(".jsonl"), ("method",), HERE.with_name("TABLE_TO_TEXT.md"), report)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m studies.table_to_text", description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="the folder of the E2E release")
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS), metavar="METHOD")
    parser.add_argument("--workers", type=int, default=1, help="processes beside each other, one thread each")
    given = parser.parse_args()
    GRID.fill([(name,) for name in given.methods], partial(measure, data=given.data), workers=given.workers)


if __name__ == "__main__":
    main()
