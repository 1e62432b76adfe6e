"""Merge methods on adapters: those that are over adapters, and those of models and vectors on what adapters change."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from graftwork.arithmetic.data.settings import (
    AdaMergingMergeSettings,
    DonorSettings,
    FisherMergeSettings,
    RegMeanSettings,
)
from graftwork.arithmetic.merging.method import ChosenMethod, make_merge_method
from graftwork.arithmetic.merging.settings import Knots, MergeSettings, OfVectors
from graftwork.errors import MethodError, RecipeError

if TYPE_CHECKING:
    from graftwork.adapters import Adapter
    from graftwork.arithmetic.adapters.bodies import Align
    from graftwork.arithmetic.adapters.commonbasis import Formula
    from graftwork.arithmetic.adapters.heads import HeadsMode
    from graftwork.arithmetic.adapters.merging import MergedAdapters
    from graftwork.arithmetic.adapters.vectors import Vector
    from graftwork.backbones import Backbone


@dataclass(frozen=True, kw_only=True)
class AdapterOperands:
    """What is merged, and how it is asked for.

    Attributes:
        adapters: by name.
        backbone: of all of them.
        weights: a number for each adapter; None: all alike.
        rank: of the LoRA that the result is to be; None: the result says the merge exactly.
        heads, align: see `merge_adapters`.
        data: other data than those that an adapter was tuned on, by its name.
        working: a folder in which it is kept how far it is; None: it is not.
        progress: report progress on standard error.
    """

    adapters: "Mapping[str, Adapter]"
    backbone: "Backbone"
    weights: Sequence[Any] | None = None
    rank: int | None = None
    heads: "HeadsMode" = "auto"
    align: "Align" = "auto"
    data: Mapping[str, str] = field(default_factory=dict)
    working: Path | None = None
    progress: bool = False

    @property
    def options(self) -> dict[str, Any]:
        """What every function over adapters is given beside them."""
        return {"rank": self.rank, "heads": self.heads, "align": self.align}

    @property
    def reading(self) -> dict[str, Any]:
        """What every function is given that reads data."""
        return {"data": self.data, "working": self.working, "progress": self.progress}


@dataclass(frozen=True)
class AdapterResult:
    """What a merge of adapters gives.

    Attributes:
        merged: the adapters.
        said: what was chosen or learned on the way, for people.
        details: the same, for programs.
    """

    merged: "MergedAdapters"
    said: tuple[str, ...] = ()
    details: Mapping[str, Any] = field(default_factory=dict)


def check_adapters(
    chosen: ChosenMethod,
    count: int,
    *,
    weights: Sequence[Any] | None = None,
    rank: int | None = None,
    heads: str = "auto",
    align: str = "auto",
) -> None:
    """Refuse what a method on adapters does not take.

    Raises:
        MethodError: it is for whole models.
        RecipeError: other numbers of adapters, or a flag that it has no use for.
    """
    method = chosen.method
    if "adapters" not in method.acts:
        raise MethodError(
            f"merge method {method.name!r} is for whole models, not for adapters",
            expected="average, or a method over what training changed",
            change="METHOD",
        )
    given = {
        "--weights": weights is not None,
        "--align": align != "auto",
        "--heads": heads != "auto",
        "--rank": rank is not None,
    }
    known = {*method.takes} | ({"align", "heads", "rank"} if method.over != "adapters" else set())
    if chosen.result_of is not None and heads != "auto":
        raise RecipeError(
            f"--heads {heads} does not suit {method.name}, whose result is for one task and has its adapter's head",
            change="--heads",
        )
    idle = [flag for flag, there in given.items() if there and flag.removeprefix("--") not in known]
    if idle:
        raise RecipeError(
            f"{', '.join(idle)} would do nothing: {method.name} has no use for it", change=", ".join(idle)
        )
    if method.by_angle and count == 1:
        raise RecipeError(
            f"{method.name} goes by the angle between what two adapters change, and the backbone alone changes nothing",
            expected="two adapters; from the backbone to one, interpolate",
            change="the adapters, METHOD",
        )
    # The backbone is the base; from it to one adapter, or from one adapter to another.
    base = method.base == "needed" or (method.base == "optional" and count == 1)
    # An adapter says itself what its task is.
    chosen.check(count, base=base, weights=weights is not None, tasks=count, what="adapters")


def run_on_adapters(chosen: ChosenMethod, operands: AdapterOperands) -> AdapterResult:
    """Merge adapters.

    Raises:
        MethodError, RecipeError: the method does not take them, or they cannot be merged.
    """
    check_adapters(chosen, len(operands.adapters), weights=operands.weights, **operands.options)
    if chosen.method.over == "adapters":
        found: AdapterResult = chosen.function()(operands, chosen.settings)
        return found
    return _soup(operands) if chosen.method.scored else _by_changes(chosen, operands)


def knots(operands: AdapterOperands, settings: Knots) -> AdapterResult:
    """KnOTS: a formula in the basis that what the adapters change has in common."""
    return _by_changes(make_merge_method(settings.formula, settings.inner()), operands, basis=True)


def fisher(operands: AdapterOperands, settings: FisherMergeSettings) -> AdapterResult:
    """Fisher merging: each parameter counts by how much its model's answers depend on it."""
    from graftwork.arithmetic.data.fishermerging import fisher_adapters

    return AdapterResult(
        fisher_adapters(
            operands.adapters,
            operands.backbone,
            lambdas=operands.weights,
            fisher=settings,
            normalise=settings.normalise,
            **operands.options,
            **operands.reading,
        )
    )


