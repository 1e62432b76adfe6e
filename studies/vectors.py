"""What lies on the line that a task vector spans: WiSE-FT, negation, and donors that are merged into RTE.

    python -m studies.vectors --data DATA --work FOLDER [--studies wise-ft negation donors] [--seeds 0 1 2]

DATA holds the folders `crowdflower`, `fdu_mtl` and `glue`. FOLDER keeps what was tuned, as `studies.merging` does. A
run takes up where an earlier one stopped.
"""

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from statistics import mean
from typing import Any

from studies import domains, figures, groups
from studies.domains import EPOCHS, LENGTH
from studies.grid import Grid, Record, markdown
from studies.merging import GROUP, NO_ENTROPY, own_result

RATE, HEAD_RATE = "1e-4", "1e-3"
"""Of full fine-tuning, and of heads alone."""

ALPHAS = (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)
SOURCES, OTHERS = ("books", "kitchen_housewares"), 100
"""Domains that are fine-tuned on, and rows that are scored of each other domain."""

SCALES = (0.0, 0.25, 0.5, 0.75, 1.0)
KEPT = 0.95
"""Of the other tasks' score, what is to be left of it when a vector is subtracted (Ilharco et al. 2023)."""

POINTS, TARGET = 50, "rte"
STUDIES = ("wise-ft", "negation", "donors")


def measure(study: str, of: str, seed: int, *, data: Path, work: Path) -> Mapping[str, Any]:
    """One line.

    Args:
        study: which of `STUDIES`.
        of: the domain that is fine-tuned on, the task whose vector is subtracted, or the donor.

    Returns:
        at: the places on the line; scores: by name of a curve, the scores there; seconds: of the processor.
    """
    import time

    import torch

    import graftwork as gw

    torch.set_num_threads(1)
    begun = time.process_time()
    backbone = gw.Backbone.load("minilm")
    line = {"wise-ft": wise_ft, "negation": negation, "donors": donor}[study]
    return {**line(backbone, of, seed, data, work), "seconds": round(time.process_time() - begun)}


def wise_ft(backbone: Any, source: str, seed: int, data: Path, work: Path) -> dict[str, Any]:
    """From a head on the pre-trained body to the model that is fine-tuned from there, head included: test scores of the
    domain and, in the mean, of the others (Wortsman et al. 2022)."""
    domains.write(data, work / "data")
    task = domains.task(work / "data", source)
    before = beginning(backbone, task, seed, work)
    after = fine_tuned_from(before, backbone, task, seed, work)
    others = [name for name in domains.names() if name != source]
    found: dict[str, list[float]] = {"own": [], "others": []}
    for alpha in ALPHAS:
        between = replace(after, tensors=interpolated(before.tensors, after.tensors, alpha))
        found["own"].append(accuracy(between, backbone, work / "data" / source))
        outside = [accuracy(between, backbone, work / "data" / name, OTHERS) for name in others]
        found["others"].append(round(mean(outside), 4))
    return {"at": list(ALPHAS), "scores": found}


def interpolated(before: Mapping[str, Any], after: Mapping[str, Any], alpha: float) -> dict[str, Any]:
    """What lies between the tensors of two adapters of one method."""
    from graftwork.arithmetic import interpolate

    return interpolate([dict(before), dict(after)], t=alpha)


def beginning(backbone: Any, task: Any, seed: int, work: Path) -> Any:
    """The pre-trained body under a head that was tuned alone, as an adapter that full fine-tuning can go on from."""
    import graftwork as gw
    from graftwork.adapters import TaskIdentity

    alone = own_result(backbone, task, "head-only", HEAD_RATE, seed, work)
    labels = TaskIdentity(name=task.name, labels=alone.task.labels)
    new = gw.Adapter.create(backbone, gw.FullFineTuning(), alone.head, labels, seed=seed)
    heads = {name: tensor for name, tensor in alone.tensors.items() if name.startswith("head.")}
    return replace(new, tensors={**new.tensors, **heads}, task=alone.task)


def fine_tuned_from(start: Any, backbone: Any, task: Any, seed: int, work: Path) -> Any:
    """Full fine-tuning of a task that begins with an adapter, unless it is there."""
    import graftwork as gw
    from graftwork.training import tune_recipe
    from graftwork.training.outputs import Output
    from graftwork.training.recipe import recipe_of

    output = work / "wise-ft" / RATE / f"{seed}" / task.name
    if output.exists():
        return gw.Adapter.load(output)
    first = output.parent / f"{task.name}, before"
    if not first.exists():
        start.save(first)
    recipe = recipe_of(
        backbone,
        task=task,
        method="full-fine-tuning",
        data=None,
        pooling="auto",
        add_tokens=None,
        training=domains.settings(RATE, seed),
        start=str(first),
    )
    return tune_recipe(recipe, output=output, backbone=backbone, resume=Output(output).has_traces())


