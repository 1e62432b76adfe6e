"""Analogies over domains of reviews: what one domain's labels and another's bare texts say of the other's labels.

    python -m studies.analogies --data DATA --work FOLDER [--seeds 0 1 2]

DATA holds a `fdu_mtl` folder. FOLDER keeps what was tuned, as `studies.merging` does. A run takes up where an earlier
one stopped.
"""

import argparse
import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from statistics import mean
from typing import Any

from studies import domains, figures
from studies.domains import EPOCHS, LENGTH
from studies.grid import Grid, Record, markdown
from studies.merging import own_result, scored

RATE = "1e-4"
PAIRS = (
    ("books", "kitchen_housewares"),
    ("kitchen_housewares", "books"),
    ("dvd", "electronics"),
    ("electronics", "dvd"),
)
"""Domains whose labels are known, and those that are asked for."""

SCALES = (0.0, 0.25, 0.5, 1.0)
"""Of the difference of the two domains; at 0, the model of the first domain stands as it is."""

WORDS = 24
"""Of each half of a text, at most."""

TRANSFER, ANALOGY, OWN = "the known domain's model", "the analogy", "the asked domain's own"


def measure(known: str, asked: str, seed: int, *, data: Path, work: Path) -> Mapping[str, Any]:
    """The scores of an analogy in the asked domain.

    The model is θ + τ(sentiment, known) + λ (τ(halves, asked) - τ(halves, known)), under the head of the known domain
    (Ilharco et al. 2023, section 5, with whether two halves are of one text in place of language modelling).

    Returns:
        validation, test: accuracy at each of `SCALES`; own: test accuracy of a model that was tuned with the asked
        domain's labels; seconds: of the processor.
    """
    import time

    import torch

    import graftwork as gw

    torch.set_num_threads(1)
    begun = time.process_time()
    domains.write(data, work / "data")
    backbone = gw.Backbone.load("minilm")
    tuned = partial(own_result, backbone, method="full-fine-tuning", rate=RATE, seed=seed, work=work)
    target = domains.task(work / "data", asked)
    start = tuned(domains.task(work / "data", known))
    away, near = (body_of(tuned(halves_task(work, name))) for name in (known, asked))
    found = [
        scored(replace(start, tensors=moved(start.tensors, away, near, scale)), backbone, target) for scale in SCALES
    ]
    return {
        "validation": [one["validation"] for one in found],
        "test": [one["test"] for one in found],
        "own": domains.scores_of(tuned(target))["test"],
        "seconds": round(time.process_time() - begun),
    }


def body_of(adapter: Any) -> dict[str, Any]:
    """The task vector of a full fine-tuning, less its head."""
    return {name: tensor for name, tensor in adapter.tensors.items() if not name.startswith("head.")}


def moved(start: Mapping[str, Any], away: Mapping[str, Any], near: Mapping[str, Any], scale: float) -> dict[str, Any]:
    """Tensors with so much of the difference of two vectors added; the head stays."""
    return {
        name: tensor + scale * (near[name] - away[name]) if name in near else tensor for name, tensor in start.items()
    }


def halves_task(work: Path, name: str) -> Any:
    """Whether two halves are of one text of a domain: a task that needs no labels."""
    from graftwork import Task

    folder = work / "halves" / name
    if not folder.exists():
        temporary = folder.with_name(f".{name}")
        temporary.mkdir(parents=True, exist_ok=True)
        for split in domains.ROWS:
            lines = (work / "data" / name / f"{split}.jsonl").read_text(encoding="utf-8").splitlines()
            rows = halves([json.loads(line)["text"] for line in lines])
            text = "".join(json.dumps(row) + "\n" for row in rows)
            (temporary / f"{split}.jsonl").write_text(text, encoding="utf-8")
        temporary.rename(folder)
    return Task(name=f"{name}-halves", data=str(folder), text="text", text_pair="pair", metrics="accuracy")


