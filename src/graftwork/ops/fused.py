"""Fused op: the units of several bottlenecks in one wide bottleneck, multiplied part by part by gates.

AdapterFusion (Pfeiffer et al. 2021, arXiv:2005.00247) lowers to it without any product of d x d: with N parts
u_n = U_n a_n + b_n and a_n = σ(D_n x + c_n), both the score q·K u_n and the value V u_n are linear in a_n, so that K, V
and Q are put into matrices of as many rows as there are units. b_n is the output of one more unit, whose row of D is
zero and which therefore says the same for every x. Gates that read the hidden state, and weighted sums of unlike parts,
are the same op.

Notation: B rows, T tokens, d hidden size, M units of all parts together, N parts.
"""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from graftwork.backbones import SiteKind
from graftwork.ops import routing
from graftwork.ops.bottleneck import ACTIVATIONS
from graftwork.ops.op import Forward, Op, Place
from graftwork.ops.routing import Blocks, Route
from graftwork.ops.rowdropout import Dropouts, linear_of_dropped
from graftwork.ops.tensortree import Copy, TensorTree
from graftwork.ops.unitnorms import UnitNorms

UNIT_ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {**ACTIVATIONS, "identity": lambda x: x}
"""What units are made of: σ of a bottleneck, or nothing, as of a low-rank part."""

Watch = Callable[[Tensor], None]
"""Is shown the gates of a pass, (B, T, N)."""


@dataclass(frozen=True, kw_only=True)
class PartGates(TensorTree):
    """How much of each part is used at each token: p = softmax or σ over n of

        Σ_{units i of n} (S q + e)_i z_i + (W q + w)_n + k·q + k_0,

    with z the units as earlier gates left them. The first term is the score of AdapterFusion; the second is a router
    that does not look at what the parts say. The last, the same for all parts, matters only where scores have dropout
    before a softmax, and is left out otherwise.

    Shapes: members (N, M), 1 where a unit is of a part; score (M, d), score_bias (M); router (N, d), router_bias (N);
    common (1, d) and common_bias (1), k and k_0; present (N), 1 of parts that take part; outside (M), 1 of units that
    belong to no part here and are left as they are, None where each belongs to one. Each with a leading slot dimension
    in a slab; what is padded is absent.

    Attributes:
        normalise: whether the parts share 1 (softmax), or each has a gate of its own (sigmoid).
        dropout: of the scores, in training, before they are normalised.
        masked: whether some part can be absent.
        watch: is shown the gates of each pass.
    """

    members: Float[Tensor, "*S N M"]
    present: Float[Tensor, "*rows N"]
    score: Float[Tensor, "*S M d"] | None = None
    score_bias: Float[Tensor, "*S M"] | None = None
    router: Float[Tensor, "*S N d"] | None = None
    router_bias: Float[Tensor, "*S N"] | None = None
    common: Float[Tensor, "*S 1 d"] | None = None
    common_bias: Float[Tensor, "*S 1"] | None = None
    outside: Float[Tensor, "*rows M"] | None = None
    normalise: Literal["softmax", "sigmoid"] = "softmax"
    dropout: float = 0.0
    masked: bool = False
    watch: Watch | None = field(default=None, compare=False)

    def for_inference(self) -> "PartGates":
        return replace(self, dropout=0.0, common=None, common_bias=None)

    def spread(self, route: Route) -> "PartGates":
        if route.blocks is None:
            return super().spread(route)
        # Matrices and the biases of their products stay; what multiplies tokens one by one is there for each row.
        outside = None if self.outside is None else route.spread(self.outside)
        return replace(self, present=route.spread(self.present), outside=outside)

    def joined(self, parts: Any) -> "PartGates":
        return replace(super().joined(parts), masked=True)

    def __call__(
        self,
        z: Float[Tensor, "B *T M"],
        q: Float[Tensor, "B *T d"],
        blocks: Blocks | None,
        *,
        training: bool,
    ) -> Float[Tensor, "B *T M"]:
        """The units, multiplied.

        Args:
            z: the units; where no gradients flow, what they become is written over them.
            q: the query.
            blocks: in which the rows stand.
            training: whether dropout is on.
        """
        p = self._gates(z, q, blocks, training=training)
        of_units = routing.linear(p, self.members.mT, None, blocks)
        if self.outside is not None:
            of_units = of_units + routing.per_row(self.outside, z)
        return routing.times(z, of_units)

    def _gates(self, z: Tensor, q: Tensor, blocks: Blocks | None, *, training: bool) -> Float[Tensor, "B *T N"]:
        scores: list[Tensor] = []
        if self.score is not None:
            of_units = routing.times(routing.linear(q, self.score, self.score_bias, blocks), z)
            scores.append(routing.linear(of_units, self.members, None, blocks))
        if self.router is not None:
            scores.append(routing.linear(q, self.router, self.router_bias, blocks))
        if self.common is not None and self.dropout and training:
            scores.append(routing.linear(q, self.common, self.common_bias, blocks))
        s = F.dropout(sum(scores[1:], scores[0]), self.dropout, training)
        if self.masked:
            absent = routing.per_row(self.present - 1, s)
            s = s + absent * (torch.finfo(s.dtype).max / 4)
        p = torch.sigmoid(s) if self.normalise == "sigmoid" else torch.softmax(s, dim=-1)
        if self.watch is not None:
            self.watch(p)
        return p