def accuracy(adapter: Any, backbone: Any, folder: Path, rows: int | None = None) -> float:
    """On the test rows of a domain, or the first of them."""
    from tempfile import TemporaryDirectory

    from graftwork.training.evaluation import evaluate

    with TemporaryDirectory() as temporary:
        file = Path(temporary) / "rows.jsonl"
        lines = (folder / "test.jsonl").read_text(encoding="utf-8").splitlines(keepends=True)
        file.write_text("".join(lines[:rows]), encoding="utf-8")
        return round(evaluate(adapter, backbone=backbone, data=str(file))["accuracy"], 4)


def negation(backbone: Any, target: str, seed: int, data: Path, work: Path) -> dict[str, Any]:
    """A task's vector is subtracted from the pre-trained body, under heads that were tuned on it alone: validation
    scores of the task and, in the mean and relative to those at 0, of the others (Ilharco et al. 2023)."""
    from graftwork.arithmetic.adapters.scores import with_head_of

    tasks = groups.tasks_of(GROUP, data, work)
    heads = {name: own_result(backbone, task, "head-only", HEAD_RATE, seed, work) for name, task in tasks.items()}
    vector = own_result(backbone, tasks[target], "full-fine-tuning", RATE, seed, work)

    def score(body: Any, name: str) -> float:
        head = heads[name]
        return validation(replace(with_head_of(body, head), recipe=head.recipe), backbone, tasks[name])

    found: dict[str, list[float]] = {"forgotten": [], "others": []}
    first: dict[str, float] = {}
    for scale in SCALES:
        body = replace(vector, tensors={name: -scale * tensor for name, tensor in vector.tensors.items()})
        scores = {name: score(body, name) for name in tasks}
        first = first or scores
        found["forgotten"].append(scores[target])
        others = [scores[name] / first[name] for name in tasks if name != target and first[name] > 0]
        found["others"].append(round(mean(others), 4))
    return {"at": list(SCALES), "scores": found}


def validation(adapter: Any, backbone: Any, task: Any) -> float:
    """The main metric on a task's validation rows."""
    from graftwork.training.evaluation import evaluate

    scores = evaluate(adapter, backbone=backbone, split="validation", data=task.data)
    return round(float(scores[task.main_metric]), 4)


def donor(backbone: Any, name: str, seed: int, data: Path, work: Path) -> dict[str, Any]:
    """A donor's full model merged into RTE's by Fisher information: test score before and after, with the share that is
    best on the validation rows (Matena & Raffel 2022)."""
    import graftwork as gw
    from graftwork.training.evaluation import evaluate

    tasks = groups.tasks_of(GROUP, data, work)
    target, other = (own_result(backbone, tasks[own], "full-fine-tuning", RATE, seed, work) for own in (TARGET, name))
    settings = gw.arithmetic.FisherSettings(examples=256)
    found = gw.arithmetic.donor_merge(target, other, backbone, points=POINTS, fisher=settings)
    before, after = (
        round(evaluate(own, backbone=backbone, split="test", data=tasks[TARGET].data)["accuracy"], 4)
        for own in (target, found.adapter)
    )
    return {"at": [found.weight], "scores": {"before": [before], "after": [after]}}


def wanted(studies: Sequence[str], seeds: Sequence[int]) -> list[tuple[str, str, int]]:
    """What is measured of each study."""
    tasks = groups.GROUPS[GROUP]
    ofs = {
        "wise-ft": SOURCES,
        "negation": [name for name in tasks if name not in NO_ENTROPY],
        "donors": [name for name in tasks if name != TARGET],
    }
    return [(study, of, seed) for study in studies for seed in seeds for of in ofs[study]]


def whole_seeds(records: Sequence[Record], study: str) -> list[Record]:
    """The records of a study, of seeds of which everything was measured."""
    own = [record for record in records if record["study"] == study]
    there = {(study, record["of"], record["seed"]) for record in own}
    return [record for record in own if {*wanted([study], [record["seed"]])} <= there]


