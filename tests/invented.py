"""Runs that were never run: three tasks, methods of several sizes, three seeds, with their folders."""

import json
import random
from pathlib import Path

from graftwork.settings.yamlfile import dump_yaml
from graftwork.studies.results import Result

TASKS = {"cola": "matthews_correlation", "stsb": "r2", "films": "accuracy", "news": "accuracy"}
LABELS = {"cola": ["unacceptable", "acceptable"], "stsb": None, "films": ["bad", "good"], "news": ["a", "b", "c"]}
HOUSLBY = {"norms": "all", "share_layers": None, "share_positions": False, "extra_classifier": False}
METHODS = {
    ("full", ""): ({"name": "full-fine-tuning", "top_layers": None, "random_subset": None}, 22_000_000, 0.80),
    ("top", "top_layers=1"): ({"name": "full-fine-tuning", "top_layers": 1}, 1_700_000, 0.66),
    ("top", "top_layers=3"): ({"name": "full-fine-tuning", "top_layers": 3}, 5_300_000, 0.73),
    ("houlsby", "bottleneck=8"): ({"name": "houlsby", "bottleneck": 8, "init_std": 0.01, **HOUSLBY}, 90_000, 0.74),
    ("houlsby", ""): ({"name": "houlsby", "bottleneck": 64, "init_std": 0.01, **HOUSLBY}, 600_000, 0.79),
    ("houlsby", "init_std=0.1"): ({"name": "houlsby", "bottleneck": 64, "init_std": 0.1, **HOUSLBY}, 600_000, 0.5),
    ("bitfit", ""): ({"name": "bitfit"}, 26_000, 0.70),
}
HARDER = {"cola": -0.3, "stsb": 0.05, "films": 0.0, "news": 0.1}


def invented(folder: Path, *, tasks=tuple(TASKS), seeds=3, test=True, methods=tuple(METHODS)) -> list[Result]:
    """Results, each with a folder there as a study has it."""
    source, results = random.Random(0), []
    for method, setting in methods:
        declared, trained, score = METHODS[method, setting]
        for task in tasks:
            metric = TASKS[task]
            for seed in range(seeds):
                run = folder / f"{method}-{setting}-{task}-{seed}"
                run.mkdir(parents=True)
                value = score + HARDER[task] + source.uniform(-0.02, 0.02)
                scores = {"loss": 1 - value, metric: value, **({"spearman": value + 0.01} if task == "stsb" else {})}
                kind = "regression" if task == "stsb" else "classification"
                recipe = {"task": {"name": task, "kind": kind, "labels": LABELS[task]}, "method": declared}
                (run / "recipe.yaml").write_text(dump_yaml(recipe))
                lines = [
                    {"step": step, "epoch": step / 10, "split": "validation", metric: value * (1 - 1 / (1 + step / 10))}
                    for step in (10, 20, 30)
                ]
                lines += [{"step": 5, "epoch": 0.5, "split": "train", "loss": 0.3}]
                lines += [{"step": None, "epoch": None, "split": "validation", metric: value}]
                (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
                names = LABELS[task] or [0.0, 1.0]
                rows = [
                    {"row": i, "label": names[i % len(names)], "prediction": source.choice(names)} for i in range(20)
                ]
                (run / "predictions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
                results.append(
                    Result(
                        task=task,
                        method=method,
                        setting=setting,
                        learning_rate=1e-3,
                        seed=seed,
                        main_metric=metric,
                        validation={name: own - 0.01 for name, own in scores.items()},
                        test=scores if test else {},
                        trained_parameters=trained + 800,
                        head_parameters=800,
                        backbone_parameters=22_700_000,
                        nbytes=4 * trained,
                        seconds=30 + trained / 1e6 + seed,
                        peak_memory=500_000_000 + 12 * trained,
                        folder=run,
                    )
                )
    return results
