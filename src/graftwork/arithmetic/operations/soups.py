"""Choices by scores: greedy soups."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar, cast

from graftwork.arithmetic.operations.operations import average
from graftwork.errors import DivergedError, RecipeError

S = TypeVar("S")

DIVERGED = float("-inf")
"""The score of what gives no finite numbers."""


@dataclass(frozen=True)
class GreedySoup(Generic[S]):
    """What `greedy_soup` gives.

    Attributes:
        soup: the mean of the models that were taken.
        taken: their places among all models, in the order in which they were added.
        scores: the score of each model alone.
        score: that of the soup.
    """

    soup: S
    taken: tuple[int, ...]
    scores: tuple[float, ...]
    score: float


def greedy_soup(
    models: Sequence[S], score: Callable[[S], float], *, mean: Callable[[Sequence[S]], S] | None = None
) -> GreedySoup[S]:
    """A greedy soup (Wortsman et al. 2022, "Model soups", arXiv:2203.05482): the best model, and of the
    others, from the better to the worse, each with which the mean scores no less.

    Args:
        models: `Weights`, or plain mappings from names to tensors; with `mean`, whatever it takes.
        score: how good one is on held-out validation data, the more the better. One that diverges
            (`DivergedError`) is worse than any.
        mean: makes one of several. None: `average`.

    Raises:
        RecipeError: there are no models.
        DivergedError: all diverge.
        WeightsError: they differ in tensors or shapes.
    """
    if isinstance(models, Mapping) or not models:
        raise RecipeError("there are no models to choose from", expected="a list of weights", change="the models")
    averaged = cast("Callable[[Sequence[S]], S]", average) if mean is None else mean
    scores = tuple(_scored(model, score) for model in models)
    if max(scores) == DIVERGED:
        score(models[0])  # tells why
    order = sorted(range(len(models)), key=lambda i: (-scores[i], i))
    taken, best, soup = order[:1], scores[order[0]], models[order[0]]
    for place in order[1:]:
        with_it = averaged([models[i] for i in (*taken, place)])
        found = _scored(with_it, score)
        if found >= best and found > DIVERGED:
            taken, best, soup = [*taken, place], found, with_it
    return GreedySoup(soup, tuple(taken), scores, best)


def _scored(model: S, score: Callable[[S], float]) -> float:
    try:
        return score(model)
    except DivergedError:
        return DIVERGED
