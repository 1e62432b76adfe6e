"""A merge from its recipe to a folder: operands are opened, merged by the method, put together with what is kept, and
written with the card and the recipe.
"""

import logging
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Any

from graftwork.arithmetic.merging.card import merge_card
from graftwork.arithmetic.merging.folders import merge_folders
from graftwork.arithmetic.merging.method import ChosenMethod, Operands
from graftwork.arithmetic.merging.plan import Plan
from graftwork.arithmetic.merging.recipe import FILE, MergeRecipe
from graftwork.arithmetic.merging.result import MergeResult, Scores
from graftwork.arithmetic.merging.shares import mean_by, shares_at
from graftwork.arithmetic.values.checkpoint import Checkpoint
from graftwork.arithmetic.values.filters import Number, relevant
from graftwork.arithmetic.values.roles import matching
from graftwork.arithmetic.values.saving import CARD, refuse_existing, save_model
from graftwork.arithmetic.values.sources import Stored
from graftwork.arithmetic.values.weights import Weights, aligned, as_dtype
from graftwork.errors import OutputError
from graftwork.training.display import Display, shown_on_stderr

logger = logging.getLogger(__name__)


def merge(
    recipe: MergeRecipe,
    output: str | Path,
    *,
    resume: bool = False,
    overwrite: bool = False,
    progress: bool = False,
) -> MergeResult:
    """Merge models or adapters, and write the result as a folder of the same kind, completely or not at all.

    Args:
        recipe: what is merged, and how.
        output: the folder.
        resume: go on with an interrupted merge that reads data, to the same output.
        overwrite: replace an existing folder of the same kind, and discard an interrupted merge.
        progress: report progress on standard error.

    Returns:
        What was done, with scores where the recipe names tasks.

    Raises:
        RecipeError, MethodError: the recipe contradicts itself.
        WeightsError, AdapterError: the operands cannot be read, or do not fit each other.
        OutputError: the folder exists and `overwrite` is off, or it cannot be written. What was there is unchanged.
        DataError: a task's data cannot be read.
    """
    folder = Path(output)
    if recipe.of_adapters:
        return merge_folders(recipe, folder, resume=resume, overwrite=overwrite, progress=progress)
    recipe.refuse({"--resume": resume or None})
    plan = recipe.plan()
    refuse_existing(folder, overwrite=overwrite)
    if any(folder.resolve() == operand.path.resolve() for operand in plan.operands):
        raise OutputError(
            f"output {str(folder)!r} is one of the operands", expected="another folder", change="--output"
        )
    chosen = recipe.find_method()
    with shown_on_stderr(shown=progress) as display:
        score = _Scoring(recipe, plan, display)
        scores = score.of_operands()  # before anything is written, so that what cannot be scored is told first
        swept: list[tuple[Any, Scores]] = []
        for name, values in (recipe.sweep or {}).items():
            each = [chosen.with_settings({name: own}) for own in values]
            swept = [(own, score(merged(plan, one, recipe.weights))) for own, one in zip(values, each, strict=True)]
            chosen = each[max(range(len(swept)), key=lambda i: (score.goodness(swept[i][1]), -i))]
        whole = merged(plan, chosen, recipe.weights, score=score.good if recipe.tasks else None, tell=display.say)
        own = recipe.resolved([one.path for one in plan.models], None if plan.base is None else plan.base.path, chosen)
        beside = {FILE: own.as_text(), CARD: merge_card(own, plan, chosen)}
        save_model(
            whole.source,
            plan.like,
            folder,
            as_dtype(recipe.dtype),
            overwrite=overwrite,
            display=display,
            beside=beside,
        )
        if recipe.tasks:
            scores = {"result": score.of_folder(folder), **scores}
    return MergeResult(folder, chosen, scores, swept, plan=plan)


def merged(
    plan: Plan,
    chosen: ChosenMethod,
    weights: Sequence[Number] | None = None,
    *,
    score: Callable[[Weights], float] | None = None,
    tell: Callable[[str], None] = logger.info,
) -> Weights:
    """The weights of a merge, of which nothing is computed before it is asked for.

    Args:
        plan: what is done with each tensor.
        chosen: the method.
        weights: a number for each model.
        score: how good weights of the output are, for a method that chooses by it.
        tell: told in a sentence what was chosen.
    """
    names = plan.named("merged")
    averaged, beside = _averaged(plan, chosen, weights), plan.named("averaged")
    operands = Operands(
        models=[_part(plan, model, names) for model in plan.models],
        base=None if plan.base is None else _part(plan, plan.base, names),
        weights=None if weights is None else [relevant(weight, names, beside) for weight in weights],
        score=None if score is None else lambda own: score(_completed(plan, own, averaged)),
        tell=tell,
    )
    return _completed(plan, chosen.at(names, beside).merge(operands), averaged)


