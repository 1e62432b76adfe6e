"""Unions: several methods combined.

He et al. 2022, "Towards a Unified View of Parameter-Efficient Transfer Learning", section 4.6, whose MAM adapter is
prefix tuning with a parallel bottleneck; and Mao et al. 2022, "UniPELT", which puts a gate on each member's effect.

Members act in the order in which they are listed: if two act at one site, the later one changes the output of the
earlier one. Names of parameters begin with that of their member (`lora.layers.0.attention.query.A`; `lora-2` for a
second one), and the counts add up. A union of one method is that method.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from pydantic import Field, field_validator
from torch import Generator, Tensor

from graftwork.backbones import Backbone, Site, Sites
from graftwork.errors import MethodError
from graftwork.methods.members import (
    Members,
    MemberTensors,
    SharedSite,
    declare_gate,
    gate,
    members_at,
    refuse_disagreement,
)
from graftwork.methods.method import Method
from graftwork.methods.parameters import Parameter
from graftwork.methods.parts import Part
from graftwork.methods.placement import Placement
from graftwork.ops import Gated, Op
from graftwork.ops.prompt import as_one


class Union(Method):
    """Several methods combined, such as LoRA and prefix tuning.

    The default learning rate is the smallest of the members'. The rates of the members keep the ratios of their
    defaults. Members must agree on optimiser and schedule.

    Attributes:
        methods: the members: methods, their names, or mappings of `name` and settings.
        gated: multiply the effect of each member by a trained gate between 0 and 1. This is similar to UniPELT, but
            differs from it: at a linear map or a sub-layer's output, the gate is a function of each token's hidden
            state, σ(w·x + b), with one gate per site (UniPELT averages over the tokens of the text). On prefixes there
            is one number per layer, since a gate computed from the whole text would let tokens see later ones. As in
            UniPELT, a gate on a prefix scales its rows; a closed gate leaves rows of zeros, which still receive
            attention.
    """

    name: ClassVar[str] = "union"
    paper: ClassVar[str] = "He et al. 2022, arXiv:2110.04366; Mao et al. 2022, arXiv:2110.07577"
    when: ClassVar[str] = "several methods at once, as --method.methods lists"

    methods: Members = Field(default=("lora", "prefix-tuning"), min_length=1, validate_default=True)
    gated: bool = False

    @field_validator("methods")
    @classmethod
    def _members_agree(cls, methods: tuple[Method, ...]) -> tuple[Method, ...]:
        refuse_disagreement(methods, "members")
        return methods

    @property
    def members(self) -> dict[str, Method]:
        """The members by the name that their parameters begin with."""
        found: dict[str, Method] = {}
        for method in self.methods:
            again = sum(other.name == method.name for other in found.values())
            found[f"{method.name}-{again + 1}" if again else method.name] = method
        return found

    @property
    def learning_rate(self) -> float:
        return min(method.learning_rate for method in self.methods)

    @property
    def head_learning_rate(self) -> float:
        return min(method.head_learning_rate for method in self.methods)

    @property
    def num_train_epochs(self) -> int:
        return max(method.num_train_epochs for method in self.methods)

    @property
    def optim(self) -> str:
        return self.methods[0].optim

    @property
    def lr_scheduler_type(self) -> str:
        return self.methods[0].lr_scheduler_type

    @property
    def passes(self) -> int:
        return max(method.passes for method in self.methods)

    @property
    def frozen_backbone(self) -> bool:
        return all(method.frozen_backbone for method in self.methods)

    @property
    def lowers_to(self) -> tuple[type[Op], ...]:
        found = dict.fromkeys(op for method in self.methods for op in method.lowers_to)
        return (*found, *([Gated] if self.gated else []))

    @property
    def head_fields(self) -> Mapping[str, Any]:
        return {name: value for method in self.methods for name, value in method.head_fields.items()}

    @property
    def reads_examples(self) -> bool:
        return any(method.reads_examples for method in self.methods)

    @property
    def num_prompt_tokens(self) -> int:
        return sum(method.num_prompt_tokens for method in self.methods)

    def sites(self, sites: Sites) -> list[Site]:
        chosen: dict[str, dict[str, Site]] = {}
        for member, method in self.members.items():
            for site in method.sites(sites):
                chosen.setdefault(site.name, {})[member] = site
        found: list[Site] = [SharedSite.of(sites[name], chosen[name]) for name in sites if name in chosen]
        for site in found:
            self._refuse_rivals(site)
        return found

    @property
    def placement(self) -> Placement | None:
        return next((method.placement for method in self.methods if method.placement is not None), None)

    def every_part(self) -> Iterator[Part]:
        for method in self.methods:
            yield from method.every_part()

    def acts_at(self, site: Site) -> bool:
        return any(self.members[member].acts_at(own) for member, own in members_at(site).items())

    def replaces(self, site: Site) -> bool:
        return bool(self._replacing(site))

    def _replacing(self, site: Site) -> list[str]:
        return [member for member, own in members_at(site).items() if self.members[member].replaces(own)]

    def _refuse_rivals(self, site: Site) -> None:
        replacing = self._replacing(site)
        if len(replacing) > 1:
            raise MethodError(
                f"{' and '.join(replacing)} both replace what site {site.name!r} computes; in a union only one can",
                expected="members that do not train the same weights",
                change="--method.methods",
            )
        if replacing and self.gated:
            raise MethodError(
                f"{replacing[0]} replaces what site {site.name!r} computes, which cannot be gated",
                expected="members that add to the frozen backbone (for example norms=none)",
                change="--method.methods, or --method.gated",
            )

    def declare(self, site: Site) -> dict[str, Parameter]:
        declared: dict[str, Parameter] = {}
        for member, own in members_at(site).items():
            method = self.members[member]
            rate = method.learning_rate / self.learning_rate
            found = method.declare(own)
            if self.gated and found:
                found |= declare_gate(own)
            declared |= {f"{member}.{name}": replace(p, rate=p.rate * rate) for name, p in found.items()}
        return declared

    def initial(
        self,
        tensors: Mapping[str, Tensor],
        sites: Sequence[Site],
        backbone: Backbone,
        labels: Sequence[str] | None,
        generator: Generator,
    ) -> Mapping[str, Tensor]:
        found: dict[str, Tensor] = {}
        for member, method, own in self._each(sites):
            made = method.initial(MemberTensors(member, tensors), own, backbone, labels, generator)
            found |= {f"{member}.{name}": tensor for name, tensor in made.items()}
        return found

    def from_features(self, features: Float[Tensor, "N d"]) -> Mapping[str, Tensor]:
        found: dict[str, Tensor] = {}
        for member, method in self.members.items():
            found |= {f"{member}.{name}": tensor for name, tensor in method.from_features(features).items()}
        return found

    def prepare(
        self, parameters: Mapping[str, Tensor], sites: Sequence[Site], *, training: bool
    ) -> Mapping[str, Tensor]:
        prepared = dict(parameters)
        for member, method, own in self._each(sites):
            made = method.prepare(MemberTensors(member, parameters), own, training=training)
            prepared |= {f"{member}.{name}": tensor for name, tensor in made.items()}
        return prepared

    def penalty(self, parameters: Mapping[str, Tensor]) -> Tensor | None:
        own = [method.penalty(MemberTensors(member, parameters)) for member, method in self.members.items()]
        found = [penalty for penalty in own if penalty is not None]
        return torch.stack(found).sum() if found else None

    def finish(self, parameters: Mapping[str, Tensor], sites: Sequence[Site]) -> tuple[Method, dict[str, Tensor]]:
        ends = [method.finish(MemberTensors(member, parameters), own) for member, method, own in self._each(sites)]
        union = self.model_copy(update={"methods": tuple(method for method, _ in ends)})
        starts = tuple(f"{member}." for member in self.members)
        kept = {name: tensor for name, tensor in parameters.items() if not name.startswith(starts)}
        for member, (_, tensors) in zip(union.members, ends, strict=True):
            kept |= {f"{member}.{name}": tensor for name, tensor in tensors.items()}
        return union, kept

    def lower(self, site: Site, parameters: Mapping[str, Tensor], frozen: Mapping[str, Tensor]) -> Sequence[Op]:
        acting: list[Op] = []
        for member, own in members_at(site).items():
            own_tensors = MemberTensors(member, parameters)
            ops = self.members[member].lower(own, own_tensors, frozen)
            if self.gated and f"{own.name}.gate.bias" in own_tensors:
                ops = gate(ops, own, own_tensors)
            acting += ops
        return as_one(acting)

    def _each(self, sites: Sequence[Site]) -> Iterator[tuple[str, Method, list[Site]]]:
        """Each member's name, the member, and where it acts."""
        at = [members_at(site) for site in sites]
        for member, method in self.members.items():
            yield member, method, [own[member] for own in at if member in own]
