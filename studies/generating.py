"""A hypernetwork over domains of reviews against single adapters: score, bytes a task, and domains that it never saw.

    python -m studies.generating --data DATA --work FOLDER [--hows hyperformer++] [--seeds 0 1 2]

DATA holds a `fdu_mtl` folder. The last four domains are held out; of each, 16 or 64 examples are given. A run takes up
where an earlier one stopped. The rate of each way is the best of a few on the validation rows, with seed 0.
"""

import argparse
import json
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from statistics import mean
from tempfile import TemporaryDirectory
from typing import Any

from studies import domains, figures
from studies.domains import EPOCHS, LENGTH
from studies.grid import Grid, Record, markdown

HELD_OUT, SHOTS = 4, (16, 64)
MANY: dict[str, tuple[str, ...]] = {
    "single": ("3e-3",),
    "multi-task": ("1e-3",),
    "hyperformer++": ("1e-4", "3e-4", "1e-3"),
}
"""By way, the rates that are tried. Those of the first two are what `studies.fusing` found best of 1e-3 and 3e-3."""

FEW = {"head-only": 200, "pfeiffer": 200}
"""By method, the steps in which it is tuned on a few examples, as an embedding is."""


def measure(how: str, rate: str, seed: int, *, data: Path, work: Path) -> Mapping[str, Any]:
    """The scores of the domains that are known, and of those that are held out, from a few examples.

    Returns:
        validation, test: accuracy by known domain; few: test accuracy of each held-out domain, by the way that it is
        learnt and the number of examples; bytes: that each further task takes; whole: those of one adapter's file.
    """
    import time

    import torch

    import graftwork as gw
    from graftwork.adapters.contents import size_of_file

    torch.set_num_threads(1)
    begun = time.process_time()
    domains.write(data, work / "data")
    backbone = gw.Backbone.load("minilm")
    names = domains.names()
    tasks = {name: domains.task(work / "data", name) for name in names[:-HELD_OUT]}
    few: dict[str, dict[str, dict[str, float]]] = {}
    if how == "single":
        found = {name: domains.own_adapter(backbone, task, rate, seed, work) for name, task in tasks.items()}
        few = {method: _few(method, backbone, names, work, seed) for method in FEW}
    else:
        method = "pfeiffer" if how == "multi-task" else how
        with TemporaryDirectory(dir=work) as folder:
            output = Path(folder) / "together"
            settings = domains.settings(rate, seed)
            found = gw.tune_tasks(backbone, list(tasks.values()), method=method, output=output, **settings)
            if how != "multi-task":
                few = {how: _few(output, backbone, names, work, seed)}
    scores = {name: domains.scores_of(adapter) for name, adapter in found.items()}
    first = next(iter(found.values()))
    own, whole = first.num_bytes, first.num_bytes
    if how == "hyperformer++":
        own = gw.generate_adapter(first, backbone=backbone).own_bytes
    elif how == "multi-task":
        own = size_of_file({name: t.shape for name, t in first.tensors.items() if name.startswith("head.")})
    return {
        "validation": {name: own["validation"] for name, own in scores.items()},
        "test": {name: own["test"] for name, own in scores.items()},
        "few": few,
        "bytes": own,
        "whole": whole,
        "seconds": round(time.process_time() - begun),
    }


def _few(given: str | Path, backbone: Any, names: list[str], work: Path, seed: int) -> dict[str, dict[str, float]]:
    """Test accuracy of held-out domains from a few examples: by a hypernetwork, or by a method from the start."""
    import graftwork as gw
    from graftwork.training.evaluation import evaluate

    found: dict[str, dict[str, float]] = {}
    for name in names[-HELD_OUT:]:
        task = domains.task(work / "data", name)
        lines = (work / "data" / name / "train.jsonl").read_text(encoding="utf-8").splitlines()
        for shots in SHOTS:
            with TemporaryDirectory() as folder:
                file = Path(folder) / "examples.jsonl"
                file.write_text("\n".join(_balanced(lines, shots)) + "\n", encoding="utf-8")
                training: dict[str, Any] = {"max_length": LENGTH, "seed": seed}
                if isinstance(given, str):
                    few = task.override(data=folder, splits={"train": file.name, "validation": file.name})
                    steps = {"max_steps": FEW[given], "eval_strategy": "steps", "eval_steps": 20, "baseline": "off"}
                    adapter = gw.tune(backbone, task=few, method=given, **steps, **training)
                else:
                    adapter = gw.generate_adapter(given, task, examples=file, backbone=backbone, **training).adapter
            scored = evaluate(adapter, backbone=backbone, data=str(work / "data" / name / "test.jsonl"))
            found.setdefault(f"{shots}", {})[name] = round(scored["accuracy"], 4)
    return found


