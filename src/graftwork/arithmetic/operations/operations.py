"""Operations over several models or task vectors: each takes a list of `Weights`, or of plain mappings from names to
tensors, and gives the same kind back.

A task vector is what training changed: τ = θ − θ₀. Tensors are merged in float32 (float64 where one is float64); whole
numbers are as in the first, and buffers of floating-point numbers are averaged.
"""

from collections.abc import Mapping, Sequence
from typing import Any, TypeVar, cast

from torch import Tensor

from graftwork.arithmetic.operations.angles import ModelStock, Slerp
from graftwork.arithmetic.operations.merged import Merged, Step
from graftwork.arithmetic.operations.pipeline import Pipeline, Taken
from graftwork.arithmetic.operations.spectral import TSVM, IsoC
from graftwork.arithmetic.operations.trimming import Band, Largest, Random, Ranked, Scope, Varied, Whole
from graftwork.arithmetic.values.filters import Number, as_number, resolved
from graftwork.arithmetic.values.sources import Coefficient
from graftwork.arithmetic.values.weights import Weights, aligned
from graftwork.errors import RecipeError

M = TypeVar("M", bound=Mapping[str, Tensor])
Numbers = Sequence[Any] | None
"""One number for each operand, each as `filters.Number`; None: the same for all."""


def average(models: Sequence[M], *, weights: Numbers = None) -> M:
    """The mean of models, Σ wᵢ θᵢ / Σ wᵢ (Wortsman et al. 2022, "Model soups", arXiv:2203.05482).

    Args:
        models: one or more.
        weights: wᵢ, a number for each. None: all are equal.

    Raises:
        WeightsError: the models differ in tensors or shapes.
        RecipeError: there are not as many weights as models, or they add up to 0.
    """
    own = _operands(models, least=1)
    shares = _weights(own, weights)
    totals = {name: sum(_at(share, name) for share in shares) for name in own[0].shapes}
    zero = [name for name, total in totals.items() if abs(total) < 1e-9]
    if zero:
        raise RecipeError("the weights of a mean add up to 0", expected="weights that do not", change="--weights")
    total = own[0].scaled({name: _at(shares[0], name) / totals[name] for name in totals})
    for model, share in zip(own[1:], shares[1:], strict=True):
        total = total + model.scaled({name: _at(share, name) / totals[name] for name in totals})
    return _given_back(models, total)


def interpolate(models: Sequence[M], *, t: Any = 0.5) -> M:
    """The way from one model to another on a straight line, (1 − t) θ₀ + t θ₁. From a pre-trained model to what was
    fine-tuned of it, heads included, this is WiSE-FT (Wortsman et al. 2022, arXiv:2109.01903, where t is α).

    Args:
        models: two of them.
        t: how far the way is gone; a number, or one for each layer or filter.

    Raises:
        WeightsError: the models differ in tensors or shapes.
    """
    first, second = own = _operands(models, least=2, most=2)
    (share,) = _weights(own[:1], [t])
    rest: Coefficient = {n: 1 - by for n, by in share.items()} if isinstance(share, Mapping) else 1 - share
    return _given_back(models, first.scaled(rest) + second.scaled(share))


def slerp(models: Sequence[M], *, t: Any = 0.5) -> M:
    """The way from one model to another on an arc, tensor by tensor (Shoemake 1985).

    Args:
        models: two of them.
        t: how far the way is gone; a number, or one for each layer or filter.

    Raises:
        WeightsError: the models differ in tensors or shapes.
    """
    return _merged(models, Slerp(as_number(t)), None, least=2, most=2)


def task_arithmetic(vectors: Sequence[M], *, weights: Numbers = None) -> M:
    """The sum of task vectors, Σ wᵢ τᵢ (Ilharco et al. 2023, "Editing Models with Task Arithmetic", arXiv:2212.04089).
    A negative weight has a model forget a task.

    Args:
        vectors: one or more.
        weights: wᵢ. None: 1 each.
    """
    own = _operands(vectors, least=1)
    shares = _weights(own, weights)
    total = own[0].scaled(shares[0])
    for vector, share in zip(own[1:], shares[1:], strict=True):
        total = total + vector.scaled(share)
    return _given_back(vectors, total)


def analogy(models: Sequence[M]) -> M:
    """C + B − A for models A, B, C: A is to B as C is to the result (Ilharco et al. 2023).

    Args:
        models: A, B and C.
    """
    a, b, c = _operands(models, least=3, most=3)
    return _given_back(models, c + (b - a))


