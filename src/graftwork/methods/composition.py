"""Compositions: methods whose parts are adapters, or new methods.

The tensors of a part stand under `parts.NAME.`, so that a composition's folder needs no other one. Those of adapters
are frozen, unless `train_parts` is on. A composition is a method: it can be a part of another one.
"""

import json
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, TypeVar

import torch
from jaxtyping import Float
from pydantic import Field, field_validator
from torch import Generator, Tensor

from graftwork.backbones import Backbone, Site, Sites
from graftwork.errors import MethodError
from graftwork.methods.members import MemberTensors, SharedSite, members_at, refuse_disagreement
from graftwork.methods.method import Method
from graftwork.methods.parameters import Parameter, zeros
from graftwork.methods.parts import Part, Parts
from graftwork.methods.placement import Placement
from graftwork.methods.wide import COMBINABLE, refusal
from graftwork.ops import Fused, Op, Remember

OpKind = TypeVar("OpKind", bound=Op)


class Composition(Method, ABC):
    """A method made of parts.

    Epochs, the head's learning rate, optimiser, schedule and fields of the head are those that its new parts need. They
    must agree on all but the first two.

    Attributes:
        parts: adapters (`gw.Adapter`), new methods, or names of methods; in a list, or by name.
        train_parts: train the tensors of parts that are adapters as well. Those of new methods are always trained. A
            part that is a composition itself has a setting of its own for its parts.
    """

    learning_rate: ClassVar[float] = 1e-3

    parts: Parts = Field(default=("pfeiffer", "pfeiffer"), min_length=1, validate_default=True)
    train_parts: bool = False

    @field_validator("parts")
    @classmethod
    def _new_parts_agree(cls, parts: tuple[Part, ...]) -> tuple[Part, ...]:
        refuse_disagreement([part.method for part in parts if part.new], "new parts")
        return parts

    @property
    def new_methods(self) -> list[Method]:
        """Those of the parts that are no adapters."""
        return [part.method for part in self.parts if part.new]

    @property
    def head_learning_rate(self) -> float:
        return min((method.head_learning_rate for method in self.new_methods), default=super().head_learning_rate)

    @property
    def num_train_epochs(self) -> int:
        return max((method.num_train_epochs for method in self.new_methods), default=super().num_train_epochs)

    @property
    def optim(self) -> str:
        return next((method.optim for method in self.new_methods), super().optim)

    @property
    def lr_scheduler_type(self) -> str:
        return next((method.lr_scheduler_type for method in self.new_methods), super().lr_scheduler_type)

    @property
    def head_fields(self) -> Mapping[str, Any]:
        return {name: value for method in self.new_methods for name, value in method.head_fields.items()}

    @property
    def reads_examples(self) -> bool:
        return any(method.reads_examples for method in self.new_methods)

    @property
    def lowers_to(self) -> tuple[type[Op], ...]:
        return (Remember, *COMBINABLE)

    @property
    def frozen_backbone(self) -> bool:
        return all(part.method.frozen_backbone for part in self.parts)

    @property
    def passes(self) -> int:
        return max(part.method.passes if self.trains(part) else 1 for part in self.parts)

    @property
    def num_prompt_tokens(self) -> int:
        return sum(part.method.num_prompt_tokens for part in self.parts)

    @property
    def settings_text(self) -> str:
        parts = ", ".join(f"{part.name} ({part.method.name})" for part in self.parts)
        rest = self.model_dump(mode="json", exclude={"parts"}).items()
        return "; ".join([f"parts {parts}", *(f"{n}={v if isinstance(v, str) else json.dumps(v)}" for n, v in rest)])

    @property
    def placement(self) -> Placement | None:
        return self.parts[0].method.placement

    def every_part(self) -> Iterator[Part]:
        for part in self.parts:
            yield part
            yield from part.method.every_part()

    def trains(self, part: Part) -> bool:
        """Whether a part's tensors are trained."""
        return part.new or self.train_parts

    @abstractmethod
    def declare_own(self, site: Site) -> dict[str, Parameter]:
        """The parameters at a site where parts act, besides theirs."""

    @abstractmethod
    def combine(
        self,
        site: Site,
        ops: Mapping[str, Sequence[Op]],
        parameters: Mapping[str, Tensor],
        frozen: Mapping[str, Tensor],
    ) -> Sequence[Op]:
        """What acts at a site instead of what the parts have there.

        Args:
            site: the site.
            ops: the ops of each part there, by its name.
            parameters: of the whole composition.
            frozen: the backbone's parameters at the site.

        Raises:
            MethodError: the parts cannot be combined there.
        """

    # Sites.

    def sites(self, sites: Sites) -> list[Site]:
        chosen: dict[str, dict[str, Site]] = {}
        for part in self.parts:
            for site in part.method.sites(sites):
                chosen.setdefault(site.name, {})[part.name] = site
        self.check_sites(chosen)
        residuals = {name: self.residual_of(sites[name], sites) for name in chosen}
        for residual in residuals.values():
            if residual is not None:
                chosen.setdefault(residual, {})
        return [
            ComposedSite(**vars(SharedSite.of(sites[name], chosen[name])), residual=residuals.get(name))
            for name in sites
            if name in chosen
        ]

    def check_sites(self, chosen: Mapping[str, Mapping[str, Site]]) -> None:
        """Refuse parts that act at different sites, or will in some passes.

        Args:
            chosen: by site, the description of it of each part that has it.

        Raises:
            MethodError: names two parts, and a site where only one of them acts; or a trained part that draws where it
                acts.
        """
        for part in self.parts:
            if self.trains(part) and getattr(part.method, "robust_drop", False):
                raise MethodError(
                    f"part {part.name!r} draws in training which layers it leaves out (robust_drop)",
                    expected="trained parts with robust_drop false",
                    change="the parts",
                )
        for name, own in chosen.items():
            acting = [part.name for part in self.parts if part.name in own and _acts(part.method, own[part.name])]
            lacking = [part.name for part in self.parts if part.name not in acting]
            if acting and lacking:
                raise MethodError(
                    f"part {acting[0]!r} acts at site {name!r}, and part {lacking[0]!r} does not",
                    expected="parts that act at the same sites; their sizes may differ",
                    change="the parts, or gw.Stack for parts at different sites",
                )

    def residual_of(self, site: Site, sites: Sites) -> str | None:
        """The site whose input is the residual that is part of the query at a site; None where none is."""
        return None

    def acts_at(self, site: Site) -> bool:
        """Whether parts act at one of the composition's sites, other than to remember something."""
        return any(_acts(part.method, own) for part, own in self._at(site))

    def replaces(self, site: Site) -> bool:
        return any(part.method.replaces(own) for part, own in self._at(site))

    # Parameters.

    def declare(self, site: Site) -> dict[str, Parameter]:
        declared: dict[str, Parameter] = {}
        for part, own in self._at(site):
            for name, parameter in part.method.declare(own).items():
                changes: dict[str, Any] = {} if part.new else {"init": zeros}
                trained = parameter.trained and self.trains(part)
                declared[f"{_start(part)}{name}"] = replace(parameter, trained=trained, **changes)
        return declared | (self.declare_own(site) if self.acts_at(site) else {})

    def initial(
        self,
        tensors: Mapping[str, Tensor],
        sites: Sequence[Site],
        backbone: Backbone,
        labels: Sequence[str] | None,
        generator: Generator,
    ) -> Mapping[str, Tensor]:
        found: dict[str, Tensor] = {}
        for part, own in self._each(sites):
            if part.new:
                named = MemberTensors(_start(part)[:-1], tensors)
                made = part.method.initial(named, own, backbone, labels, generator)
            else:
                made = self._tensors_of(part, MemberTensors(_start(part)[:-1], tensors))
            found |= {f"{_start(part)}{name}": tensor for name, tensor in made.items()}
        return found

    def _tensors_of(self, part: Part, declared: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        held = part.tensors()
        if held is None:
            raise MethodError(
                f"the tensors of part {part.name!r} are not at hand",
                expected="its adapter, or the folder that it is in",
                change="the parts",
            )
        wrong = [name for name in declared if name not in held or held[name].shape != declared[name].shape]
        if wrong:
            raise MethodError(
                f"part {part.name!r} does not fit this backbone: its {wrong[0]} has another shape, or is missing",
                expected="parts of this backbone",
                change="the parts",
            )
        return {name: held[name].detach().clone() for name in declared}

    def from_features(self, features: Float[Tensor, "N d"]) -> Mapping[str, Tensor]:
        found: dict[str, Tensor] = {}
        for part in self.parts:
            if part.new:
                found |= {f"{_start(part)}{name}": t for name, t in part.method.from_features(features).items()}
        return found

    def prepare(
        self, parameters: Mapping[str, Tensor], sites: Sequence[Site], *, training: bool
    ) -> Mapping[str, Tensor]:
        prepared = dict(parameters)
        for part, own in self._each(sites):
            named = MemberTensors(_start(part)[:-1], parameters)
            made = part.method.prepare(named, own, training=training and self.trains(part))
            prepared |= {f"{_start(part)}{name}": tensor for name, tensor in made.items()}
        return prepared

    def finish(self, parameters: Mapping[str, Tensor], sites: Sequence[Site]) -> tuple[Method, dict[str, Tensor]]:
        kept = {name: tensor for name, tensor in parameters.items() if not name.startswith("parts.")}
        parts = []
        for part, own in self._each(sites):
            method, tensors = part.method, dict(MemberTensors(_start(part)[:-1], parameters))
            if self.trains(part):
                method, tensors = method.finish(tensors, own)
                part = Part(name=part.name, method=method)
            # From here on it stands alone: where its parts came from is in the run's recipe.
            parts.append(part.model_copy(update={"source": None}))
            kept |= {f"{_start(part)}{name}": tensor for name, tensor in tensors.items()}
        return self.model_copy(update={"parts": tuple(parts)}), kept

    def lower(self, site: Site, parameters: Mapping[str, Tensor], frozen: Mapping[str, Tensor]) -> Sequence[Op]:
        ops: dict[str, Sequence[Op]] = {}
        for part, own in self._at(site):
            acting = part.method.lower(own, MemberTensors(_start(part)[:-1], parameters), frozen)
            ops[part.name] = acting if self.trains(part) else [op.for_inference() for op in acting]
        remembered = dict.fromkeys(op for acting in ops.values() for op in acting if isinstance(op, Remember))
        if not members_at(site):
            remembered[Remember(key=residual_key(site))] = None
        others = {name: [op for op in acting if not isinstance(op, Remember)] for name, acting in ops.items()}
        combined = self.combine(site, others, parameters, frozen) if any(others.values()) else []
        return [*remembered, *combined]

    def lower_everywhere(self, parameters: Mapping[str, Tensor], sites: Sequence[Site], backbone: Backbone) -> None:
        """Find out whether the parts can be combined at each of the sites.

        Raises:
            MethodError: they cannot.
        """
        with torch.no_grad():
            prepared = self.prepare(parameters, sites, training=False)
            for site in sites:
                self.lower(site, prepared, backbone.frozen(site))

    def penalty(self, parameters: Mapping[str, Tensor]) -> Tensor | None:
        own = [
            part.method.penalty(MemberTensors(_start(part)[:-1], parameters))
            for part in self.parts
            if self.trains(part)
        ]
        found = [penalty for penalty in own if penalty is not None]
        return torch.stack(found).sum() if found else None

    def _at(self, site: Site) -> Iterator[tuple[Part, Site]]:
        """The parts that act at a site, each with its own description of it."""
        acting = members_at(site)
        for part in self.parts:
            if part.name in acting:
                yield part, acting[part.name]

    def _each(self, sites: Sequence[Site]) -> Iterator[tuple[Part, list[Site]]]:
        """Each part, and where it acts."""
        at = [members_at(site) for site in sites]
        for part in self.parts:
            yield part, [own[part.name] for own in at if part.name in own]


@dataclass(frozen=True, kw_only=True)
class ComposedSite(SharedSite):
    """A site where parts act.

    Attributes:
        residual: the site whose input is the residual that is part of the query here; None where none is.
    """

    residual: str | None = None


def _acts(method: Method, site: Site) -> bool:
    """Whether a method does more at one of its sites than to remember something."""
    return method.acts_at(site) or method.replaces(site)


def residual_key(site: Site) -> str:
    """Under which name the residual of a sub-layer is remembered."""
    return f"{site.sublayer}.residual"


def _start(part: Part) -> str:
    """What the names of a part's tensors begin with."""
    return f"parts.{part.name}."


def in_columns(method: str, ops: Mapping[str, Sequence[Op]]) -> Iterator[dict[str, Op]]:
    """The ops of all parts that stand at the same place in their order, by the part's name.

    Raises:
        MethodError: parts have other ops than others.
    """
    [first, *others] = ops
    for other in others:
        if len(ops[other]) != len(ops[first]):
            raise MethodError(
                f"{method} cannot combine parts {first!r} and {other!r}: one has {len(ops[first])} ops where the other "
                f"has {len(ops[other])}",
                expected="parts of one placement",
                change="the parts",
            )
    for place in range(len(ops[first])):
        yield {name: acting[place] for name, acting in ops.items()}


def all_of(method: str, column: Mapping[str, Op], *kinds: type[OpKind]) -> dict[str, OpKind] | None:
    """The ops of a column, where all are of these kinds; None where none is.

    Raises:
        MethodError: some are, and some are not; or they act in different places.
    """
    fitting = {name: op for name, op in column.items() if isinstance(op, kinds)}
    if not fitting:
        return None
    for name, op in column.items():
        if name not in fitting:
            other = next(iter(fitting))
            raise refusal(method, name, op, f"part {other!r} has a {type(fitting[other]).__name__} op there")
    return fitting


def require_one_place(method: str, units: Mapping[str, Fused]) -> None:
    """Refuse parts of which one reads, or adds to, something else than another.

    Raises:
        MethodError: names them.
    """
    [(first, one), *others] = units.items()
    for name, other in others:
        if (one.at, one.source) != (other.at, other.source):
            raise MethodError(
                f"{method} cannot combine parts {first!r} and {name!r}, which act in different places",
                expected="parts of one placement",
                change="the parts",
            )
