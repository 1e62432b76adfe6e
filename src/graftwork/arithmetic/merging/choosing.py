"""The merge of models that are chosen by their scores: a greedy soup."""

from collections.abc import Callable, Sequence

from graftwork.arithmetic.operations.soups import greedy_soup
from graftwork.arithmetic.values.weights import Weights


def soup(models: Sequence[Weights], *, score: Callable[[Weights], float], tell: Callable[[str], None]) -> Weights:
    """A greedy soup: models are added in the order of their scores, each where the mean scores no less with it.

    Args:
        models: the models.
        score: how good one is, the more the better.
        tell: told which are taken.
    """
    found = greedy_soup(models, score)
    names = [f"{models[i].called} ({found.scores[i]:.4f})" for i in found.taken]
    tell(f"the soup ({found.score:.4f}) is of {len(names)} models: {', '.join(names)}")
    return found.soup