def halves(texts: Sequence[str]) -> list[dict[str, str]]:
    """The first words of each text, with the next ones of the same text or, for every other text, of the next one."""
    words = [text.split()[: 2 * WORDS] for text in texts]
    first = [" ".join(own[: len(own) // 2]) for own in words]
    second = [" ".join(own[len(own) // 2 :]) for own in words]
    return [
        {"text": one, "pair": second[i], "label": "same"}
        if i % 2 == 0
        else {"text": one, "pair": second[(i + 1) % len(second)], "label": "other"}
        for i, one in enumerate(first)
    ]


def of_ways(records: Sequence[Record]) -> dict[str, dict[tuple[str, str], list[float]]]:
    """By way and pair, the test accuracy of each seed; the scale is the best one on the asked domain's validation
    rows."""
    found: dict[str, dict[tuple[str, str], list[float]]] = {way: {} for way in (TRANSFER, ANALOGY, OWN)}
    for record in records:
        pair = record["known"], record["asked"]
        best = max(range(len(SCALES)), key=record["validation"].__getitem__)
        for way, score in ((TRANSFER, record["test"][0]), (ANALOGY, record["test"][best]), (OWN, record["own"])):
            found[way].setdefault(pair, []).append(score)
    return found


def seeds_means(pairs: Mapping[tuple[str, str], Sequence[float]]) -> list[float]:
    """One a seed, the mean over pairs."""
    return [mean(own) for own in zip(*pairs.values(), strict=True)]


def whole_seeds(records: Sequence[Record]) -> list[Record]:
    """The records of seeds of which every pair was measured, in the order of seeds."""
    seeds = sorted({record["seed"] for record in records})
    whole = [seed for seed in seeds if sum(record["seed"] == seed for record in records) == len(PAIRS)]
    return [record for seed in whole for record in records if record["seed"] == seed]


def report(records: list[Record]) -> str:
    """The page that is kept beside the records: of seeds of which every pair was measured."""
    own = whole_seeds(records)
    if not own:
        return "# Analogies over domains of reviews\n\nNo seed has all of its pairs yet.\n"
    ways = of_ways(own)
    lines = [
        [way, *(domains.interval(pairs[pair]) for pair in PAIRS), domains.interval(seeds_means(pairs))]
        for way, pairs in ways.items()
    ]
    scales = [
        [f"{scale:g}", *(domains.interval(values) for values in (at(own, i, "validation"), at(own, i, "test")))]
        for i, scale in enumerate(SCALES)
    ]
    header = ["way", *(f"{known} : {asked}" for known, asked in PAIRS), "mean"]
    seeds = len({record["seed"] for record in own})
    return f"""# Analogies over domains of reviews

A domain's sentiment without its labels: θ + τ(sentiment, known) + λ (τ(halves, asked) - τ(halves, known)), under the
known domain's head. A τ is what full fine-tuning changes in MiniLM. `halves` asks whether two pieces of {WORDS} words
are of one text, and needs no labels; Ilharco et al. (2023) have language modelling in its place, for which an encoder
of sentences has no head. {EPOCHS} epochs at {RATE} of {domains.TRAIN} texts, of at most {LENGTH} tokens. Test accuracy
in the asked domain, in percent, the mean over {seeds} seeds and half the width of its 95 % interval (Student's t); λ is
the best of {", ".join(f"{scale:g}" for scale in SCALES)} on the asked domain's validation rows, as in the paper: so 200
labels of it are read after all.
Made by `python -m studies.analogies`.

{markdown(header, lines)}

By λ, in the mean over the pairs:

{markdown(["λ", "validation, %", "test, %"], scales)}

![Accuracy in the asked domain, by way](analogies.svg)
"""


def at(records: Sequence[Record], scale: int, split: str) -> list[float]:
    """One a seed, the mean over pairs at one of `SCALES`."""
    seeds = dict.fromkeys(record["seed"] for record in records)
    return [mean(record[split][scale] for record in records if record["seed"] == seed) for seed in seeds]


def draw(records: Sequence[Record]) -> None:
    """The figure of the page."""
    values = {way: seeds_means(pairs) for way, pairs in of_ways(whole_seeds(records)).items() if pairs}
    if values:
        figures.bars(HERE.with_suffix(".svg"), values, "mean test accuracy, %")


HERE = Path(__file__)
GRID = Grid(HERE.with_suffix(".jsonl"), ("known", "asked", "seed"), HERE.with_name("ANALOGIES.md"), report)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m studies.analogies", description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="the folder that holds fdu_mtl")
    parser.add_argument("--work", type=Path, required=True, help="a folder for the domains' rows and what is tuned")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--workers", type=int, default=1, help="processes beside each other, one thread each")
    given = parser.parse_args()
    domains.write(given.data, given.work / "data")  # written once, before several processes read them
    wanted = [(known, asked, seed) for seed in given.seeds for known, asked in PAIRS]
    run = partial(measure, data=given.data, work=given.work)
    # Both directions of a pair share what is tuned: they are measured one after the other.
    GRID.run(wanted[::2], run, workers=given.workers)
    GRID.fill(wanted, run, workers=given.workers)
    draw(GRID.recorded())


if __name__ == "__main__":
    main()
