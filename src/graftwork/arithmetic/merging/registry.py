"""Merge methods by name. A new one is one class and one line in the table below."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import BeforeValidator, Field

from graftwork.arithmetic.merging.method import Base, MergeMethod, OfModels, OfVectors, Operands
from graftwork.arithmetic.values.filters import Number
from graftwork.errors import MethodError, nearest
from graftwork.settings.checked import split_commas

if TYPE_CHECKING:
    from graftwork.arithmetic.values.weights import Weights


class Average(OfModels):
    """The mean of models (a uniform soup), weighted by `--weights`."""

    name: ClassVar[str] = "average"
    paper: ClassVar[str] = "Wortsman et al. 2022, arXiv:2203.05482"
    when: ClassVar[str] = "runs of one task from one start"
    least: ClassVar[int] = 2

    def merge(self, operands: Operands) -> "Weights":
        from graftwork.arithmetic.operations.operations import average

        return average(operands.models, weights=operands.weights)


class Soup(OfModels):
    """A greedy soup: models are added in the order of their scores, each where the mean scores no less with it."""

    name: ClassVar[str] = "soup"
    paper: ClassVar[str] = "Wortsman et al. 2022, arXiv:2203.05482, algorithm 1"
    when: ClassVar[str] = "many runs of one task, some of them bad"
    least: ClassVar[int] = 2
    weighs: ClassVar[bool] = False
    scored: ClassVar[bool] = True

    def merge(self, operands: Operands) -> "Weights":
        from graftwork.arithmetic.operations.soups import greedy_soup

        assert operands.score is not None
        found = greedy_soup(operands.models, operands.score)
        names = [f"{operands.models[i].called} ({found.scores[i]:.4f})" for i in found.taken]
        operands.tell(f"the soup ({found.score:.4f}) is of {len(names)} models: {', '.join(names)}")
        return found.soup


class Between(MergeMethod):
    """A way from one model to another: from the base, or the first of two, to the other.

    Attributes:
        t: how far the way is gone, from 0 to 1.
    """

    base: ClassVar[Base] = "optional"
    least: ClassVar[int] = 2
    most: ClassVar[int | None] = 2
    weighs: ClassVar[bool] = False

    t: Number = 0.5

    def ends(self, operands: Operands) -> "list[Weights]":
        """The two models."""
        return [*([operands.base] if operands.base is not None else []), *operands.models]


class Interpolate(Between):
    """A straight line from one model to another: (1 − t) θ₀ + t θ₁. From the pre-trained model, this is WiSE-FT."""

    name: ClassVar[str] = "interpolate"
    paper: ClassVar[str] = "Wortsman et al. 2022, arXiv:2109.01903"
    when: ClassVar[str] = "robust fine-tuning (WiSE-FT)"

    def merge(self, operands: Operands) -> "Weights":
        from graftwork.arithmetic.operations.operations import interpolate

        return interpolate(self.ends(operands), t=self.t)


class Slerp(Between):
    """An arc from one model to another, tensor by tensor."""

    name: ClassVar[str] = "slerp"
    paper: ClassVar[str] = "Shoemake 1985"
    when: ClassVar[str] = "two models; keeps the length of weights"

    def merge(self, operands: Operands) -> "Weights":
        from graftwork.arithmetic.operations.operations import slerp

        return slerp(self.ends(operands), t=self.t)


class Analogy(OfModels):
    """C + B − A of models A, B, C: A is to B as C is to the result."""

    name: ClassVar[str] = "analogy"
    paper: ClassVar[str] = "Ilharco et al. 2023, arXiv:2212.04089, section 5"
    when: ClassVar[str] = "a domain or task without data"
    least: ClassVar[int] = 3
    most: ClassVar[int | None] = 3
    weighs: ClassVar[bool] = False

    def merge(self, operands: Operands) -> "Weights":
        from graftwork.arithmetic.operations.operations import analogy

        return analogy(operands.models)


class Arithmetic(OfVectors):
    """The sum of task vectors. A negative weight has the model forget a task."""

    name: ClassVar[str] = "arithmetic"
    paper: ClassVar[str] = "Ilharco et al. 2023, arXiv:2212.04089"
    when: ClassVar[str] = "add tasks, or forget one (--weights -1)"

    @property
    def sums(self) -> bool:
        return True

    def combine(self, vectors: "list[Weights]", weights: Sequence[Number] | None) -> "Weights":
        from graftwork.arithmetic.operations.operations import task_arithmetic

        return task_arithmetic(vectors, weights=weights)


class Ties(OfVectors):
    """TIES: keep the largest numbers of each vector, elect a sign, merge those that have it.

    Attributes:
        keep: share of the numbers that are kept.
        scope: `global`: the largest of the whole vector (the paper); `tensor`: of each tensor (mergekit).
        combined: the `mean` of those with the elected sign, or their `sum`.
    """

    name: ClassVar[str] = "ties"
    paper: ClassVar[str] = "Yadav et al. 2023, arXiv:2306.01708"
    when: ClassVar[str] = "several tasks whose changes conflict"

    keep: Number = 0.2
    scope: Literal["global", "tensor"] = "global"
    combined: Literal["mean", "sum"] = "mean"

    @property
    def sums(self) -> bool:
        return self.combined == "sum"

    def combine(self, vectors: "list[Weights]", weights: Sequence[Number] | None) -> "Weights":
        from graftwork.arithmetic.operations.operations import ties

        return ties(vectors, keep=self.keep, scope=self.scope, merge=self.combined, weights=weights)


class Dare(OfVectors):
    """DARE: drop numbers at random, let the others grow, and sum; or elect a sign as TIES does.

    Attributes:
        drop: probability with which a number is dropped.
        seed: of what is drawn.
        elect: elect a sign, and take the mean of those that have it.
    """

    name: ClassVar[str] = "dare"
    paper: ClassVar[str] = "Yu et al. 2024, arXiv:2311.03099"
    when: ClassVar[str] = "language models with small changes"

    drop: Number = 0.9
    seed: int = Field(default=0, ge=0, lt=2**32)
    elect: bool = False

    @property
    def sums(self) -> bool:
        return not self.elect

    def combine(self, vectors: "list[Weights]", weights: Sequence[Number] | None) -> "Weights":
        from graftwork.arithmetic.operations.operations import dare_merge

        return dare_merge(vectors, drop=self.drop, seed=self.seed, elect=self.elect, weights=weights)


class Breadcrumbs(OfVectors):
    """Model Breadcrumbs: drop the largest and the smallest numbers of each tensor, and sum.

    Attributes:
        keep: share of the numbers that are kept.
        outliers: share of the largest ones, which are dropped.
        elect: elect a sign, and take the mean of those that have it.
    """

    name: ClassVar[str] = "breadcrumbs"
    paper: ClassVar[str] = "Davari and Belilovsky 2024, arXiv:2312.06795"
    when: ClassVar[str] = "many tasks, one setting for all"

    keep: Number = 0.85
    outliers: Number = 0.01
    elect: bool = False

    @property
    def sums(self) -> bool:
        return not self.elect

    def combine(self, vectors: "list[Weights]", weights: Sequence[Number] | None) -> "Weights":
        from graftwork.arithmetic.operations.operations import breadcrumbs

        return breadcrumbs(vectors, keep=self.keep, outliers=self.outliers, elect=self.elect, weights=weights)


class Della(OfVectors):
    """DELLA: drop numbers at random, small ones more often, elect a sign, take the mean.

    Attributes:
        drop: mean probability with which a number is dropped.
        spread: by how much that of the smallest of a row exceeds that of the largest.
        seed: of what is drawn.
    """

    name: ClassVar[str] = "della"
    paper: ClassVar[str] = "Deep et al. 2024, arXiv:2406.11617"
    when: ClassVar[str] = "as DARE, sparing what is large"

    drop: Number = 0.7
    spread: Number = 0.2
    seed: int = Field(default=0, ge=0, lt=2**32)

    def combine(self, vectors: "list[Weights]", weights: Sequence[Number] | None) -> "Weights":
        from graftwork.arithmetic.operations.operations import della

        return della(vectors, drop=self.drop, spread=self.spread, seed=self.seed, weights=weights)


class Sce(OfVectors):
    """SCE: select the numbers that vary most over the models, weigh models by their squares, erase minority signs.

    Attributes:
        keep: share of the numbers that are selected.
    """

    name: ClassVar[str] = "sce"
    paper: ClassVar[str] = "Wan et al. 2024, arXiv:2408.07990"
    when: ClassVar[str] = "language models, no weights to choose"
    least: ClassVar[int] = 2

    keep: Number = 0.1

    def combine(self, vectors: "list[Weights]", weights: Sequence[Number] | None) -> "Weights":
        from graftwork.arithmetic.operations.operations import sce

        return sce(vectors, keep=self.keep, weights=weights)


class ModelStock(OfVectors):
    """Model Stock: the mean of models drawn towards the base by how far they point apart."""

    name: ClassVar[str] = "model-stock"
    paper: ClassVar[str] = "Jang et al. 2024, arXiv:2403.19522"
    when: ClassVar[str] = "two or three runs of one task"
    least: ClassVar[int] = 2
    weighs: ClassVar[bool] = False

    def combine(self, vectors: "list[Weights]", weights: Sequence[Number] | None) -> "Weights":
        from graftwork.arithmetic.operations.operations import model_stock

        return model_stock(vectors)


class IsoC(OfVectors):
    """Iso-C: the sum of task matrices with all singular values made their mean; other tensors are averaged."""

    name: ClassVar[str] = "iso-c"
    paper: ClassVar[str] = "Marczak et al. 2025, arXiv:2502.04959"
    when: ClassVar[str] = "many tasks, best without data"

    def combine(self, vectors: "list[Weights]", weights: Sequence[Number] | None) -> "Weights":
        from graftwork.arithmetic.operations.operations import iso_c

        return iso_c(vectors, weights=weights)


class TsvM(OfVectors):
    """TSV-M: the first singular triples of each task, made orthogonal; other tensors are averaged."""

    name: ClassVar[str] = "tsv-m"
    paper: ClassVar[str] = "Gargiulo et al. 2025, arXiv:2412.00081"
    when: ClassVar[str] = "many tasks, best without data"

    def combine(self, vectors: "list[Weights]", weights: Sequence[Number] | None) -> "Weights":
        from graftwork.arithmetic.operations.operations import tsv_m

        return tsv_m(vectors, weights=weights)


class Emr(OfVectors):
    """EMR: the vector that a task has of the unified one, by its mask and its scale.

    Attributes:
        task: number of the model whose vector it is, from 0 on.
    """

    name: ClassVar[str] = "emr"
    paper: ClassVar[str] = "Huang et al. 2024, arXiv:2405.17461"
    when: ClassVar[str] = "a model for each task, a bit a number each"
    weighs: ClassVar[bool] = False

    task: int = Field(default=0, ge=0)

    def combine(self, vectors: "list[Weights]", weights: Sequence[Number] | None) -> "Weights":
        from graftwork.arithmetic.operations.unifying import emr

        return emr(vectors).vector(self.task)


class Rebasin(OfModels):
    """Git Re-Basin: the mean of models whose units are permuted to match, in the first one's order.

    Attributes:
        rounds: maximum number of times that every group of units is matched.
        start: `spread`: groups are first matched from the embeddings on; `identity` (the paper): all begin as they are.
        fixed: groups that are not permuted, such as `residual`.
        seed: of the order in which groups are matched.
    """

    name: ClassVar[str] = "rebasin"
    paper: ClassVar[str] = "Ainsworth et al. 2023, arXiv:2209.04836"
    when: ClassVar[str] = "models trained from different seeds"
    least: ClassVar[int] = 2

    rounds: int = Field(default=100, ge=1)
    start: Literal["spread", "identity"] = "spread"
    fixed: Annotated[tuple[str, ...], BeforeValidator(split_commas)] = ()
    seed: int = Field(default=0, ge=0)

    def merge(self, operands: Operands) -> "Weights":
        from graftwork.arithmetic.alignment.matching import MatchingSettings
        from graftwork.arithmetic.merging.rebasin import rebasin

        settings = MatchingSettings(**dict(self))
        return rebasin(operands.models, weights=operands.weights, settings=settings, tell=operands.tell)


MERGE_METHODS: Mapping[str, type[MergeMethod]] = {
    method.name: method
    for method in (
        *(Average, Soup, Interpolate, Slerp, Arithmetic, Analogy, Ties, Dare, Breadcrumbs, Della, Sce),
        *(ModelStock, IsoC, TsvM, Emr, Rebasin),
    )
}
"""The methods of `graftwork merge`, by name."""


def make_merge_method(name: str, settings: Mapping[str, Any] | None = None) -> MergeMethod:
    """A method by its name, with settings.

    Raises:
        MethodError: there is no such method, or a setting is unknown or of the wrong type.
    """
    if name not in MERGE_METHODS:
        raise MethodError(f"unknown merge method {name!r}", expected=nearest(name, MERGE_METHODS), change="METHOD")
    return MERGE_METHODS[name](**(settings or {}))
