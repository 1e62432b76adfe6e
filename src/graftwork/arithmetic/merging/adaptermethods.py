"""Merge methods for adapters, by name: those that read data, and all of `graftwork merge` that are over vectors."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field, PositiveFloat

from graftwork.arithmetic.data.settings import AdaMergingSettings, DataSettings, FisherSettings, RegMeanSettings
from graftwork.arithmetic.merging.method import OfVectors
from graftwork.arithmetic.merging.registry import MERGE_METHODS, Analogy, Arithmetic, Average, Ties, make_merge_method
from graftwork.arithmetic.values.filters import Number
from graftwork.errors import MethodError, RecipeError, nearest

if TYPE_CHECKING:
    from graftwork.adapters import Adapter
    from graftwork.arithmetic.adapters.bodies import Align
    from graftwork.arithmetic.adapters.commonbasis import Vector
    from graftwork.arithmetic.adapters.heads import HeadsMode
    from graftwork.arithmetic.adapters.merging import MergedAdapters
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

    def require(self, name: str, *, weighs: bool = True, aligns: bool = True, heads: bool = True) -> None:
        """Refuse what a method does not take.

        Raises:
            RecipeError: names the flag.
        """
        wrong = {
            "--weights": not weighs and self.weights is not None,
            "--align": not aligns and self.align != "auto",
            "--heads": not heads and self.heads != "auto",
        }
        given = [flag for flag, found in wrong.items() if found]
        if given:
            raise RecipeError(f"{', '.join(given)} would do nothing: {name} has no use for it", change=", ".join(given))


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


class AdapterMethod(ABC):
    """A way to merge adapters. Its settings are fields of the class.

    Attributes:
        name: its name.
        paper: where it comes from.
        when: when to use it.
    """

    name: ClassVar[str]
    paper: ClassVar[str]
    when: ClassVar[str]

    @abstractmethod
    def run(self, operands: AdapterOperands) -> AdapterResult:
        """Merge adapters."""


@dataclass(frozen=True)
class Vectors(AdapterMethod):
    """A method of whole models, applied to what adapters change.

    Attributes:
        method: the method, with its settings.
        basis: whether it is applied in the basis that all have in common (KnOTS).
    """

    method: Any
    basis: bool = False

    def run(self, operands: AdapterOperands) -> AdapterResult:
        from graftwork.arithmetic.adapters.merging import merge_adapters

        given = operands.weights
        own: dict[str, Any] = {"rank": operands.rank, "heads": operands.heads, "align": operands.align}
        plain = given is None or all(isinstance(one, int | float) for one in given)
        count, scale = len(operands.adapters), getattr(self.method.settled(), "scale", 1.0)
        if isinstance(self.method, Analogy):
            operands.require("analogy", weighs=False)
            self.method.check(count, base=False, weights=False, tasks=0)
            return AdapterResult(self._merge(merge_adapters, operands, coefficients=[-1.0, 1.0, 1.0], **own))
        if isinstance(self.method, Average | Arithmetic) and plain and not isinstance(scale, Mapping | list | tuple):
            numbers = [1.0] * count if given is None else [float(one) for one in given]
            total = sum(numbers) if isinstance(self.method, Average) else 1.0
            if not total:
                raise RecipeError("the weights of a mean add up to 0", change="--weights")
            shares = [one / total for one in numbers]
            return AdapterResult(self._merge(merge_adapters, operands, coefficients=shares, scale=float(scale), **own))
        if not isinstance(self.method, OfVectors):
            raise MethodError(
                f"merge method {self.method.name!r} is for whole models, not for adapters",
                expected="average, or a method over what training changed",
                change="METHOD",
            )
        if given is not None and not self.method.weighs:
            operands.require(self.method.name, weighs=False)
        return AdapterResult(
            self._merge(merge_adapters, operands, formula=self._formula(given), basis=self.basis, **own)
        )

    def _merge(self, merge: Any, operands: AdapterOperands, **options: Any) -> "MergedAdapters":
        found: MergedAdapters = merge(operands.adapters, operands.backbone, **options)
        return found

    def _formula(self, weights: Sequence[Any] | None) -> Any:
        """What makes one vector of several, its scale included."""
        method = self.method

        def combined(vectors: "Sequence[Vector]") -> "Vector":
            from graftwork.arithmetic.values.filters import resolved
            from graftwork.arithmetic.values.weights import Weights

            made = method.combine([Weights.of(vector) for vector in vectors], weights)
            scaled = made.scaled(resolved(method.settled().scale, made.shapes, "scale"))
            return {name: scaled[name] for name in scaled}

        settings = ", ".join(
            f"{key}={value}" for key, value in method.model_dump(mode="json", exclude_none=True).items()
        )
        combined.__name__ = f"{method.name}({settings})"
        return combined


class Knots(DataSettings, AdapterMethod):
    """KnOTS: a formula in the basis that what the adapters change has in common.

    Attributes:
        formula: `ties` or `dare`, with their usual settings but for these.
        keep: share of the numbers that TIES keeps.
        drop: probability with which DARE drops a number.
        scale: λ, by which the result is multiplied.
        seed: of what DARE draws.
    """

    name: ClassVar[str] = "knots"
    paper: ClassVar[str] = "Stoica et al. 2024, arXiv:2410.19735"
    when: ClassVar[str] = "LoRA adapters of several tasks"

    formula: Literal["ties", "dare"] = "ties"
    keep: Number = 0.2
    drop: Number = 0.9
    scale: Number = 1.0
    seed: int = Field(default=0, ge=0, lt=2**32)

    def run(self, operands: AdapterOperands) -> AdapterResult:
        inner: Any = (
            Ties(keep=self.keep, scale=self.scale)
            if self.formula == "ties"
            else make_merge_method("dare", {"drop": self.drop, "seed": self.seed, "scale": self.scale})
        )
        return Vectors(inner, basis=True).run(operands)


class Fisher(FisherSettings, AdapterMethod):
    """Fisher merging: each parameter counts by how much its model's answers depend on it.

    Attributes:
        normalise: divide each weight by the norm of its model's information.
    """

    name: ClassVar[str] = "fisher"
    paper: ClassVar[str] = "Matena & Raffel 2022, arXiv:2111.09832"
    when: ClassVar[str] = "several tasks, with labelled rows"

    normalise: bool = True

    def run(self, operands: AdapterOperands) -> AdapterResult:
        from graftwork.arithmetic.data.fishermerging import fisher_adapters

        merged = fisher_adapters(
            operands.adapters,
            operands.backbone,
            lambdas=operands.weights,
            fisher=FisherSettings(**{name: getattr(self, name) for name in FisherSettings.model_fields}),
            normalise=self.normalise,
            rank=operands.rank,
            heads=operands.heads,
            align=operands.align,
            data=operands.data,
            working=operands.working,
            progress=operands.progress,
        )
        return AdapterResult(merged)


class Donor(FisherSettings, AdapterMethod):
    """Donor merging: the first adapter becomes better by a share of the second, chosen on the first's validation rows.

    Attributes:
        by: `fisher` information, or the `mean`.
        points: how many shares are tried.
    """

    name: ClassVar[str] = "donor"
    paper: ClassVar[str] = "Matena & Raffel 2022, section 4.3"
    when: ClassVar[str] = "a small task that a larger one can help"

    by: Literal["fisher", "mean"] = "fisher"
    points: int = Field(default=50, ge=2)

    def run(self, operands: AdapterOperands) -> AdapterResult:
        from graftwork.arithmetic.adapters.merging import MergedAdapters
        from graftwork.arithmetic.data.donors import donor_merge

        operands.require("donor", weighs=False, heads=False)
        if len(operands.adapters) != 2:
            raise RecipeError(
                f"donor was given {len(operands.adapters)} adapters",
                expected="the target, and the donor",
                change="the adapters",
            )
        (name, target), (other, donor) = operands.adapters.items()
        merge = donor_merge(
            target,
            donor,
            operands.backbone,
            by=self.by,
            points=self.points,
            fisher=FisherSettings(**{own: getattr(self, own) for own in FisherSettings.model_fields}),
            rank=operands.rank,
            align=operands.align,
            data=operands.data.get(name),
            donor_data=operands.data.get(other),
            working=operands.working,
            progress=operands.progress,
        )
        points = [{"weight": mix, **scores} for mix, scores in merge.points]
        said = f"{name} counts {merge.weight:.2f}, {other} {1 - merge.weight:.2f}"
        return AdapterResult(
            MergedAdapters({name: merge.adapter}, {name: (name,)}), (said,), {"weight": merge.weight, "points": points}
        )


class RegMean(RegMeanSettings, AdapterMethod):
    """RegMean: each linear map is the nearest to the models' own on what enters them. It needs no labels."""

    name: ClassVar[str] = "regmean"
    paper: ClassVar[str] = "Jin et al. 2023, arXiv:2212.09849"
    when: ClassVar[str] = "several tasks, with texts alone"

    def run(self, operands: AdapterOperands) -> AdapterResult:
        from graftwork.arithmetic.data.regressionmeans import regmean_adapters

        operands.require("regmean", weighs=False, aligns=False)
        merged = regmean_adapters(
            operands.adapters,
            operands.backbone,
            settings=RegMeanSettings(**self.model_dump()),
            rank=operands.rank,
            heads=operands.heads,
            data=operands.data,
            working=operands.working,
            progress=operands.progress,
        )
        return AdapterResult(merged)