def ties(
    vectors: Sequence[M],
    *,
    keep: Any = 0.2,
    scope: Scope = "global",
    merge: Taken = "mean",
    weights: Numbers = None,
) -> M:
    """TIES: trim, elect a sign, merge those that have it (Yadav et al. 2023, arXiv:2306.01708).

    Args:
        vectors: task vectors.
        keep: share of the numbers that are left, exactly so many of the largest magnitude; of equal ones, those in the
            first places. With scope `tensor`, also one for each layer or filter.
        scope: `global`: of each whole vector (the paper). `tensor`: of each tensor (mergekit).
        merge: `mean` of the vectors that have the elected sign, or their `sum`.
        weights: what each vector is multiplied by before the election, and its part of the mean. None: 1 each.
    """
    _refuse_share("keep", keep)
    return _merged(vectors, Pipeline(Largest(as_number(keep), scope), elect=True, take=merge), weights)


def dare(vector: M, *, drop: Any = 0.9, seed: int = 0) -> M:
    """DARE: drop numbers at random, and let those that are left grow by 1 / (1 − drop) (Yu et al. 2024).

    Args:
        vector: a task vector. Those of several tasks should be given different seeds.
        drop: probability; a number, or one for each layer or filter.
        seed: of what is drawn; the same one gives the same result.
    """
    _refuse_share("drop", drop, below=True)
    return _merged([vector], Pipeline(Random(as_number(drop), seed), elect=False, take="sum"), None)


def dare_merge(
    vectors: Sequence[M], *, drop: Any = 0.9, seed: int = 0, elect: bool = False, weights: Numbers = None
) -> M:
    """The sum of task vectors after `dare`, each with numbers drawn of its own.

    Args:
        vectors: task vectors.
        drop: probability; a number, or one for each layer or filter.
        seed: of what is drawn.
        elect: merge as TIES does: the mean of those that have the elected sign.
        weights: what each vector is multiplied by. None: 1 each.
    """
    _refuse_share("drop", drop, below=True)
    step = Pipeline(Random(as_number(drop), seed), elect=elect, take="mean" if elect else "sum")
    return _merged(vectors, step, weights)


def breadcrumbs(
    vectors: Sequence[M], *, keep: Any = 0.85, outliers: Any = 0.01, elect: bool = False, weights: Numbers = None
) -> M:
    """The sum of task vectors without their largest and their smallest numbers (Davari and Belilovsky 2024, "Model
    Breadcrumbs", arXiv:2312.06795).

    Args:
        vectors: task vectors.
        keep: share of each tensor's numbers that are left.
        outliers: share of the largest ones, which are dropped.
        elect: merge as TIES does.
        weights: what each vector is multiplied by. None: 1 each.

    Raises:
        RecipeError: the two shares of a tensor add up to more than 1.
    """
    for name, share in {"keep": keep, "outliers": outliers}.items():
        _refuse_share(name, share)
    step = Pipeline(Band(as_number(keep), as_number(outliers)), elect=elect, take="mean" if elect else "sum")
    return _merged(vectors, step, weights)


def della(vectors: Sequence[M], *, drop: Any = 0.7, spread: Any = 0.2, seed: int = 0, weights: Numbers = None) -> M:
    """DELLA: drop numbers at random, small ones of a row more often, elect a sign, and take the mean (Deep et al. 2024,
    arXiv:2406.11617).

    Args:
        vectors: task vectors.
        drop: the mean probability.
        spread: by how much that of the smallest of a row exceeds that of the largest.
        seed: of what is drawn.
        weights: what each vector is multiplied by. None: 1 each.

    Raises:
        RecipeError: some would be dropped with a probability below 0, or of 1 and more.
    """
    _refuse_share("drop", drop, below=True)
    _refuse_share("spread", spread)
    return _merged(
        vectors, Pipeline(Ranked(as_number(drop), as_number(spread), seed), elect=True, take="mean"), weights
    )


def sce(vectors: Sequence[M], *, keep: Any = 0.1, weights: Numbers = None) -> M:
    """SCE: select the numbers that vary most over the vectors, calculate each vector's weight by their squares, erase
    those against the sign of the sum (Wan et al. 2024, "FuseChat", arXiv:2408.07990).

    Args:
        vectors: task vectors.
        keep: share of each tensor's numbers that are selected.
        weights: what each vector is multiplied by. None: 1 each.
    """
    _refuse_share("keep", keep)
    return _merged(vectors, Pipeline(Varied(as_number(keep)), elect=True, take="mean"), weights, least=2)


