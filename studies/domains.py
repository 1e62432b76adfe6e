"""The 16 domains of reviews of Liu et al. 2017 (FDU-MTL) as tasks: for studies of what comes of several adapters."""

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from graftwork.data.table import Table
from graftwork.tasks.extra import DOMAINS, REVIEWS
from graftwork.tasks.reading import open_splits

TRAIN, VALIDATION, TEST = 400, 200, 400
"""Rows of each domain at most: of its training file the first are trained on, and the next choose the checkpoint."""

ROWS = {"train": TRAIN, "validation": VALIDATION, "test": TEST}

LENGTH, EPOCHS = 64, 5
"""Of every training: tokens of a text at most, and epochs."""

T_95 = {2: 12.71, 3: 4.303, 4: 3.182, 5: 2.776}
"""By the number of seeds, Student's t for intervals of 95 %."""


def names() -> list[str]:
    """The domains, in the order of their names."""
    return sorted(DOMAINS)


def write(data: Path, folder: Path) -> None:
    """Write each domain's rows as a task's folder, unless they are there."""
    for name in names():
        own = folder / name
        if own.exists():
            continue
        read = open_splits(REVIEWS[f"fdu_mtl_{name.lower()}"].override(data=str(data / "fdu_mtl")))
        train, test = (_rows(read[split]()) for split in ("train", "test"))
        splits = {"train": train[:TRAIN], "validation": train[TRAIN : TRAIN + VALIDATION], "test": test[:TEST]}
        temporary = folder / f".{name}"
        temporary.mkdir(parents=True, exist_ok=True)
        for split, rows in splits.items():
            text = "".join(json.dumps({"text": text, "label": label}) + "\n" for label, text in rows)
            (temporary / f"{split}.jsonl").write_text(text, encoding="utf-8")
        temporary.rename(own)


def task(folder: Path, name: str) -> Any:
    """A domain's task, over what `write` wrote."""
    from graftwork import Task

    return Task(name=name, data=str(folder / name), text="text", metrics="accuracy")


def settings(rate: str, seed: int) -> dict[str, Any]:
    """The training settings that all ways share."""
    return {
        "learning_rate": float(rate),
        "num_train_epochs": EPOCHS,
        "max_length": LENGTH,
        "seed": seed,
        "baseline": "off",
    }


def own_adapter(backbone: Any, task: Any, rate: str, seed: int, work: Path) -> Any:
    """A task's own adapter (Pfeiffer's bottlenecks), tuned unless another study has done it in the same folder."""
    import graftwork as gw
    from graftwork.training.outputs import Output

    output = work / "single" / rate / f"{seed}" / task.name
    if output.exists():
        return gw.Adapter.load(output)
    begun = Output(output).has_traces()
    return gw.tune(backbone, task=task, method="pfeiffer", output=output, resume=begun, **settings(rate, seed))


def interval(values: Sequence[float]) -> str:
    """The mean over seeds, in percent, and half the width of its 95 % interval."""
    middle = f"{100 * mean(values):.1f}"
    return middle if len(values) < 2 else f"{middle} ± {100 * half_width(values):.1f}"


def half_width(values: Sequence[float]) -> float:
    """Half the width of the 95 % interval of a mean over seeds (Student's t); 0 of one seed."""
    return 0.0 if len(values) < 2 else T_95.get(len(values), 1.96) * stdev(values) / len(values) ** 0.5


def best_rate(records: Sequence[Mapping[str, Any]], how: str) -> str:
    """The rate with the best mean validation score of a way, with seed 0."""
    tried = {r["rate"]: mean(r["validation"].values()) for r in records if r["how"] == how and r["seed"] == 0}
    return max(tried, key=tried.__getitem__)


def at_best_rate(records: Sequence[Mapping[str, Any]], hows: Iterable[str]) -> dict[str, list[Mapping[str, Any]]]:
    """By way, the records at its best rate; none of a way that was not measured with seed 0."""
    known = [how for how in hows if any(r["how"] == how and r["seed"] == 0 for r in records)]
    best = {how: best_rate(records, how) for how in known}
    return {how: [r for r in records if r["how"] == how and r["rate"] == rate] for how, rate in best.items()}


def means(records: Sequence[Mapping[str, Any]], hows: Iterable[str]) -> dict[str, list[float]]:
    """By way, the mean test accuracy over the domains, one a seed, at its best rate."""
    return {how: [mean(r["test"].values()) for r in own] for how, own in at_best_rate(records, hows).items()}


def scores_of(adapter: Any, metric: str = "accuracy") -> Mapping[str, float]:
    """Validation and test score of a tuned adapter."""
    return {split: round(adapter.metrics[split][metric], 4) for split in ("validation", "test")}


def _rows(table: Table) -> list[tuple[str, str]]:
    """Label and text of each row."""
    return list(zip(table.columns["label"], table.columns["text"], strict=True))