@dataclass(frozen=True, kw_only=True)
class Fused(Op):
    """h + U z with units z = σ(D x + b_D), divided where parts have a layer norm behind them, and multiplied by gates,
    one after the other.

    What x and h are: at a result and at a norm, as for `Bottleneck`; at a linear map, x enters the map and h leaves it.
    The query q is what the parts are added to: h at a result and at a linear map, and at a norm the norm's output. With
    `residual`, q = h + r, the hidden state after the residual is added.

    Shapes: down (M, d), down_bias (M), up (d, M), each with a leading slot dimension in a slab; of units of several σ,
    selects (K, M), 1 where a unit has that σ. Padding with zeros is exact.

    Attributes:
        norms: what divides the units, before the gates; None where no part has a layer norm.
        gates: what multiplies the units; the first of them first, as of a fusion among the parts of another one.
        activations: the names of the units' σ.
        at: the kind of site where it acts.
        source: under which key a `Remember` left x in the pass's memory; None to take it from where it acts.
        residual: under which key a `Remember` left r; None for q = h.
        dropouts: of the x of some units, in training, as low-rank parts have it. Without it D x is one product.
        blocks: in which the rows stand, in a slab; None for groups of equal size.
    """

    down: Float[Tensor, "*S M d"]
    down_bias: Float[Tensor, "*S M"]
    up: Float[Tensor, "*S d2 M"]
    selects: Float[Tensor, "*rows K M"] | None = None
    norms: UnitNorms | None = None
    gates: tuple[PartGates, ...] = ()
    activations: tuple[str, ...]
    at: Literal["result", "norm", "linear"] = "result"
    source: str | None = None
    residual: str | None = None
    dropouts: Dropouts = ()
    blocks: Blocks | None = None

    kinds: ClassVar[frozenset[SiteKind]] = frozenset({"result", "norm", "linear"})
    unmergeable: ClassVar[str] = "its gates and nonlinearities cannot be expressed as a weight"

    def around(self, forward: Forward, place: Place) -> Forward:
        def at_result(*args: Any, **kwargs: Any) -> Tensor:
            h: Tensor = forward(*args, **kwargs)
            x = h if self.source is None else place.memory[self.source].to(h.dtype)
            q = h if self.residual is None else h + place.memory[self.residual].to(h.dtype)
            return self._changed(h, x, q, training=place.training)

        def at_norm(s: Tensor) -> Tensor:
            x: Tensor = forward(s)
            y: Tensor = forward(self._changed(s, x, x, training=place.training))
            return y

        def at_linear(x: Tensor) -> Tensor:
            h: Tensor = forward(x)
            return self._changed(h, x, h, training=place.training)

        return {"result": at_result, "norm": at_norm, "linear": at_linear}[self.at]

    def for_inference(self) -> "Fused":
        return replace(super().for_inference(), dropouts=())

    def spread(self, route: Route) -> "Fused":
        if route.blocks is None:
            return super().spread(route)
        gates = tuple(gate.spread(route) for gate in self.gates)
        selects = None if self.selects is None else route.spread(self.selects)
        norms = None if self.norms is None else self.norms.spread(route)
        return replace(self, norms=norms, gates=gates, selects=selects, blocks=route.blocks)

    def laid_out(self, copy: Copy) -> "Fused":
        copied: dict[str, Any] = {name: copy(t, transposed=name == "up") for name, t in self.tensors().items()}
        norms = None if self.norms is None else self.norms.laid_out(copy)
        return replace(self, **copied, norms=norms, gates=tuple(gate.laid_out(copy) for gate in self.gates))

    def _changed(self, h: Tensor, x: Tensor, q: Tensor, *, training: bool) -> Tensor:
        """h with what the parts make of x."""
        dropouts = self.dropouts if training else ()
        z = self._units(linear_of_dropped(x, self.down, self.down_bias, self.blocks, dropouts))
        if self.norms is not None:
            z = self.norms(z, self.blocks)
        for gate in self.gates:
            z = gate(z, q, self.blocks, training=training)
        return routing.add_linear(h, z, self.up, self.blocks)

    def _units(self, given: Float[Tensor, "B *T M"]) -> Float[Tensor, "B *T M"]:
        first, *others = (UNIT_ACTIVATIONS[name] for name in self.activations)
        if self.selects is None:
            return first(given)
        chosen = self.selects.unbind(-2)
        z = routing.per_row(chosen[0], given) * first(given)
        for activation, own in zip(others, chosen[1:], strict=True):
            z = z + routing.per_row(own, given) * activation(given)
        return z