def model_stock(vectors: Sequence[M]) -> M:
    """Model Stock: the mean of task vectors, shortened by how far they point apart, tensor by tensor (Jang et al. 2024,
    arXiv:2403.19522).

    Args:
        vectors: two or more task vectors.
    """
    return _merged(vectors, ModelStock(), None, least=2)


def iso_c(vectors: Sequence[M], *, weights: Numbers = None) -> M:
    """Iso-C: the sum of the task matrices with all singular values made their mean; other tensors are averaged (Marczak
    et al. 2025, arXiv:2502.04959).

    Args:
        vectors: task vectors.
        weights: what each vector is multiplied by. None: 1 each.
    """
    return _merged(vectors, IsoC(), weights)


def tsv_m(vectors: Sequence[M], *, weights: Numbers = None) -> M:
    """TSV-M: the first singular triples of each task matrix, made orthogonal to one another; other tensors are averaged
    (Gargiulo et al. 2025, arXiv:2412.00081).

    Args:
        vectors: task vectors.
        weights: what each vector is multiplied by. None: 1 each.
    """
    return _merged(vectors, TSVM(), weights)


def elected(vectors: Sequence[M]) -> M:
    """The unified vector of EMR: at each place the elected sign, and the largest magnitude of those that have it (Huang
    et al. 2024, arXiv:2405.17461). See `emr` for what makes a task's model of it.

    Args:
        vectors: task vectors.
    """
    return _merged(vectors, Pipeline(Whole(), elect=True, take="max"), None)


def _merged(given: Sequence[M], step: Step, weights: Numbers, *, least: int = 1, most: int | None = None) -> M:
    """What a step makes of operands."""
    own = _operands(given, least=least, most=most)
    merged = Merged([model.source for model in own], step, _weights(own, weights))
    return _given_back(given, Weights(merged, origin=own[0].origin))


def _operands(given: Sequence[Mapping[str, Tensor]], *, least: int, most: int | None = None) -> list[Weights]:
    """The operands under the names of the first."""
    if isinstance(given, Mapping) or not all(isinstance(own, Mapping) for own in given):
        raise RecipeError("the operands are no list of weights", expected="a list of Weights, or of {name: tensor}")
    if len(given) < least or (most is not None and len(given) > most):
        wanted = f"{least}" if least == most else f"{least} or more"
        raise RecipeError(f"{len(given)} operands are given", expected=wanted, change="the operands")
    first = Weights.of(given[0])
    return [first, *(aligned(first, own) for own in given[1:])]


def _weights(own: Sequence[Weights], weights: Numbers) -> list[Coefficient]:
    """A number for each operand, or one for each tensor of it."""
    if weights is None:
        return [1.0] * len(own)
    if len(weights) != len(own):
        raise RecipeError(
            f"{len(weights)} weights are given for {len(own)} operands", expected="one each", change="--weights"
        )
    return [resolved(as_number(weight), own[0].shapes, "weight") for weight in weights]


def _given_back(given: Sequence[M], result: Weights) -> M:
    """A result of the kind of the operands."""
    if any(isinstance(own, Weights) for own in given):
        return cast(M, result)
    return cast(M, {name: result[name] for name in result})


def _at(share: Coefficient, name: str) -> float:
    return share[name] if isinstance(share, Mapping) else share


def _refuse_share(name: str, share: Number | Any, *, below: bool = False) -> None:
    """Refuse a share that is none.

    Raises:
        RecipeError: one of its numbers is not between 0 and 1.
    """
    numbers = _flat(share)
    wrong = [own for own in numbers if not 0 <= own <= 1 or (below and own == 1)]
    if wrong:
        raise RecipeError(
            f"{name} is {wrong[0]}", expected="0 or more, and below 1" if below else "from 0 to 1", change=name
        )


def _flat(number: Any) -> list[float]:
    """All numbers in one that differs from tensor to tensor."""
    if isinstance(number, int | float):
        return [float(number)]
    if isinstance(number, Mapping):
        return _flat(number["value"])
    if isinstance(number, list | tuple):
        return [own for one in number for own in _flat(one)]
    return _flat(getattr(number, "value", 0.0))