def donor(operands: AdapterOperands, settings: DonorSettings) -> AdapterResult:
    """Donor merging: a share of the second adapter makes the first better, chosen on the first's validation rows."""
    from graftwork.arithmetic.adapters.merging import MergedAdapters
    from graftwork.arithmetic.data.donors import donor_merge

    (name, target), (other, giver) = operands.adapters.items()
    merge = donor_merge(
        target,
        giver,
        operands.backbone,
        by=settings.by,
        points=settings.points,
        fisher=settings,
        rank=operands.rank,
        align=operands.align,
        data=operands.data.get(name),
        donor_data=operands.data.get(other),
        working=operands.working,
        progress=operands.progress,
    )
    points = [{"weight": mix, **scores} for mix, scores in merge.points]
    said = f"{name} counts {merge.weight:.2f}, {other} {1 - merge.weight:.2f}"
    merged = MergedAdapters({name: merge.adapter}, {name: (name,)})
    return AdapterResult(merged, (said,), {"weight": merge.weight, "points": points})


def regmean(operands: AdapterOperands, settings: RegMeanSettings) -> AdapterResult:
    """RegMean: each linear map is the nearest to the models' own on what enters it. It needs no labels."""
    from graftwork.arithmetic.data.regressionmeans import regmean_adapters

    return AdapterResult(
        regmean_adapters(
            operands.adapters,
            operands.backbone,
            settings=settings,
            rank=operands.rank,
            heads=operands.heads,
            **operands.reading,
        )
    )


def adamerging(operands: AdapterOperands, settings: AdaMergingMergeSettings) -> AdapterResult:
    """AdaMerging: how much each adapter counts is learned by the entropy of answers on texts without labels."""
    from functools import partial

    from graftwork.arithmetic.data import learnedcoefficients
    from graftwork.arithmetic.operations.operations import ties

    found = learnedcoefficients.adamerging(
        operands.adapters,
        operands.backbone,
        settings=settings,
        elect=None if settings.keep is None else partial(ties, keep=settings.keep),
        split=settings.split,
        **operands.reading,
    )
    said = []
    for name in operands.adapters:
        before, after = found.entropy[name]
        said.append(f"{name}: entropy {before:.4f} -> {after:.4f}; {_scores(found, name)}")
    details = {
        "coefficients": {name: dict(own) for name, own in found.coefficients.items()},
        "entropy": {name: list(own) for name, own in found.entropy.items()},
        "transductive": {name: dict(own) for name, own in found.transductive.items()},
        "inductive": {name: dict(own) for name, own in found.inductive.items()},
    }
    return AdapterResult(found.merged, tuple(said), details)


