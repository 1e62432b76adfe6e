"""The merge of models whose units are permuted to match (Git Re-Basin; Ainsworth et al. 2023, arXiv:2209.04836).

Matching compares all units with all others, so that the models are held in memory.
"""

from collections.abc import Callable, Sequence

from graftwork.arithmetic.alignment.matching import merge_many
from graftwork.arithmetic.alignment.settings import MatchingSettings
from graftwork.arithmetic.alignment.specifications import checkpoint_specification
from graftwork.arithmetic.merging.shares import mean_by, shares_of
from graftwork.arithmetic.operations.operations import average
from graftwork.arithmetic.values.filters import Number, relevant
from graftwork.arithmetic.values.roles import STATISTICS, role_of
from graftwork.arithmetic.values.weights import Weights
from graftwork.backbones import Backbone
from graftwork.errors import WeightsError


def rebasin(
    models: Sequence[Weights],
    *,
    weights: Sequence[Number] | None = None,
    settings: MatchingSettings | None = None,
    tell: Callable[[str], None] = print,
) -> Weights:
    """The mean of models after their units are permuted to match: of two, those of the second to the first; of more, to
    the mean of the others. The result has its units in the order of the first.

    Args:
        models: of one architecture, opened from folders.
        weights: a number for each; None: the same for all.
        settings: of the matching.
        tell: told how many units move.

    Raises:
        WeightsError: a tensor belongs neither to the body nor to a known head; or there are fewer than two models, or
            they are of no folder.
        BackboneError: it is not known what of the architecture can be permuted.
    """
    if not models or models[0].origin is None:
        raise WeightsError("the models to be aligned are of no folder", expected="Weights.open(folder)")
    backbone = Backbone.outline(str(models[0].origin.path))
    specification = checkpoint_specification(backbone, models[0].shapes)
    _, found = merge_many(specification, models, settings=settings)
    total = sum(specification.identity()[name].numel() for name in specification.groups)
    for model, permutations in zip(models[1:], found[1:], strict=True):
        tell(f"{permutations.num_moved:,} of {total:,} units of {model.called} are moved")
    if any(name.endswith(STATISTICS) for name in models[0].shapes):
        tell("the statistics of batch norms are means, which say little: compute them anew (recompute_batch_norm)")
    pairs = zip(models[1:], found[1:], strict=True)
    moved = [Weights.of(permutations.apply(model)) for model, permutations in pairs]
    every = [models[0], *moved]
    trained = [name for name in models[0] if role_of(name, floating=True) != "buffer"]
    buffers = [name for name in models[0] if name not in trained]
    given = None if weights is None else [relevant(weight, trained, buffers) for weight in weights]
    mean = average([model.only(trained) for model in every], weights=given)
    if not buffers:
        return mean
    shares = shares_of(weights, len(every), buffers, "--weights", beside=trained)
    return mean | mean_by([model.only(buffers) for model in every], shares)