class AdaMerging(AdaMergingSettings, AdapterMethod):
    """AdaMerging: how much each adapter counts is learned by the entropy of answers on texts without labels.

    Attributes:
        keep: for AdaMerging++, the share of numbers that TIES keeps of each vector. None: all are learned with.
        split: whose texts are learned on, and scored.
    """

    name: ClassVar[str] = "adamerging"
    paper: ClassVar[str] = "Yang et al. 2024, arXiv:2310.02575"
    when: ClassVar[str] = "several tasks of classes, with texts alone"

    keep: PositiveFloat | None = Field(default=None, le=1.0)
    split: Literal["train", "validation", "test"] = "validation"

    def run(self, operands: AdapterOperands) -> AdapterResult:
        from functools import partial

        from graftwork.arithmetic.data.learnedcoefficients import adamerging
        from graftwork.arithmetic.operations.operations import ties

        operands.require("adamerging", weighs=False, aligns=False, heads=False)
        if operands.rank is not None:
            raise RecipeError("a rank would do nothing: adamerging gives the exact sum", change="--rank")
        found = adamerging(
            operands.adapters,
            operands.backbone,
            settings=AdaMergingSettings(**{own: getattr(self, own) for own in AdaMergingSettings.model_fields}),
            elect=None if self.keep is None else partial(ties, keep=self.keep),
            split=self.split,
            data=operands.data,
            working=operands.working,
            progress=operands.progress,
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


DATA_METHODS: Mapping[str, type[Any]] = {own.name: own for own in (Knots, Fisher, Donor, RegMean, AdaMerging)}
"""The methods that adapters and fully fine-tuned models have beside those of whole models, by name."""


def make_adapter_method(name: str, settings: Mapping[str, Any] | None = None) -> AdapterMethod:
    """A method for adapters by its name, with settings.

    Raises:
        MethodError: there is no such method, or a setting is unknown or of the wrong type.
    """
    if name in DATA_METHODS:
        found: AdapterMethod = DATA_METHODS[name](**(settings or {}))
        return found
    if name not in MERGE_METHODS:
        known = [*MERGE_METHODS, *DATA_METHODS]
        raise MethodError(f"unknown merge method {name!r}", expected=nearest(name, known), change="METHOD")
    return Vectors(make_merge_method(name, settings))


def _scores(found: Any, name: str) -> str:
    """The first metric of a task on both parts of the rows."""
    metric = next(iter(found.transductive[name]))
    return (
        f"{metric} {found.transductive[name][metric]:.4f} on the rows learned on, "
        f"{found.inductive[name][metric]:.4f} on the others"
    )
