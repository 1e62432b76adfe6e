"""Which method? The study of `which_method.yaml`, one task after another, with what a bypassed adapter loses.

    python -m studies.which_method --data DATA --work FOLDER [--tasks cola mrpc] [--workers 2]

DATA holds the folders `glue`, `crowdflower` and `sms_spam`. FOLDER keeps the runs: a task that was cut goes on there.
"""

import argparse
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import Any

from studies.grid import Grid, Record, markdown

HERE = Path(__file__)
STUDY = HERE.with_suffix(".yaml")

REFERENCE, ABLATED = "full-fine-tuning", "houlsby (bottleneck=64)"
"""What the others are compared with, and of what spans of layers are bypassed."""

GLUE = ("cola", "mrpc", "rte", "sst2", "stsb")
DIGITS = 5


def tasks() -> list[str]:
    """The tasks of the study, in its order."""
    from graftwork.settings.yamlfile import read_yaml

    return list(read_yaml(STUDY)["tasks"])


def measure(task: str, *, data: Path, work: Path, workers: int) -> Mapping[str, Any]:
    """All methods on one task.

    Returns:
        results: the runs that are compared; rates: by method and setting, the rate that validation chose, as a multiple
        of the method's own; spans: the relative change of the validation score without each span of layers, of the
        first seed's adapter that is `ABLATED`.
    """
    import graftwork as gw
    from graftwork.settings.yamlfile import read_yaml
    from graftwork.studies import Study

    study = Study.from_yaml(STUDY)
    own = study.tasks[task]
    place = str(data / Path(read_yaml(STUDY)["tasks"][task]["data"]).relative_to("data"))
    found = gw.compare(
        study.model_copy(update={"tasks": {task: own.model_copy(update={"data": place})}}),
        output=work / task,
        workers=workers,
        tables_only=True,
        progress=True,
    )
    bypassed = next(one for one in found.results if one.label == ABLATED)
    ablation = gw.ablate(gw.Adapter.load(bypassed.folder / "adapter"))
    return {
        "results": [_plain(asdict(one)) for one in found.results],
        "rates": _multiples(found.results),
        "spans": [[*span, _rounded(ablation.change(span))] for span in ablation.spans],
    }


def _plain(values: Mapping[str, Any]) -> dict[str, Any]:
    """A run as JSON has it, without its folder."""
    return {key: _rounded(value) for key, value in values.items() if key != "folder"}


def _rounded(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _rounded(own) for key, own in value.items()}
    return round(value, DIGITS) if isinstance(value, float) and abs(value) > 10**-DIGITS else value


def _multiples(results: Iterable[Any]) -> dict[str, float]:
    """By method and setting, the chosen rate as a multiple of the method's own."""
    from graftwork.methods import make_method
    from graftwork.studies.groups import method_settings

    found = {}
    for one in results:
        settings = dict(method_settings(one))
        own = make_method(str(settings.pop("name")), settings).learning_rate
        found[one.label] = float(f"{one.learning_rate / own:.2g}")
    return found


# -- the page ----------------------------------------------------------------------------------------------------------


def results_of(records: Sequence[Record]) -> list[Any]:
    """The runs of all records, as graftwork's tables take them."""
    from graftwork.studies.results import Result

    return [Result(**one, folder=Path("-")) for record in records for one in record["results"]]


def points(results: Sequence[Any], names: Iterable[str]) -> dict[str, dict[str, float]]:
    """By method and setting, the mean test score of each of the tasks, where 100 is perfect."""
    from graftwork.studies.groups import groups_of, metric_of
    from graftwork.studies.groups import points as as_points

    found: dict[str, dict[str, float]] = {}
    for group in groups_of(results):
        for task in names:
            metric = metric_of(results, task)
            summary = group.summary(task, "test", metric)
            if summary is not None:
                found.setdefault(group.label, {})[task] = as_points(summary.mean, metric)
    return found


def difference(scores: Mapping[str, Mapping[str, float]], one: str, other: str, names: Iterable[str]) -> float | None:
    """By how much a method is ahead of another one, in the mean over the tasks that both have."""
    common = [task for task in names if task in scores.get(one, {}) and task in scores.get(other, {})]
    return fmean(scores[one][task] - scores[other][task] for task in common) if common else None


def report(records: list[Record]) -> str:
    """The page that is kept beside the records."""
    from graftwork.studies.tables import glue_scores, other_scores

    results = results_of(records)
    known = [record["task"] for record in records]
    open_ = [task for task in tasks() if task not in known]
    still = f" Of {len(tasks())} tasks, {len(open_)} are still to be run: {', '.join(open_)}." if open_ else ""
    parts = [table for table in (glue_scores(results), other_scores(results)) if table is not None]
    scores = "\n\n".join(f"## {own.title}\n\n{own.note}\n\n{_shown(own.shown)}" for own in parts)
    return f"""# Which method?

MiniLM on {len(known)} tasks, 19 methods and sizes.{still}
The protocol is `which_method.yaml`: three rates a method (0.3, 1 and 3 times its own) with one seed, the best by the
validation score, then three seeds (five for RTE); at most 500 training rows, trained until the validation score stops
rising. Test scores. Made by `python -m studies.which_method`.

## In the mean over the tasks

{_overview(records, results, known)}

![Score against trained parameters](which_method.svg)

{scores}

## What the documents say, and what is so here

{_claims(records, results, known)}
"""