def coefficients_of(chosen: ChosenMethod, weights: Sequence[Any] | None, count: int) -> list[float] | None:
    """The numbers by which what adapters change is multiplied before it is added up; None where a merge is no sum of
    that kind.

    Raises:
        RecipeError: a mean's weights add up to 0.
    """
    own = chosen.settings
    plain = weights is None or all(isinstance(one, int | float) for one in weights)
    if not plain or not isinstance(own, MergeSettings):
        return None
    numbers = None if weights is None else [float(one) for one in weights]
    if chosen.name == "average" and numbers is not None and not sum(numbers):
        raise RecipeError("the weights of a mean add up to 0", change="--weights")
    return own.coefficients(numbers, count)


def scale_of(chosen: ChosenMethod) -> float:
    """By what a sum of what adapters change is multiplied."""
    factor = chosen.settings.factor if isinstance(chosen.settings, OfVectors) else 1.0
    assert isinstance(factor, int | float)  # else it is no such sum
    return float(factor)


def _soup(operands: AdapterOperands) -> AdapterResult:
    """A greedy soup, chosen by scores on the tasks of the adapters."""
    from graftwork.arithmetic.data.adaptersoups import plain_scores, soup_adapters

    found = soup_adapters(operands.adapters, operands.backbone, **operands.options, **operands.reading)
    names = ", ".join(f"{name} ({found.scores[name]:.4f})" for name in found.taken)
    said = f"the soup ({found.score:.4f}) is of {len(found.taken)} of {len(found.scores)} adapters: {names}"
    details = {"taken": list(found.taken), "score": found.score, "scores": plain_scores(found.scores)}
    return AdapterResult(found.merged, (said,), {"soup": details})


def described(chosen: ChosenMethod) -> str:
    """A method as a formula, with its settings."""
    settings = chosen.settings.model_dump(mode="json", exclude_none=True)
    return f"{chosen.name}({', '.join(f'{key}={value}' for key, value in settings.items())})"


def _by_changes(chosen: ChosenMethod, operands: AdapterOperands, *, basis: bool = False) -> AdapterResult:
    """A method of models or vectors on what adapters change."""
    from graftwork.arithmetic.adapters.heads import head_names
    from graftwork.arithmetic.adapters.merging import merge_adapters

    given = None if basis else coefficients_of(chosen, operands.weights, len(operands.adapters))
    if given is not None:
        how: dict[str, Any] = {"coefficients": given, "scale": scale_of(chosen)}
    else:
        formula = formula_of(chosen, operands.weights, head_names(operands.adapters.values()))
        spectral = chosen.method.by_singular_values
        how = {"formula": formula, "basis": basis, "by_singular_values": spectral}
    how["head_shares"] = chosen.shares(operands.weights, len(operands.adapters))
    return AdapterResult(merge_adapters(operands.adapters, operands.backbone, **how, **operands.options))


def formula_of(chosen: ChosenMethod, weights: Sequence[Any] | None, heads: Collection[str] = ()) -> "Formula":
    """What makes one vector of several, its scale included.

    Args:
        chosen: the method.
        weights: a number for each vector.
        heads: names of the tensors of heads, for which filters of numbers may be.
    """

    def combined(vectors: "Sequence[Vector]") -> "Vector":
        from graftwork.arithmetic.values.filters import relevant, resolved
        from graftwork.arithmetic.values.weights import Weights

        given = [Weights.of(vector) for vector in vectors]
        if chosen.method.base == "optional" and len(given) == 1:
            given = [given[0] * 0.0, *given]  # from the backbone, which changes nothing
        names = given[0].shapes
        made = chosen.at(names, heads).combine(given, weights and [relevant(own, names, heads) for own in weights])
        if chosen.method.by_angle and not all(any(bool(t.any()) for t in vector.values()) for vector in vectors):
            raise MethodError(
                f"an adapter changes nothing, so that {chosen.name} has no angle to go by",
                expected="two adapters that change something; or interpolate",
                change="the adapters, METHOD",
            )
        if isinstance(chosen.settings, OfVectors):
            made = made.scaled(resolved(chosen.settings.factor, made.shapes, "scale"))
        return made

    combined.__name__ = described(chosen)
    return combined


def _scores(found: Any, name: str) -> str:
    """The first metric of a task on both parts of the rows."""
    metric = next(iter(found.transductive[name]))
    return (
        f"{metric} {found.transductive[name][metric]:.4f} on the rows learned on, "
        f"{found.inductive[name][metric]:.4f} on the others"
    )
