"""Bodies: what adapters are without their heads, as vectors to calculate with, and adapters made of such vectors again.

- LoRA with any settings, VeRA, and unions of them: low-rank differences to the weights, by their products.
- IA3, BitFit and layer-norm tuning, with one list of settings: their parameters, relative to those that change nothing
  (ones for IA3, zeros for the others).
- Bottlenecks with one list of settings: their parameters, where they began alike, or after their units are permuted to
  match.
- Others that can be merged into weights (full fine-tuning, DoRA, HyperGrid), also different ones: differences to them.

Nothing else can be calculated with, and is refused by name: what two prompts, gates or hypernetworks have in common is
not in their numbers.
"""

from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import ClassVar, Literal

import torch
from torch import Tensor

from graftwork.adapters import Adapter
from graftwork.arithmetic.adapters.commonbasis import Formula, knots_of_factors
from graftwork.arithmetic.adapters.differences import as_full, as_lora, factors_of, is_low_rank
from graftwork.arithmetic.adapters.lowrank import Factors, Products, best_of_rank, concatenated, truncated
from graftwork.arithmetic.adapters.units import matched
from graftwork.arithmetic.adapters.vectors import Computed, Vector, changes_of, nothing
from graftwork.arithmetic.values.weights import Weights
from graftwork.backbones import Backbone
from graftwork.errors import MethodError
from graftwork.methods import IA3, BitFit, HeadOnly, LayerNormTuning, Method
from graftwork.methods.projections import TENSORS

Align = Literal["auto", "units", "none"]
"""Whether the units of bottlenecks are permuted to match: where they did not begin alike, always, or never."""

NEUTRAL: Mapping[type[Method], float] = {IA3: 1.0, BitFit: 0.0, LayerNormTuning: 0.0, HeadOnly: 0.0}
"""Methods whose parameters say what is changed -> the value with which they change nothing."""


@dataclass(frozen=True)
class Body:
    """An adapter without its head.

    Attributes:
        method: its method.
        tensors: the method's tensors by canonical name, float32.
    """

    method: Method
    tensors: Mapping[str, Tensor]


@dataclass(frozen=True)
class Bodies(ABC):
    """The bodies of several adapters as vectors with the same names and shapes.

    Attributes:
        adapters: the adapters, by the name that messages have for them.
        backbone: of all of them.
        linear_only: why nothing but sums makes sense of these vectors; empty where any formula does.
    """

    adapters: Mapping[str, Adapter]
    backbone: Backbone

    linear_only: ClassVar[str] = ""

    @property
    @abstractmethod
    def vectors(self) -> tuple[Vector, ...]:
        """A vector for each adapter: zeros are what changes nothing."""

    @property
    def aligned(self) -> Mapping[str, Adapter]:
        """The adapters, as the vectors have their tensors."""
        return self.adapters

    @abstractmethod
    def written(self, vector: Vector, rank: int | None = None) -> Body:
        """The body that a vector says.

        Args:
            vector: with the names and shapes of `vectors`.
            rank: of the LoRA that it is to be; None: what says it exactly.
        """

    def combined(self, coefficients: Sequence[float], rank: int | None = None) -> Body:
        """The body of Σ c_i τ_i."""
        return self.written(linear(self.vectors, coefficients), rank)

    @classmethod
    def refuse_other_sums(cls, coefficients: Sequence[float]) -> None:
        """Refuse sums that make no sense of these vectors.

        Raises:
            MethodError: it is one.
        """
        return

    @classmethod
    def refuse_formula(cls, adapters: Collection[str], formula: str) -> None:
        """Refuse formulas where nothing but sums makes sense.

        Args:
            adapters: names, for the message.
            formula: what it is called.

        Raises:
            MethodError: so it is.
        """
        if cls.linear_only:
            raise MethodError(
                f"{', '.join(adapters)} are merged by a mean only, and not by {formula}: {cls.linear_only}",
                expected="no formula",
                change="the merge method: average",
            )

    def refuse_rank(self, rank: int | None) -> None:
        """Refuse a rank where no LoRA is made.

        Raises:
            MethodError: one is given.
        """
        if rank is not None:
            first = next(iter(self.adapters.values()))
            raise MethodError(
                f"rank {rank} would do nothing: adapters of method {first.method.name!r} are merged as such",
                expected="no rank",
                change="--rank",
            )


def linear(vectors: Sequence[Vector], coefficients: Sequence[float]) -> Vector:
    """Σ c_i τ_i, in float32, each when it is asked for."""

    def summed(name: str) -> Tensor:
        pairs = zip(vectors, coefficients, strict=True)
        return torch.stack([c * vector[name].float() for vector, c in pairs]).sum(dim=0)

    return Computed([*vectors[0]], summed)


