"""What a union does for each of its members: their settings, their own view of sites and tensors, and their gates. A
composition does the same for its parts."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Annotated, Any, Literal

import torch
from pydantic import BeforeValidator, PlainSerializer
from torch import Tensor

from graftwork.backbones import Site
from graftwork.errors import MethodError
from graftwork.methods.lookup import as_method
from graftwork.methods.method import Method
from graftwork.methods.parameters import Parameter, normal, zeros
from graftwork.ops import Gated, KeyValue, Op
from graftwork.settings.checked import split_commas

GATE_STD = 0.02
"""Gates start N(0, 0.02²) with bias 0: each near one half."""

GATED = frozenset({"linear", "result", "norm", "attention"})
"""The kinds of site where an effect can have a gate."""


COMMON = ("optim", "lr_scheduler_type")
"""Training defaults of which a run has one for all methods."""


def _as_mapping(method: Method) -> dict[str, Any]:
    return {"name": method.name, **method.model_dump(mode="json")}


Member = Annotated[Method, BeforeValidator(as_method), PlainSerializer(_as_mapping)]
Members = Annotated[tuple[Member, ...], BeforeValidator(split_commas)]
"""Methods as settings have them: methods, names, mappings of `name` and settings; or names separated by commas."""


@dataclass(frozen=True, kw_only=True)
class SharedSite(Site):
    """A site where members of a union act.

    Attributes:
        members: each acting member's own description of it, by the member's name.
    """

    members: Mapping[str, Site]

    @classmethod
    def of(cls, site: Site, members: Mapping[str, Site]) -> "SharedSite":
        return cls(**{f.name: getattr(site, f.name) for f in fields(Site)}, members=members)


def members_at(site: Site) -> Mapping[str, Site]:
    """Who acts at one of a union's sites, each with its own description of it."""
    assert isinstance(site, SharedSite)  # it is one of those that the union gave
    return site.members


class MemberTensors(Mapping[str, Tensor]):
    """Those of a union's tensors that stand under a member's name, without it."""

    def __init__(self, member: str, tensors: Mapping[str, Tensor]) -> None:
        self._start, self._tensors = f"{member}.", tensors

    def __getitem__(self, name: str) -> Tensor:
        return self._tensors[self._start + name]

    def __iter__(self) -> Iterator[str]:
        return (name.removeprefix(self._start) for name in self._tensors if name.startswith(self._start))

    def __len__(self) -> int:
        return sum(1 for _ in self)


def refuse_disagreement(methods: Sequence[Method], what: str) -> None:
    """Refuse methods that cannot be trained in one run.

    Args:
        methods: the methods.
        what: they are, in the message.

    Raises:
        ValueError: they need different optimisers, schedules or heads.
    """
    asked: dict[str, Any] = {}
    for method in methods:
        own = {name: getattr(method, name) for name in COMMON}
        for name, value in {**own, **method.head_fields}.items():
            if asked.setdefault(name, value) != value:
                raise ValueError(f"the {what} need different values of {name}: {asked[name]} and {value}")
    if asked.get("model") == "bilstm-crf" and any(method.passes > 1 for method in methods):
        raise ValueError("the model bilstm-crf cannot be used with a method of several passes per step")


def declare_gate(site: Site) -> dict[str, Parameter]:
    """The gate on a member's effect at a site: w (1, in) and b (1), or b alone for an attention's rows.

    Raises:
        MethodError: what acts at a site of this kind can have none.
    """
    if site.kind not in GATED:
        raise MethodError(
            f"what acts at site {site.name!r}, of kind {site.kind}, cannot be gated",
            expected=f"members that act at sites of kind {', '.join(sorted(GATED))}",
            change="--method.gated",
        )
    bias = Parameter(shape=(1,), init=zeros, decay=False)
    width = site.in_features if site.kind == "linear" else site.out_features
    weight = Parameter(shape=(1, width), init=normal(GATE_STD))
    reads = {} if site.kind == "attention" else {f"{site.name}.gate.weight": weight}
    return {**reads, f"{site.name}.gate.bias": bias}


def gate(ops: Sequence[Op], site: Site, parameters: Mapping[str, Tensor]) -> Sequence[Op]:
    """What a member does at a site, with its gate on: its effect is that of all its ops together."""
    bias = parameters[f"{site.name}.gate.bias"]
    rows = [op for op in ops if isinstance(op, KeyValue)]
    if rows or not ops:
        opened = torch.sigmoid(bias)
        return [replace(op, keys=op.keys * opened, values=op.values * opened) for op in rows]
    reads: Literal["input", "output"] = "output" if site.kind == "result" else "input"
    return [Gated(ops=tuple(ops), weight=parameters[f"{site.name}.gate.weight"], bias=bias, reads=reads)]
