"""Averages: the weighted sum of what several adapters do.

y = h + Σ_n w_n u_n, with u_n what part n adds. This is an average of outputs: the parts stay as they are, side by side.
Where a part multiplies (IA3, HyperGrid) or replaces a layer norm's parameters, what is averaged is what it multiplies
with, which gives the same. `fuse` (Pfeiffer et al. 2021) has attention in the place of fixed weights.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar, Literal, cast

import torch
from pydantic import field_validator
from torch import Tensor

from graftwork.backbones import Site
from graftwork.errors import MethodError
from graftwork.methods.composition import Composition, all_of, in_columns, require_one_place
from graftwork.methods.parameters import Parameter, zeros
from graftwork.methods.wide import COMBINABLE, as_units, averaged, one_after_the_other, refusal, scaled, side_by_side
from graftwork.ops import Bias, Bottleneck, Grid, LowRank, Norm, Op, Remember, Scale

Weights = Mapping[str, Tensor]
Frozen = Mapping[str, Tensor]


class Average(Composition):
    """The weighted average of adapters. Use it as the simplest combination, with nothing but the head to train.

    Attributes:
        weights: `equal`; one number for each part; or `learned`: at each place a softmax over trained numbers, which
            start equal.
    """

    name: ClassVar[str] = "average"
    paper: ClassVar[str] = "Pfeiffer et al. 2021, arXiv:2005.00247"
    when: ClassVar[str] = "the mean of several adapters' outputs"
    lowers_to: ClassVar[tuple[type[Op], ...]] = (Remember, *COMBINABLE, Scale, Bias, Norm, Grid)

    weights: Literal["equal", "learned"] | tuple[float, ...] = "equal"

    @property
    def unmergeable(self) -> str:
        return "; ".join(dict.fromkeys(part.method.unmergeable for part in self.parts if part.method.unmergeable))

    @field_validator("weights", mode="before")
    @classmethod
    def _as_numbers(cls, value: object) -> object:
        if isinstance(value, str) and value not in ("equal", "learned"):
            return [float(part) for part in value.split(",")]
        return value

    def model_post_init(self, context: Any, /) -> None:
        if not isinstance(self.weights, str) and len(self.weights) != len(self.parts):
            raise MethodError(
                f"weights has {len(self.weights)} numbers for {len(self.parts)} parts",
                expected="one number for each part, in their order",
                change="--method.weights",
            )

    def declare_own(self, site: Site) -> dict[str, Parameter]:
        if self.weights != "learned":
            return {}
        return {f"average.{site.name}.weights": Parameter(shape=(len(self.parts),), init=zeros, decay=False)}

    def combine(
        self,
        site: Site,
        ops: Mapping[str, Sequence[Op]],
        parameters: Mapping[str, Tensor],
        frozen: Mapping[str, Tensor],
    ) -> Sequence[Op]:
        self._refuse_entangled(ops)
        weights = self._weights(site, parameters)
        return [self._average(column, weights, frozen) for column in in_columns(self.name, ops)]

    def _refuse_entangled(self, ops: Mapping[str, Sequence[Op]]) -> None:
        """Refuse parts of which one op changes what another one gives: the average of each of them is not that of both.

        Raises:
            MethodError: names a part.
        """
        for name, acting in ops.items():
            for op in acting:
                if len(acting) > 1 and isinstance(op, Scale | Norm):
                    other = next(other for other in acting if other is not op)
                    why = f"it changes what the part's {type(other).__name__} op gives at the same site"
                    raise refusal(
                        self.name, name, op, why, expected="parts that add, or multiply, and not both at a site"
                    )

    def _weights(self, site: Site, parameters: Mapping[str, Tensor]) -> Weights:
        names = [part.name for part in self.parts]
        if self.weights == "learned":
            given = torch.softmax(parameters[f"average.{site.name}.weights"], dim=0)
        else:
            like = next(iter(parameters.values()))
            numbers = [1 / len(names)] * len(names) if self.weights == "equal" else [float(w) for w in self.weights]
            given = like.new_tensor(numbers)
        return dict(zip(names, given.unbind(), strict=True))

    def _average(self, column: Mapping[str, Op], weights: Weights, frozen: Mapping[str, Tensor]) -> Op:
        for kinds, average in _AVERAGES:
            found = all_of(self.name, column, *kinds)
            if found is not None:
                return average(self.name, found, weights, frozen)
        name, op = next(iter(column.items()))
        expected = "bottlenecks, LoRA, IA3, norms, biases or HyperGrid"
        raise refusal(self.name, name, op, "it has no average", expected=expected)


def _of_units(method: str, ops: Mapping[str, Op], weights: Weights, frozen: Frozen) -> Op:
    """Of bottlenecks: a wider one, whose up projections are multiplied by the weights; of low-rank ops, one of the sum
    of their ranks, which can be merged as they can."""
    low_rank = {name: op for name, op in ops.items() if isinstance(op, LowRank)}
    if len(low_rank) == len(ops):
        return _of_low_rank(low_rank, weights)
    units = {name: as_units(method, name, op) for name, op in ops.items()}
    require_one_place(method, units)
    whole, _ = side_by_side([scaled(own, weights[name]) for name, own in units.items()])
    if whole.gates or whole.norms is not None or len(whole.activations) > 1:
        return whole
    return Bottleneck(
        down=whole.down,
        down_bias=whole.down_bias,
        up=whole.up,
        up_bias=whole.up.new_zeros(len(whole.up)),
        activation=whole.activations[0],
        at=cast(Literal["result", "norm"], whole.at),
        source=whole.source,
    )


def _of_low_rank(ops: Mapping[str, LowRank], weights: Weights) -> Op:
    A = torch.cat([op.A for op in ops.values()])
    B = torch.cat([op.B * weights[name] for name, op in ops.items()], dim=1)
    dropouts = one_after_the_other([(len(op.A), op.row_dropouts) for op in ops.values()])
    return LowRank(A=A, B=B, dropouts=dropouts)


def _of_scales(method: str, ops: Mapping[str, Op], weights: Weights, frozen: Frozen) -> Op:
    own = {name: op for name, op in ops.items() if isinstance(op, Scale)}
    [first, *others] = own.values()
    if any(op.at != first.at for op in others):
        raise refusal(method, next(iter(own)), first, "other parts scale another side")
    return replace(first, v=averaged({name: op.v for name, op in own.items()}, weights) + _rest(weights))


def _of_biases(method: str, ops: Mapping[str, Op], weights: Weights, frozen: Frozen) -> Op:
    return Bias(b=averaged({name: op.b for name, op in ops.items() if isinstance(op, Bias)}, weights))


def _of_norms(method: str, ops: Mapping[str, Op], weights: Weights, frozen: Frozen) -> Op:
    own = {name: op for name, op in ops.items() if isinstance(op, Norm)}
    gain = averaged({name: op.gain for name, op in own.items()}, weights)
    gain = gain + _rest(weights) * frozen["weight"].to(gain)
    biases = {name: op.bias for name, op in own.items() if op.bias is not None}
    if not biases:
        return Norm(gain=gain)
    bias = averaged(biases, weights)
    return Norm(gain=gain, bias=bias + _rest(weights) * frozen["bias"].to(bias))


def _of_grids(method: str, ops: Mapping[str, Op], weights: Weights, frozen: Frozen) -> Op:
    own = {name: op for name, op in ops.items() if isinstance(op, Grid)}
    [(first, one), *others] = own.items()
    for name, other in others:
        if other.size != one.size:
            raise refusal(
                method,
                name,
                other,
                f"its grid of {other.size} is not of the size of part {first!r}, {one.size}",
                expected="grids of one size (grid_rows, grid_columns)",
            )
    return replace(one, change=averaged({name: op.change for name, op in own.items()}, weights))


def _rest(weights: Weights) -> Tensor:
    """What weights leave to the frozen backbone: 0 where they add up to 1."""
    return 1 - torch.stack(list(weights.values())).sum()


_AVERAGES: tuple[tuple[tuple[type[Op], ...], Callable[[str, Mapping[str, Op], Weights, Frozen], Op]], ...] = (
    (COMBINABLE, _of_units),
    ((Scale,), _of_scales),
    ((Bias,), _of_biases),
    ((Norm,), _of_norms),
    ((Grid,), _of_grids),
)
"""How ops of some kinds are averaged; the first that fits is used."""