@dataclass(frozen=True)
class LowRankBodies(Bodies):
    """Low-rank differences to weights, by the weights' canonical names."""

    @cached_property
    def factors(self) -> tuple[dict[str, Factors], ...]:
        """Of each adapter, the factors of every weight that any of them changes."""
        each = [factors_of(adapter, self.backbone) for adapter in self.adapters.values()]
        shapes = {name: (own.A.shape[1], own.B.shape[0]) for one in each for name, own in one.items()}
        nothing = {name: Factors(A=torch.zeros(0, i), B=torch.zeros(o, 0)) for name, (i, o) in shapes.items()}
        return tuple({name: one.get(name, nothing[name]) for name in shapes} for one in each)

    @cached_property
    def vectors(self) -> tuple[Vector, ...]:
        return tuple(Weights(Products(one)) for one in self.factors)

    def combined(self, coefficients: Sequence[float], rank: int | None = None) -> Body:
        joined = {name: concatenated([one[name] for one in self.factors], coefficients) for name in self.factors[0]}
        return self._lora(joined, rank)

    def knotted(self, formula: Formula, scale: float, rank: int | None = None, *, full_size: bool = False) -> Body:
        """The body that KnOTS makes: the formula is applied in the basis that the differences have in common."""
        merged = knots_of_factors(self.factors, formula, full_size=full_size)
        return self._lora({name: own.scaled(scale) for name, own in merged.items()}, rank)

    def written(self, vector: Vector, rank: int | None = None) -> Body:
        if rank is None:
            return _full(self, vector)
        return self._lora({name: best_of_rank(t, rank).factors for name, t in vector.items()}, None)

    def _lora(self, factors: Mapping[str, Factors], rank: int | None) -> Body:
        own = factors if rank is None else {name: truncated(one, rank).factors for name, one in factors.items()}
        return Body(*as_lora(own, self.backbone, like=[adapter.method for adapter in self.adapters.values()]))


@dataclass(frozen=True)
class WeightBodies(Bodies):
    """Differences to the backbone's weights, by canonical name."""

    @cached_property
    def vectors(self) -> tuple[Vector, ...]:
        each = [changes_of(adapter, self.backbone) for adapter in self.adapters.values()]
        shapes = {name: t.shape for one in each for name, t in one.items()}
        return tuple({name: one.get(name, nothing(shape)) for name, shape in shapes.items()} for one in each)

    def written(self, vector: Vector, rank: int | None = None) -> Body:
        if rank is None:
            return _full(self, vector)
        names = ", ".join(self.adapters)
        wrong = sorted(name for name, t in vector.items() if not is_low_rank(name, self.backbone) and bool(t.any()))
        if wrong:
            raise MethodError(
                f"the merge of {names} changes {wrong[0]}, which is no weight of a linear map in the layers, so that "
                f"LoRA cannot say it ({len(wrong)} such tensors)",
                expected="no rank, which keeps all differences; or graftwork extract, which says what is left out",
                change="--rank",
            )
        factors = {n: best_of_rank(t, rank).factors for n, t in vector.items() if is_low_rank(n, self.backbone)}
        return Body(*as_lora(factors, self.backbone))


@dataclass(frozen=True)
class ParameterBodies(Bodies):
    """The parameters of one method, relative to those that change nothing."""

    @property
    def _first(self) -> Adapter:
        return next(iter(self.adapters.values()))

    @property
    def _neutral(self) -> float:
        return NEUTRAL.get(type(self._first.method), 0.0)

    @cached_property
    def vectors(self) -> tuple[Vector, ...]:
        return tuple({n: t - self._neutral for n, t in body_of(adapter).items()} for adapter in self.adapters.values())

    def written(self, vector: Vector, rank: int | None = None) -> Body:
        self.refuse_rank(rank)
        return Body(self._first.method, {name: (t + self._neutral).contiguous() for name, t in vector.items()})


@dataclass(frozen=True)
class BottleneckBodies(ParameterBodies):
    """The parameters of bottlenecks whose units match.

    Attributes:
        align: whether units are permuted to match.
    """

    align: Align = field(default="auto", kw_only=True)

    linear_only: ClassVar[str] = (
        "what is between the two maps of a bottleneck is not linear, so that zeros in its weights are not what changes "
        "nothing"
    )

    @cached_property
    def vectors(self) -> tuple[Vector, ...]:
        each = [body_of(adapter) for adapter in self.adapters.values()]
        if self.align == "none" or (self.align == "auto" and began_alike([*self.adapters.values()])):
            return tuple(each)
        owners = [name.removesuffix(".down") for name in each[0] if name.endswith(".down")]
        for owner in owners:
            own = [{n: one[f"{owner}.{n}"] for n in TENSORS if f"{owner}.{n}" in one} for one in each]
            for one, found in zip(each, matched(own), strict=True):
                one.update({f"{owner}.{name}": tensor for name, tensor in found.items()})
        return tuple(each)

    @property
    def aligned(self) -> Mapping[str, Adapter]:
        pairs = zip(self.adapters.items(), self.vectors, strict=True)
        return {name: replace(adapter, tensors={**adapter.tensors, **own}) for (name, adapter), own in pairs}

    def combined(self, coefficients: Sequence[float], rank: int | None = None) -> Body:
        self.refuse_other_sums(coefficients)
        return super().combined(coefficients, rank)

    @classmethod
    def refuse_other_sums(cls, coefficients: Sequence[float]) -> None:
        if abs(sum(coefficients) - 1.0) > 1e-6 or min(coefficients) < 0.0:
            raise MethodError(
                f"bottlenecks are merged by a mean only: {cls.linear_only}",
                expected="coefficients of 0 or more that add up to 1",
                change="--weights, --method.scale",
            )


def body_of(adapter: Adapter) -> dict[str, Tensor]:
    """The tensors of an adapter's method."""
    return {name: tensor for name, tensor in adapter.tensors.items() if not name.startswith("head.")}


def began_alike(adapters: Sequence[Adapter]) -> bool:
    """Whether adapters began with the same tensors: those of one seed, or of one adapter that their runs began with."""
    first = adapters[0]
    start = first.recipe.get("start")
    return all(
        other.method == first.method
        and other.recipe.get("start") == start
        and "merged" not in other.recipe
        and (start is not None or other.seed == first.seed)
        for other in adapters
    )


def _full(bodies: Bodies, vector: Vector) -> Body:
    return Body(*as_full(vector, bodies.backbone, [adapter.head for adapter in bodies.adapters.values()]))
