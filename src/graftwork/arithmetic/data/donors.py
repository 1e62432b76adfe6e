"""Donor merging: a task's adapter becomes better by a share of another task's, which is chosen on validation rows.

Matena & Raffel 2022, "Merging Models with Fisher-Weighted Averaging" (intermediate-task training by a merge): target ←
merge(target, donor; λ, 1 - λ), λ from 50 points. The head is the target's.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from graftwork.adapters import Adapter
from graftwork.arithmetic.adapters.bodies import Align, Bodies, Body
from graftwork.arithmetic.adapters.heads import head_groups
from graftwork.arithmetic.adapters.mergeable import changing_bodies_of
from graftwork.arithmetic.adapters.merging import with_heads
from graftwork.arithmetic.adapters.scores import SplitScorer, scorer_for
from graftwork.arithmetic.adapters.vectors import Computed, Vector
from graftwork.arithmetic.data.fisher import FLOOR, fisher_means
from graftwork.arithmetic.data.information import fishers_of
from graftwork.arithmetic.data.keeping import Kept
from graftwork.arithmetic.data.reading import contents_of, rows_of
from graftwork.arithmetic.data.settings import FisherSettings
from graftwork.backbones import Backbone
from graftwork.settings.checked import require_count
from graftwork.training.display import Display, shown_on_stderr

POINTS = 50

TARGET, DONOR = "target", "donor"


@dataclass(frozen=True)
class DonorMerge:
    """A task's adapter merged with a donor.

    Attributes:
        adapter: the best of all points, with the target's head; its validation scores are with it. Where the target
            alone is as good as any merge, it says what the target does.
        weight: λ of the target at that point.
        points: each λ, and the validation scores there. The last one, λ = 1, is the target alone.
    """

    adapter: Adapter
    weight: float
    points: tuple[tuple[float, Mapping[str, float]], ...]


def donor_merge(
    target: Adapter,
    donor: Adapter,
    backbone: Backbone,
    *,
    by: Literal["fisher", "mean"] = "fisher",
    points: int = POINTS,
    fisher: FisherSettings | None = None,
    rank: int | None = None,
    align: Align = "auto",
    data: str | None = None,
    donor_data: str | None = None,
    working: str | Path | None = None,
    progress: bool = False,
) -> DonorMerge:
    """Merge a donor's adapter into a target's, with the share that is best on the target's validation split.

    Args:
        target: the adapter that is to become better.
        donor: of another task, and of a method that can be merged with the target's; see `merge_adapters`.
        backbone: of both. It is in use meanwhile, by no other model.
        by: weigh each parameter by its Fisher information, or all alike.
        points: how many values of λ from 0 to 1 are tried.
        fisher: how the information is computed.
        rank: of the LoRA that the result is to be; None: the result says the merge exactly.
        align: permute the units of bottlenecks; see `merge_adapters`.
        data, donor_data: other data than those that the adapters were tuned on.
        working: a folder in which it is kept how far it is: a call with the same arguments goes on there. None: it is
            not kept.
        progress: report progress on standard error.

    Raises:
        MethodError: the methods cannot be merged.
        DataError: the data of an adapter are not known, or cannot be read.
        RecipeError: `points` is not a whole number of 2 or more.
    """
    require_count("points", points - 1)
    folder = None if working is None else Path(working)
    settings = fisher or FisherSettings()
    adapters = {TARGET: target, DONOR: donor}
    bodies = changing_bodies_of(adapters, backbone, align=align)
    with shown_on_stderr(shown=progress) as display:
        merge = _merger(bodies, by, settings, (data, donor_data), folder, display)
        said: dict[str, Any] = {
            "by": by,
            "points": points,
            "rank": rank,
            **(settings.model_dump() if by == "fisher" else {}),
        }
        of = {**said, "target": target.digest, "donor": donor.digest, "data": data, "donor_data": donor_data}
        of["rows"] = contents_of(target, "validation", data=data)
        kept = Kept(folder, "points", of)
        state = kept.read()
        scores: dict[int, dict[str, float]] = {}
        if state is not None:
            scores = {int(i): own for i, own in json.loads(state[1]["scores"]).items()}
        lambdas = torch.linspace(0.0, 1.0, points, dtype=torch.float64).tolist()

        def at(i: int) -> Adapter:
            body = bodies.written(merge(lambdas[i]), rank)
            return _with_targets_head(body, bodies, {**said, "lambda": lambdas[i]})

        with (
            scorer_for(target, backbone, data=data) as scorer,
            display.bar("λ of the target", points, "points", done=len(scores)) as bar,
        ):
            for i in range(points):
                if i not in scores:
                    # The end of the line is the target itself, to the last bit.
                    scores[i] = scorer(target if i == points - 1 else at(i))
                    kept.write({}, {"scores": json.dumps(scores)}, now=True)
                    bar.move(
                        len(scores), note=f"{lambdas[i]:.2f}: {scorer.task.main_metric} {_main(scorer, scores[i])}"
                    )
            best = max(range(points), key=lambda i: (scorer.worth(scores[i]), i))
            rows = scorer.rows
    chosen = replace(at(best), metrics={"validation": scores[best]}, rows={"validation": rows})
    return DonorMerge(chosen, lambdas[best], tuple((lambdas[i], scores[i]) for i in range(points)))


def _merger(
    bodies: Bodies,
    by: Literal["fisher", "mean"],
    settings: FisherSettings,
    data: tuple[str | None, str | None],
    folder: Path | None,
    display: Display,
) -> Callable[[float], Vector]:
    """What makes the vector of a λ."""
    if by == "mean":
        ones = [Computed([*vector], partial(_ones, vector)) for vector in bodies.vectors]
        return lambda mix: fisher_means(bodies.vectors, ones, [mix, 1.0 - mix], normalise=False)
    rows = {
        name: rows_of(adapter, bodies.backbone, "train", data=own, examples=settings.examples, seed=settings.seed)
        for (name, adapter), own in zip(bodies.aligned.items(), data, strict=True)
    }
    fishers = fishers_of(bodies, rows, settings, working=folder, display=display)
    return lambda mix: fisher_means(bodies.vectors, fishers, [mix, 1.0 - mix], floor=FLOOR)


def _ones(vector: Vector, name: str) -> Tensor:
    return torch.ones_like(vector[name])


def _with_targets_head(body: Body, bodies: Bodies, said: Mapping[str, Any]) -> Adapter:
    [group] = head_groups({TARGET: bodies.adapters[TARGET]}, "keep")
    merged = with_heads(body, [group], bodies.adapters, bodies.backbone, {"donor merge": dict(said)})
    return merged.adapter


def _main(scorer: SplitScorer, scores: Mapping[str, float]) -> str:
    return f"{scores[scorer.task.main_metric]:.4f}"