def _completed(plan: Plan, result: Weights, averaged: Weights | None) -> Weights:
    """What was merged, and what is averaged or kept beside it."""
    like, kept = _stored(plan.like), {*plan.named("kept")}
    whole = like.only(plan.named("kept")) | result
    whole = whole if averaged is None else whole | averaged
    # What is tied to a merged tensor, and stored beside it, is that tensor, and no head of its own.
    for group in like.tied:
        mates, others = sorted(group & {*result}), {name for name in group if name not in result}
        if mates and others and (others <= kept or all(_has_tied(model, group) for model in plan.models)):
            whole = whole | result.under(dict.fromkeys(others, mates[0]))
    return Weights(whole.source, origin=plan.like)


def _has_tied(model: Checkpoint, names: Collection[str]) -> bool:
    """Whether tensors are one in a model."""
    own = {*matching(names, model.entries.keys()).values()}
    return any(own <= group for group in _stored(model).tied)


def _averaged(plan: Plan, chosen: ChosenMethod, weights: Sequence[Number] | None) -> Weights | None:
    """What is averaged beside the merge. Where no model counts, it is the base's; what the base lacks is then averaged
    alike."""
    names = plan.named("averaged")
    if not names:
        return None
    between = plan.base is not None and chosen.method.base == "optional"
    operands = plan.operands if between else plan.models
    shares = shares_at(chosen, weights, len(operands), names, beside=plan.named("merged"))
    known = {} if plan.base is None else matching(names, plan.base.entries.keys())
    kept = [name for name in names if name in known and not any(own[name] for own in shares)]
    meant = [name for name in names if name not in kept]
    whole = mean_by([_part(plan, one, meant) for one in operands], shares)
    return whole | _part(plan, plan.base, kept) if plan.base is not None and kept else whole


def _part(plan: Plan, checkpoint: Checkpoint, names: Sequence[str]) -> Weights:
    """Some tensors of an operand, by the output's names."""
    like, own = _stored(plan.like), _stored(checkpoint)
    wanted = like.only(names)
    if checkpoint is plan.like:
        return wanted
    match = matching([*like], [*own])
    others = {match[name] for name in match.keys() - {*names}}
    twins = {name for group in checkpoint.alike for name in group}
    kept = [name for name in own if name not in others and (name in {*match.values()} or name in twins)]
    return aligned(wanted, own.only(kept))


class _Scoring:
    """Scores weights of the output on the recipe's tasks; see `TaskScores`."""

    def __init__(self, recipe: MergeRecipe, plan: Plan, display: Display) -> None:
        self._plan = plan
        self._scores: Any = None
        if recipe.tasks:
            from graftwork.arithmetic.merging.scores import TaskScores

            self._scores = TaskScores(recipe.tasks, plan.models, display=display)

    def __call__(self, weights: Weights) -> Scores:
        found: Scores = self._scores.of(weights, self._plan.like)
        return found

    def goodness(self, scores: Scores) -> float:
        return float(self._scores.goodness(scores))

    def good(self, weights: Weights) -> float:
        """How good weights of the output are."""
        return self.goodness(self(weights))

    def of_folder(self, folder: Path) -> Scores:
        """Of a model as it lies in its folder."""
        one = Checkpoint.read(folder)
        found: Scores = self._scores.of(_stored(one), one)
        return found

    def of_operands(self) -> dict[str, Scores]:
        """Of every operand that has, or is given, a head; none where there is no task."""
        found: dict[str, Scores] = {}
        for one in self._plan.operands if self._scores is not None else ():
            weights = _stored(one)
            alone = one is self._plan.base and len(self._scores.tasks) == 1
            bare = alone and not len(weights.head) and not self._scores.by_language  # whose head may be tied
            found[_called(self._plan, one)] = {} if bare else self._scores.of(weights, one)
        return found


def _stored(checkpoint: Checkpoint) -> Weights:
    """A checkpoint's weights."""
    return Weights(Stored(checkpoint), origin=checkpoint)


def _called(plan: Plan, one: Checkpoint) -> str:
    """A name for an operand that no other one has."""
    names = [other.name for other in plan.operands]
    return one.name if names.count(one.name) == 1 else str(one.path)