def _shown(rows: Sequence[Mapping[str, str]]) -> str:
    return markdown([*rows[0]], [[*row.values()] for row in rows])


def _overview(records: Sequence[Record], results: Sequence[Any], names: Sequence[str]) -> str:
    """A line for each method: size, mean score, its distance to full fine-tuning, time, and its best rates."""
    from graftwork.studies.groups import groups_of

    scores = points(results, names)
    lines = []
    for own in groups_of(results):
        mine = scores[own.label]
        mean = f"{fmean(mine.values()):.1f}" if len(mine) == len(names) else ""
        behind = difference(scores, own.label, REFERENCE, names)
        share = 100 * (own.mean("trained_parameters") - own.mean("head_parameters")) / own.mean("backbone_parameters")
        rates = Counter(record["rates"][own.label] for record in records if own.label in record["rates"])
        lines.append(
            [
                own.label,
                f"{own.mean('trained_parameters'):,.0f}",
                f"{share:.2f} %",
                mean,
                "" if behind is None or own.label == REFERENCE else f"{behind:+.1f}",
                f"{own.mean('seconds'):.0f} s",
                ", ".join(f"{rate:g} x {count}" for rate, count in sorted(rates.items())),
            ]
        )
    header = [
        "method",
        "trained",
        "of the backbone, without the head",
        "mean score",
        "less full",
        "a run",
        "best rates",
    ]
    return markdown(header, lines)


def _claims(records: Sequence[Record], results: Sequence[Any], names: Sequence[str]) -> str:
    """The documents' claims, each with the numbers of this study."""
    scores = points(results, names)
    extra = [task for task in names if task not in GLUE]
    three, one, apart = "three-shared", "one-a-layer", "not-shared"
    compared = [
        (
            "adapters are within 0.5 points of full fine-tuning at under 4 % of the parameters",
            ABLATED,
            REFERENCE,
            names,
        ),
        ("an adapter shared by three layers is about equal to Houlsby's at a third of the size", three, ABLATED, names),
        ("adapters that are not shared are ahead on the extra tasks", apart, one, extra),
    ]
    lines = []
    for claim, mine, other, where in compared:
        found = difference(scores, mine, other, where)
        if found is not None:
            lines.append([claim, f"{mine} less {other}: {found:+.1f} points in the mean over {len(where)} tasks"])
    spans = [{(first, last): change for first, last, change in record["spans"]} for record in records]
    spans = [own for own in spans if all(change is not None for change in own.values())]
    if spans:
        depth = max(last for own in spans for _, last in own)
        single = [fmean(own[i, i] for own in spans) for i in range(depth + 1)]
        low, high = fmean(single[: len(single) // 2]), fmean(single[len(single) // 2 :])
        worst = f"{100 * min(single):+.1f} % for the worst layer, {100 * fmean(single):+.1f} % in the mean"
        lines += [
            ["without one layer's adapters, less than 2 % are lost", worst],
            [
                "without all of them, nothing but the most frequent answer is left",
                f"{100 * fmean(own[0, depth] for own in spans):+.1f} % in the mean over {len(spans)} tasks",
            ],
            [
                "low layers matter less",
                f"lower half {100 * low:+.1f} %, upper half {100 * high:+.1f} %, one layer each",
            ],
        ]
    return markdown(["the claim", "here"], lines)


def draw(records: Sequence[Record], folder: Path = HERE.parent) -> None:
    """The figure of the page."""
    import matplotlib

    from graftwork.studies.figures import score_against_parameters

    figure = score_against_parameters(results_of(records))
    if figure is not None:
        with matplotlib.rc_context({"svg.hashsalt": "graftwork", "font.size": 9}):
            figure.draw().savefig(folder / "which_method.svg", metadata={"Date": None})


GRID = Grid(HERE.with_suffix(".jsonl"), ("task",), HERE.with_name("WHICH_METHOD.md"), report)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m studies.which_method", description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="the folder that holds glue, crowdflower and sms_spam")
    parser.add_argument("--work", type=Path, required=True, help="a folder for the runs")
    parser.add_argument("--tasks", nargs="+", choices=tasks(), default=tasks())
    parser.add_argument("--workers", type=int, default=1, help="processes beside each other, one thread each")
    given = parser.parse_args()
    run = partial(measure, data=given.data.resolve(), work=given.work, workers=given.workers)
    failures = GRID.run([(task,) for task in given.tasks], run, workers=1)
    draw(GRID.recorded())
    GRID.fill([], run, workers=1)
    if failures:
        raise SystemExit(f"{len(failures)} tasks failed")


if __name__ == "__main__":
    main()
