"""Greedy soups of adapters: those of which the mean scores best on their tasks' validation rows."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from graftwork.adapters import Adapter
from graftwork.arithmetic.adapters.bodies import Align
from graftwork.arithmetic.adapters.heads import HeadsMode, head_groups
from graftwork.arithmetic.adapters.mergeable import bodies_of
from graftwork.arithmetic.adapters.merging import MergedAdapters, merge_adapters, named_adapters
from graftwork.arithmetic.adapters.scores import goodness_on_all
from graftwork.arithmetic.data.keeping import Kept
from graftwork.arithmetic.data.reading import contents_of
from graftwork.arithmetic.operations.soups import DIVERGED, greedy_soup
from graftwork.backbones import Backbone
from graftwork.training.display import shown_on_stderr
from graftwork.training.evaluation import task_of

Names = tuple[str, ...]


@dataclass(frozen=True)
class AdapterSoup:
    """What `soup_adapters` gives.

    Attributes:
        merged: the mean of the adapters that were taken.
        taken: their names, in the order in which they were added.
        scores: how good each adapter is alone, by name; 1 is perfect, and what diverges has minus infinity.
        score: how good the soup is.
    """

    merged: MergedAdapters
    taken: Names
    scores: Mapping[str, float]
    score: float


def soup_adapters(
    adapters: Mapping[str, Adapter] | Sequence[Adapter],
    backbone: Backbone,
    *,
    rank: int | None = None,
    heads: HeadsMode = "auto",
    align: Align = "auto",
    data: Mapping[str, str] | None = None,
    working: str | Path | None = None,
    progress: bool = False,
) -> AdapterSoup:
    """A greedy soup of adapters (Wortsman et al. 2022, "Model soups", arXiv:2203.05482): the best adapter, and of the
    others, from the better to the worse, each with which the mean scores no less. It chooses on validation rows.

    A mean is what `merge_adapters` makes of the adapters, and scored as it would be saved: at the rank that is asked
    for, with its own heads. The score is how good the first metric is, in the mean over the tasks of all adapters; on
    a task of which no adapter is in the mean, with the heads of that task's adapters.

    Args:
        adapters: by name, or a list, whose names are then those of their tasks.
        backbone: that they were made for, with weights. It is in use meanwhile, by no other model.
        rank, heads, align: see `merge_adapters`.
        data: other data than those that an adapter was tuned on, by its name.
        working: a folder in which it is kept how far it is: a call with the same arguments goes on there. None: it is
            not kept.
        progress: report progress on standard error.

    Raises:
        AdapterError: an adapter is of another backbone; names are repeated; or heads cannot be averaged.
        MethodError: methods that cannot be averaged, or settings that do not suit them.
        DataError: the data of an adapter are not known, or cannot be read.
    """
    named = named_adapters(adapters)
    bodies_of(named, backbone, align=align)
    head_groups(named, heads)
    own = dict(data or {})

    def mean_of(names: Names) -> MergedAdapters:
        taken = {name: adapter for name, adapter in named.items() if name in names}
        return merge_adapters(taken, backbone, rank=rank, heads=heads, align=align)

    of = {
        **{"rank": rank, "heads": heads, "align": align},
        "adapters": {name: adapter.digest for name, adapter in named.items()},
        "tasks": {n: task_of(one, data=own.get(n)).resolved().model_dump(mode="json") for n, one in named.items()},
        "rows": {n: contents_of(one, "validation", data=own.get(n)) for n, one in named.items()},
    }
    kept = Kept(None if working is None else Path(working), "soup", of)
    state = kept.read()
    known: dict[str, float] = {} if state is None else dict(state[1])
    most = 2 * len(named) - 1

    with shown_on_stderr(shown=progress) as display, display.bar("soup", most, "scores", done=len(known)) as bar:

        def score(names: Names) -> float:
            key = json.dumps(sorted(names))
            if key not in known:
                known[key] = goodness_on_all(named, mean_of(names), backbone, data=own, display=display)
                kept.write({}, known, now=True)
                bar.move(len(known), note=f"{len(names)} adapters: {known[key]:.4f}")
            return known[key]

        alone: list[Names] = [(name,) for name in named]
        found = greedy_soup(alone, score, mean=lambda each: tuple(name for names in each for name in names))
    scores = dict(zip(named, found.scores, strict=True))
    return AdapterSoup(_saying(mean_of(found.soup), found.soup, scores, found.score), found.soup, scores, found.score)


def _saying(merged: MergedAdapters, taken: Names, scores: Mapping[str, float], score: float) -> MergedAdapters:
    """With the choice in the recipe of each adapter."""
    said = {"taken": list(taken), "score": score, "scores": plain_scores(scores)}
    made = {
        name: replace(one, recipe={**one.recipe, "merged": {**one.recipe["merged"], "soup": said}})
        for name, one in merged.adapters.items()
    }
    return MergedAdapters(made, merged.members)


def plain_scores(scores: Mapping[str, float]) -> dict[str, float | None]:
    """Scores as files have them: none of what diverges."""
    return {name: None if own == DIVERGED else own for name, own in scores.items()}
