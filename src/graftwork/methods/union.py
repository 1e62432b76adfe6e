"""Unions: several methods at once, as one.

He et al. 2022, "Towards a Unified View of Parameter-Efficient Transfer Learning", section 4.6, whose MAM adapter is
prefix tuning with a parallel bottleneck; and Mao et al. 2022, "UniPELT", which puts a gate on each member's effect.

Members act in the order in which they are listed: where two act at one site, the later one changes what the earlier
one gave. Parameters stand under their member's name (`lora.layers.0.attention.query.A`; a second one of a name under
`lora-2`), and the counts add up. A union of one is that method.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Annotated, Any, ClassVar

import torch
from pydantic import BeforeValidator, Field, PlainSerializer, field_validator
from torch import Generator, Tensor

from graftwork.backbones import Backbone, Site, Sites
from graftwork.errors import MethodError
from graftwork.methods.method import Method
from graftwork.methods.parameters import Parameter, normal, zeros
from graftwork.ops import Gated, KeyValue, Op

GATE_STD = 0.02
"""Gates start N(0, 0.02²) with bias 0: each near one half."""

GATED = frozenset({"linear", "result", "norm", "attention"})
"""The kinds of site where an effect can have a gate."""


def _as_method(value: object) -> object:
    """A method out of its name, or out of a mapping with its name and settings."""
    from graftwork.methods import make_method

    if isinstance(value, str):
        return make_method(value)
    if isinstance(value, Mapping):
        if "name" not in value:
            raise ValueError("a member's name is missing")
        return make_method(str(value["name"]), {key: v for key, v in value.items() if key != "name"})
    return value


def _as_mapping(method: Method) -> dict[str, Any]:
    return {"name": method.name, **method.model_dump(mode="json")}


def _as_list(value: object) -> object:
    return value.split(",") if isinstance(value, str) else value


Member = Annotated[Method, BeforeValidator(_as_method), PlainSerializer(_as_mapping)]


class Union(Method):
    """Several methods as one.

    Settings:
        methods: the members: methods, their names, or mappings of `name` and settings.
        gated: whether each member's effect is multiplied by a trained gate between 0 and 1. This is UniPELT-like and
            not UniPELT: at linear maps and sub-layer outputs the gate is a function of each token's hidden state there,
            σ(w·x + b), one for each site (UniPELT averages over the text's tokens); on prefixes it is a number a layer,
            since a gate over a whole text would let a token see what comes after it. A gate on rows scales them.

    Each member is trained at its own default rate, relative to the run's (the smallest of theirs by default).
    """

    name: ClassVar[str] = "union"
    paper: ClassVar[str] = "He et al. 2022, arXiv:2110.04366; Mao et al. 2022, arXiv:2110.07577"

    methods: Annotated[tuple[Member, ...], BeforeValidator(_as_list)] = Field(
        default=("lora", "prefix-tuning"), min_length=1, validate_default=True
    )
    gated: bool = False

    @field_validator("methods")
    @classmethod
    def _heads_agree(cls, methods: tuple[Method, ...]) -> tuple[Method, ...]:
        asked: dict[str, Any] = {}
        for method in methods:
            for name, value in method.head_fields.items():
                if asked.setdefault(name, value) != value:
                    raise ValueError(f"the members want heads with different {name}")
        return methods

    @property
    def members(self) -> dict[str, Method]:
        """The members by the name under which their parameters stand."""
        found: dict[str, Method] = {}
        for method in self.methods:
            again = sum(other.name == method.name for other in found.values())
            found[f"{method.name}-{again + 1}" if again else method.name] = method
        return found

    @property
    def learning_rate(self) -> float:  # type: ignore[override]
        return min(method.learning_rate for method in self.methods)

    @property
    def num_train_epochs(self) -> int:  # type: ignore[override]
        return max(method.num_train_epochs for method in self.methods)

    @property
    def passes(self) -> int:  # type: ignore[override]
        return max(method.passes for method in self.methods)

    @property
    def frozen_backbone(self) -> bool:  # type: ignore[override]
        return all(method.frozen_backbone for method in self.methods)

    @property
    def head_fields(self) -> Mapping[str, Any]:
        return {name: value for method in self.methods for name, value in method.head_fields.items()}

    @property
    def num_prompt_tokens(self) -> int:
        return sum(method.num_prompt_tokens for method in self.methods)

    def sites(self, sites: Sites) -> list[Site]:
        chosen: dict[str, dict[str, Site]] = {}
        for member, method in self.members.items():
            for site in method.sites(sites):
                chosen.setdefault(site.name, {})[member] = site
        return [_shared(sites[name], chosen[name]) for name in sites if name in chosen]

    def declare(self, site: Site) -> dict[str, Parameter]:
        declared: dict[str, Parameter] = {}
        for member, own in _members_at(site).items():
            method = self.members[member]
            rate = method.learning_rate / self.learning_rate
            found = method.declare(own)
            if self.gated and found:
                found |= self._gate(own)
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
            made = method.initial(_Under(member, tensors), own, backbone, labels, generator)
            found |= {f"{member}.{name}": tensor for name, tensor in made.items()}
        return found

    def prepare(
        self, parameters: Mapping[str, Tensor], sites: Sequence[Site], *, training: bool
    ) -> Mapping[str, Tensor]:
        prepared = dict(parameters)
        for member, method, own in self._each(sites):
            made = method.prepare(_Under(member, parameters), own, training=training)
            prepared |= {f"{member}.{name}": tensor for name, tensor in made.items()}
        return prepared

    def finish(self, parameters: Mapping[str, Tensor], sites: Sequence[Site]) -> tuple[Method, dict[str, Tensor]]:
        ends = [method.finish(_Under(member, parameters), own) for member, method, own in self._each(sites)]
        union = self.model_copy(update={"methods": tuple(method for method, _ in ends)})
        starts = tuple(f"{member}." for member in self.members)
        kept = {name: tensor for name, tensor in parameters.items() if not name.startswith(starts)}
        for member, (_, tensors) in zip(union.members, ends, strict=True):
            kept |= {f"{member}.{name}": tensor for name, tensor in tensors.items()}
        return union, kept

    def lower(self, site: Site, parameters: Mapping[str, Tensor], frozen: Mapping[str, Tensor]) -> Sequence[Op]:
        acting: list[Op] = []
        replacing: list[str] = []
        for member, own in _members_at(site).items():
            under = _Under(member, parameters)
            ops = self.members[member].lower(own, under, frozen)
            replacing += [member for op in ops if op.replaces]
            if self.gated and f"{own.name}.gate.bias" in under:
                ops = [_gated(op, own, under, member) for op in ops]
            acting += ops
        if len(replacing) > 1:
            raise MethodError(
                f"{' and '.join(replacing)} both replace what site {site.name!r} computes; in a union only one can",
                expected="members that do not train the same weights",
                change="--method.methods",
            )
        return acting

    def _each(self, sites: Sequence[Site]) -> Iterator[tuple[str, Method, list[Site]]]:
        """Each member's name, the member, and where it acts."""
        at = [_members_at(site) for site in sites]
        for member, method in self.members.items():
            yield member, method, [own[member] for own in at if member in own]

    def _gate(self, site: Site) -> dict[str, Parameter]:
        if site.kind not in GATED:
            raise MethodError(
                f"a gate cannot be put on what acts at site {site.name!r}, of kind {site.kind}",
                expected=f"members that act at sites of kind {', '.join(sorted(GATED))}",
                change="--method.gated",
            )
        bias = Parameter(shape=(1,), init=zeros, decay=False)
        width = site.in_features if site.kind == "linear" else site.out_features
        weight = Parameter(shape=(1, width), init=normal(GATE_STD))
        reads = {} if site.kind == "attention" else {f"{site.name}.gate.weight": weight}
        return {**reads, f"{site.name}.gate.bias": bias}


@dataclass(frozen=True, kw_only=True)
class _SharedSite(Site):
    """A site where members of a union act: each member's own description of it."""

    members: Mapping[str, Site]


class _Under(Mapping[str, Tensor]):
    """Those of a union's tensors that stand under a member's name, without it."""

    def __init__(self, member: str, tensors: Mapping[str, Tensor]) -> None:
        self._start, self._tensors = f"{member}.", tensors

    def __getitem__(self, name: str) -> Tensor:
        return self._tensors[self._start + name]

    def __iter__(self) -> Iterator[str]:
        return (name.removeprefix(self._start) for name in self._tensors if name.startswith(self._start))

    def __len__(self) -> int:
        return sum(1 for _ in self)


def _shared(site: Site, members: Mapping[str, Site]) -> _SharedSite:
    return _SharedSite(**{f.name: getattr(site, f.name) for f in fields(site) if f.name != "members"}, members=members)


def _members_at(site: Site) -> Mapping[str, Site]:
    assert isinstance(site, _SharedSite)  # it is one of those that `sites` gave
    return site.members


def _gated(op: Op, site: Site, parameters: Mapping[str, Tensor], member: str) -> Op:
    if op.replaces:
        raise MethodError(
            f"{member} replaces what site {site.name!r} computes: a gate cannot be put on that",
            expected="members that add to the frozen backbone (norms=none, say)",
            change="--method.methods, or --method.gated",
        )
    bias = parameters[f"{site.name}.gate.bias"]
    if isinstance(op, KeyValue):
        gate = torch.sigmoid(bias)
        return replace(op, keys=op.keys * gate, values=op.values * gate)
    return Gated(op=op, weight=parameters[f"{site.name}.gate.weight"], bias=bias)
