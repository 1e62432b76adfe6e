"""The tasks of the studies of defaults: public labelled texts, cut to a few thousand rows and split by a fixed draw.

Real files are read as they are distributed: in differing encodings, with missing labels and texts that occur twice.
What has no label is left out, and a text is kept once.
"""

import csv
import io
import json
import random
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
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


def crowdflower(file: str, text: str, label: str, **renamed: str) -> Callable[[Path], Iterator[Row]]:
    """Rows of one of the tables of crowdflower.com; `renamed` joins labels, and leaves out those that become empty."""

    def read(data: Path) -> Iterator[Row]:
        raw = (data / "crowdflower" / file).read_bytes()
        try:
            table = raw.decode("utf-8-sig")
        except UnicodeDecodeError:
            table = raw.decode("cp1252", "replace")
        for row in csv.DictReader(io.StringIO(table)):
            said = row[label].strip().lower()
            said = renamed.get(said.replace(" ", "_").replace("/", "_").replace("'", ""), said)
            if said and row[text].strip():
                yield {"text": row[text].strip(), "label": said}

    return read


def glue(
    file: str, text: int, label: int, pair: int | None = None, *, header: bool = True, number: bool = False
) -> Any:
    """Rows of a table of GLUE, whose columns are counted from 0."""

    def read(data: Path) -> Iterator[Row]:
        lines = (data / "glue" / file).read_text(encoding="utf-8-sig").splitlines()[1 if header else 0 :]
        for fields in (line.split("\t") for line in lines):
            if len(fields) > max(text, label, pair or 0):
                second = {} if pair is None else {"pair": fields[pair]}
                yield {"text": fields[text], **second, "label": float(fields[label]) if number else fields[label]}

    return read


def spam(data: Path) -> Iterator[Row]:
    for line in (data / "sms_spam" / "SMSSpamCollection").read_text(encoding="utf-8").split("\n"):
        label, tab, text = line.partition("\t")
        if tab and text.strip():
            yield {"text": text.strip(), "label": label}


def domains(data: Path) -> Iterator[Row]:
    """Reviews, and which of the 16 domains they are from."""
    for file in sorted((data / "fdu_mtl").glob("*.task.train")):
        for line in file.read_text(encoding="utf-8", errors="replace").split("\n")[:250]:
            _, tab, text = line.partition("\t")
            if tab and text.strip():
                yield {"text": text.strip(), "label": file.name.partition(".")[0]}


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


TASKS = {
    "airline": Labelled("sentiment of tweets, 3 classes", crowdflower("Tweets.csv", "text", "airline_sentiment")),
    "corporate": Labelled(
        "purpose of messages, 4 classes", crowdflower("Corporate-messaging-DFE.csv", "text", "category")
    ),
    "disasters": Labelled(
        "tweets of disasters, 2 classes",
        crowdflower("socialmedia-disaster-tweets-DFE.csv", "text", "choose_one", cant_decide=""),
    ),
    "warming": Labelled(
        "beliefs about the climate, 3 classes",
        crowdflower("1377884570_tweet_global_warming.csv", "tweet", "existence", yes="y", no="n", n_a="na"),
    ),
    "political": Labelled("bias, 2 classes", crowdflower("political_social_media.csv", "text", "bias")),
    "emotions": Labelled("emotions, 18 classes", crowdflower("primary-plutchik-wheel-DFE.csv", "sentence", "emotion")),
    "domains": Labelled("domain of reviews, 16 classes", domains),
    "spam-200": Labelled("spam, 2 classes, 200 rows", spam, train=200),
    "sst2-200": Labelled("sentiment, 2 classes, 200 rows", glue("SST-2/train.tsv", 0, 1), train=200),
    "cola": Labelled(
        "acceptability", glue("CoLA/train.tsv", 3, 1, header=False), train=3000, metric="matthews_correlation"
    ),
    "mrpc": Labelled("paraphrases, pairs", glue("MRPC/msr_paraphrase_train.txt", 3, 0, 4), metric="accuracy"),
    "rte": Labelled("entailment, pairs", glue("RTE/train.tsv", 1, 3, 2)),
    "stsb": Labelled(
        "similarity, pairs, a number",
        glue("STS-B/train.tsv", 7, 9, 8, number=True),
        metric="spearman",
        kind="regression",
    ),
}
"""By name."""