def _balanced(lines: list[str], shots: int) -> list[str]:
    """The first lines, as many of each class."""
    by_class: dict[str, list[str]] = {}
    for line in lines:
        by_class.setdefault(json.loads(line)["label"], []).append(line)
    return [line for own in by_class.values() for line in own[: shots // len(by_class)]]


def report(records: list[Record]) -> str:
    """The page that is kept beside the records."""
    known, held = [], []
    for how, own in domains.at_best_rate(records, MANY).items():
        rate = own[0]["rate"]
        scores = domains.interval([mean(r["test"].values()) for r in own])
        known.append([how, rate, scores, f"{own[0]['bytes'] / 1024:,.1f}", f"{len(own)}"])
        for way in own[0]["few"]:
            cells = [domains.interval([mean(r["few"][way][f"{shots}"].values()) for r in own]) for shots in SHOTS]
            held.append([way, *cells, f"{len(own)}"])
    header = ["way", "rate", "mean test accuracy, %", "KB a further task", "seeds"]
    return f"""# A hypernetwork over domains of reviews

MiniLM; {EPOCHS} epochs of at most {domains.TRAIN} reviews a domain, texts of at most {LENGTH} tokens. `single`:
Pfeiffer's bottlenecks (reduction 16), an adapter a domain; `multi-task`: one such adapter for all, a head each;
`hyperformer++`: a hypernetwork for all. Test accuracy in the mean over 12 domains, and half the width of its 95 %
interval over seeds. Rates are the best on the validation rows with seed 0: of `single` and `multi-task` of 1e-3 and
3e-3, as `studies.fusing` found over all 16; of `hyperformer++` of {", ".join(MANY["hyperformer++"])}.
Made by `python -m studies.generating`.

{markdown(header, known)}

A further task takes of `multi-task` a head, but the adapter is tuned anew for all; of `hyperformer++` an embedding and
a head, and the rest stays.

Four domains that were held out, from a few examples: by the hypernetwork, of which only the embedding and the head are
trained, and by methods from the start, for as many steps. The hypernetwork knows what is asked from twelve other
domains, which the others do not; a new head on the adapter of `multi-task` was not measured.

{markdown(["way", *(f"{shots} examples" for shots in SHOTS), "seeds"], held)}

![Mean test accuracy over the known domains, by way](generating.svg)
"""


def draw(records: list[Record]) -> None:
    """The figure of the page."""
    figures.bars(HERE.with_suffix(".svg"), domains.means(records, MANY), "mean test accuracy, %")


HERE = Path(__file__)
GRID = Grid(HERE.with_suffix(".jsonl"), ("how", "rate", "seed"), HERE.with_name("GENERATING.md"), report)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m studies.generating", description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="the folder that holds fdu_mtl")
    parser.add_argument("--work", type=Path, required=True, help="a folder for the domains' rows")
    parser.add_argument("--hows", nargs="+", choices=list(MANY), default=list(MANY))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--workers", type=int, default=1, help="processes beside each other, one thread each")
    given = parser.parse_args()
    run = partial(measure, data=given.data, work=given.work)
    for how in given.hows:
        GRID.run([(how, rate, 0) for rate in MANY[how]], run, workers=given.workers)
        best = domains.best_rate(GRID.recorded(), how)
        GRID.run([(how, best, seed) for seed in given.seeds], run, workers=given.workers)
    draw(GRID.recorded())
    GRID.fill([], run, workers=given.workers)


if __name__ == "__main__":
    main()
