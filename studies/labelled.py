"""The tasks of the studies of defaults: public labelled texts, cut to a few thousand rows and split by a fixed draw.

They are built-in tasks, read and cleaned as graftwork does; a text is kept once. What was recorded before graftwork had
these tasks was measured on the same tables with two differences: misread texts were not put right, so that some counted
as different, and MRPC's rows were those of msr_paraphrase_train.txt, which has the validation rows as well.
"""

import json
import random
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from types import MappingProxyType
from typing import Any

Row = dict[str, Any]


@dataclass(frozen=True)
class Labelled:
    """One task.

    Attributes:
        what: what is asked, for readers.
        read: its rows out of the folder of all data: `text`, of a pair also `pair`, and `label`.
        train: rows to train on, at most.
        metric: what it is scored by.
        kind: the kind of task.
    """

    what: str
    read: Callable[[Path], Iterator[Row]]
    train: int = 2000
    metric: str = "accuracy"
    kind: str = "classification"

    def write(
        self, data: Path, folder: Path, *, share: float = 1.0, most: Mapping[str, int] = MappingProxyType({})
    ) -> None:
        """Write train.jsonl, validation.jsonl and test.jsonl: of the shuffled rows the first 800 are tested on, the
        next 400 choose the checkpoint, and what follows is trained on.

        Args:
            share: of the rows of each, the first so many.
            most: rows of a split, at most, by its name.
        """
        rows = list({(row["text"], row.get("pair")): row for row in self.read(data)}.values())
        random.Random(0).shuffle(rows)
        test, validation = min(800, len(rows) // 4), min(400, len(rows) // 8)
        splits = {
            "test": rows[:test],
            "validation": rows[test : test + validation],
            "train": rows[test + validation :][: self.train],
        }
        splits = {name: own[: round(share * len(own))] for name, own in splits.items()}
        splits = {name: own[: most.get(name, len(own))] for name, own in splits.items()}
        known = {row["label"] for row in splits["train"]}
        for name, own in splits.items():
            kept = [row for row in own if self.kind == "regression" or row["label"] in known]
            lines = "".join(json.dumps(row) + "\n" for row in kept)
            (folder / f"{name}.jsonl").write_text(lines, encoding="utf-8")

    def task(self, name: str, folder: str) -> Any:
        """The declaration of what was written to a folder."""
        from graftwork import Task

        return Task(
            name=name,
            kind=self.kind,
            data=folder,
            text="text",
            text_pair="pair" if "pairs" in self.what else None,
            metrics=self.metric,
        )


def known(name: str, data: str, **changes: Any) -> Callable[[Path], Iterator[Row]]:
    """The training rows of a built-in task, cleaned as it says.

    Args:
        name: the task.
        data: its file or folder, in the folder of all data.
        changes: fields of the task.
    """

    def read(root: Path) -> Iterator[Row]:
        from graftwork.tasks import find_task
        from graftwork.tasks.reading import open_splits

        task = find_task(name).override(data=str(root / data), **changes)
        columns = open_splits(task)["train"]().columns
        number = task.kind == "regression"
        pairs = columns[task.text_pair] if task.text_pair else None
        for i, (text, label) in enumerate(zip(columns[task.text], columns[task.label], strict=True)):
            second = {} if pairs is None else {"pair": pairs[i]}
            yield {"text": text, **second, "label": float(label) if number else label}

    return read


def domains(data: Path) -> Iterator[Row]:
    """Reviews, and which of the 16 domains they are from."""
    from graftwork.tasks.extra import DOMAINS

    for name in sorted(DOMAINS):
        for row in islice(known(f"fdu_mtl_{name.lower()}", "fdu_mtl")(data), 250):
            yield {"text": row["text"], "label": name}


def scored(
    name: str, method: str, *, data: Path, backbone: str = "minilm", share: float = 1.0, seeds: int = 1, **given: Any
) -> dict[str, Any]:
    """Tune a method on a task, on one thread, once a seed.

    Args:
        data: the folder of all data.
        share: of the task's rows, the first so many.
        given: what else `graftwork.tune` takes.

    Returns:
        scores: on the test split, one a seed; validation: on the other; seconds: of the processor, for all.
    """
    import time
    from tempfile import TemporaryDirectory

    import torch

    import graftwork as gw

    torch.set_num_threads(1)
    task, begun = TASKS[name], time.process_time()
    loaded = gw.Backbone.load(backbone)
    scores: dict[str, list[float]] = {"test": [], "validation": []}
    with TemporaryDirectory() as folder:
        task.write(data, Path(folder), share=share)
        declared = task.task(name, folder)
        for seed in range(seeds):
            adapter = gw.tune(loaded, task=declared, method=method, seed=seed, baseline="off", **given)
            for split, found in scores.items():
                found.append(round(adapter.metrics[split][task.metric], 4))
    seconds = round(time.process_time() - begun)
    return {"scores": scores["test"], "validation": scores["validation"], "seconds": seconds}


UNDECIDED = {
    "labels": None,
    "cleaning": {"drop_missing": True, "spellings": {"N": "No", "Y": "Yes", "NA": "N/A"}},
}
"""Of beliefs about the climate, with what nobody could decide as a third class."""

TASKS = {
    "airline": Labelled("sentiment of tweets, 3 classes", known("airline_sentiment", "crowdflower")),
    "corporate": Labelled("purpose of messages, 4 classes", known("corporate_messaging", "crowdflower")),
    "disasters": Labelled("tweets of disasters, 2 classes", known("disasters", "crowdflower")),
    "warming": Labelled("beliefs about the climate, 3 classes", known("global_warming", "crowdflower", **UNDECIDED)),
    "political": Labelled("bias, 2 classes", known("political_bias", "crowdflower/political_social_media.csv")),
    "emotions": Labelled("emotions, 18 classes", known("primary_emotions", "crowdflower")),
    "domains": Labelled("domain of reviews, 16 classes", domains),
    "spam-200": Labelled("spam, 2 classes, 200 rows", known("sms_spam", "sms_spam"), train=200),
    "sst2-200": Labelled("sentiment, 2 classes, 200 rows", known("sst2", "glue"), train=200),
    "cola": Labelled("acceptability", known("cola", "glue"), train=3000, metric="matthews_correlation"),
    "mrpc": Labelled("paraphrases, pairs", known("mrpc", "glue"), metric="accuracy"),
    "rte": Labelled("entailment, pairs", known("rte", "glue")),
    "stsb": Labelled("similarity, pairs, a number", known("stsb", "glue"), metric="spearman", kind="regression"),
}
"""By name."""