def averaged(records: Sequence[Record], study: str) -> dict[str, list[list[float]]]:
    """By curve of a study, one curve a seed: the mean over what was measured with it."""
    own = whole_seeds(records, study)
    seeds = sorted({record["seed"] for record in own})
    curves = own[0]["scores"] if own else {}
    return {
        curve: [
            [mean(place) for place in zip(*(r["scores"][curve] for r in own if r["seed"] == seed), strict=True)]
            for seed in seeds
        ]
        for curve in curves
    }


def report(records: list[Record]) -> str:
    """The page that is kept beside the records."""
    parts = [title(study, own) for study in STUDIES if (own := whole_seeds(records, study))]
    return f"""# Lines that task vectors span

MiniLM; full fine-tuning at {RATE}, heads alone at {HEAD_RATE}, {EPOCHS} epochs, texts of at most {LENGTH} tokens. Means
over seeds, and half the width of their 95 % interval (Student's t). Made by `python -m studies.vectors`.

{chr(10).join(parts)}"""


def title(study: str, records: Sequence[Record]) -> str:
    """A section of the page."""
    if study == "donors":
        return donors_table(records)
    own, at = averaged(records, study), records[0]["at"]
    seeds = len({record["seed"] for record in records})
    lines = [
        [f"{place:g}", *(domains.interval([curve[i] for curve in own[name]]) for name in own)]
        for i, place in enumerate(at)
    ]
    if study == "wise-ft":
        return f"""## WiSE-FT

From a head on the pre-trained body (α = 0) to the model that is fine-tuned from there (α = 1), head included; on
{" and ".join(SOURCES)}. Test accuracy in the domain, and in the mean over the others ({OTHERS} rows of each); {seeds}
seeds.

{markdown(["α", "in the domain, %", "other domains, %"], lines)}

![Accuracy along the line](vectors-wise-ft.svg)
"""
    return f"""## Negation

A task's vector times λ is subtracted from the pre-trained body; every task is read by a head that was tuned on that
body alone. Validation score of the task, and of the other tasks relative to λ = 0; in the mean over the tasks;
{seeds} seeds.

{markdown(["λ", "the task that is to be forgotten, %", "the others, % of λ = 0"], lines)}

![Scores along the line](vectors-negation.svg)
"""


def donors_table(records: Sequence[Record]) -> str:
    """RTE with each donor."""
    lines = []
    for name in dict.fromkeys(record["of"] for record in records):
        own = [record for record in records if record["of"] == name]
        before, after = ([record["scores"][which][0] for record in own] for which in ("before", "after"))
        gains = [b - a for a, b in zip(before, after, strict=True)]
        share = f"{1 - mean(record['at'][0] for record in own):.2f}"
        lines.append([name, *map(domains.interval, (before, after, gains)), share, f"{len(own)}"])
    header = ["donor", "RTE alone, %", "with the donor, %", "gain, points", "the donor's share", "seeds"]
    return f"""## Donors

RTE's model merged with another task's by Fisher information (256 examples); the share is the best of {POINTS} on the
validation rows. Test accuracy.

{markdown(header, lines)}
"""


def draw(records: Sequence[Record]) -> None:
    """The figures of the page."""
    for study, across in {"wise-ft": "α", "negation": "λ"}.items():
        own = averaged(records, study)
        if own:
            at = next(record["at"] for record in records if record["study"] == study)
            curves = {name: [mean(place) for place in zip(*seeds, strict=True)] for name, seeds in own.items()}
            figures.lines(HERE.with_name(f"vectors-{study}.svg"), at, curves, across, "mean score")


HERE = Path(__file__)
GRID = Grid(HERE.with_suffix(".jsonl"), ("study", "of", "seed"), HERE.with_name("VECTORS.md"), report)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m studies.vectors", description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="the folder of crowdflower, fdu_mtl and glue")
    parser.add_argument("--work", type=Path, required=True, help="a folder for the tasks' rows and results")
    parser.add_argument("--studies", nargs="+", choices=STUDIES, default=list(STUDIES))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--workers", type=int, default=1, help="processes beside each other, one thread each")
    given = parser.parse_args()
    groups.tasks_of(GROUP, given.data, given.work)  # written once, before several processes read them
    run = partial(measure, data=given.data, work=given.work)
    failures = GRID.run(wanted(given.studies, given.seeds), run, workers=given.workers)
    draw(GRID.recorded())
    GRID.fill([], run, workers=given.workers)
    if failures:
        raise SystemExit(f"{len(failures)} measurements failed")


if __name__ == "__main__":
    main()
