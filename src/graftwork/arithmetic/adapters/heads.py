"""Heads of merged adapters: which of them are averaged, and which stay as they are.

The outputs of two heads mean the same where their kinds of task, labels and settings are the same: then their mean is
a head. Any other head is kept for its task.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from graftwork.adapters import Adapter
from graftwork.arithmetic.values.filters import Number, at_each
from graftwork.errors import AdapterError

HeadsMode = Literal["auto", "average", "keep"]
"""What becomes of heads: averaged where the labels agree, else kept per task; all averaged, or refused; all kept."""


@dataclass(frozen=True)
class HeadGroup:
    """A head of a merged adapter.

    Attributes:
        names: of the adapters whose head it is.
        adapter: one of them, for its task and the head's settings.
        tensors: the head's.
    """

    names: tuple[str, ...]
    adapter: Adapter
    tensors: Mapping[str, Tensor]

    @property
    def name(self) -> str:
        """What it is called."""
        return "+".join(self.names)


def head_groups(
    adapters: Mapping[str, Adapter], mode: HeadsMode, shares: Sequence[Number] | None = None
) -> list[HeadGroup]:
    """The heads of the merge of adapters, in the order of the adapters.

    Args:
        adapters: by name.
        mode: what becomes of them.
        shares: how much each adapter's head counts in a mean; None: all alike. Unless all are kept, those of 0 and
            below do not count: what is to be forgotten has no say in the answers. Where none counts, all do alike. Of
            one adapter, and of heads that are all kept, they are not asked for.

    Raises:
        AdapterError: all are to be averaged, and two differ in what their outputs mean.
        RecipeError: no filter of a share matches a tensor of a head.
    """
    names = [*adapters]
    given = [1.0] * len(names) if shares is None or len(names) == 1 or mode == "keep" else shares
    share = {name: _at_head(own, adapters[name]) for name, own in zip(names, given, strict=True)}
    counted = [name for name in names if any(share[name].values())] or names
    groups: list[list[str]] = []
    for name in counted:
        found = next((g for g in groups if mode != "keep" and agree(adapters[g[0]], adapters[name])), None)
        if found is not None:
            found.append(name)
        else:
            groups.append([name])
    if mode == "average" and len(groups) > 1:
        one, other = groups[0][0], groups[1][0]
        raise AdapterError(
            f"the heads of {one!r} and {other!r} cannot be averaged: {_difference(adapters[one], adapters[other])}",
            expected="heads with the same labels and settings",
            change="--heads auto, which keeps a head for each task",
        )
    return [_group(adapters, group, [share[name] for name in group]) for group in groups]


def _at_head(share: Number, adapter: Adapter) -> dict[str, float]:
    """How much an adapter counts at each tensor of its head; under `head`, where it is the backbone's own."""
    names = head_names([adapter]) or ["head"]
    found = at_each(share, names, "--weights, or --method.t", beside=None)
    return {name: max(0.0, own) for name, own in found.items()}


def head_names(adapters: Iterable[Adapter]) -> list[str]:
    """Names of the tensors of adapters' heads, each once."""
    return [*dict.fromkeys(name for own in adapters for name in own.tensors if name.startswith("head."))]


def agree(one: Adapter, other: Adapter) -> bool:
    """Whether the outputs of two adapters' heads mean the same."""
    return not _difference(one, other)


def _difference(one: Adapter, other: Adapter) -> str:
    """In what two adapters' heads differ; empty where they do not."""
    if one.kind != other.kind:
        return f"they are for {one.kind} and for {other.kind}"
    if one.task.labels != other.task.labels:
        return f"their labels are {_listed(one)} and {_listed(other)}"
    if one.task.pairs != other.task.pairs:
        return "one is for pairs of texts, the other for single texts"
    own, theirs = (a.head.model_dump(mode="json", exclude={"dropout", "init_std"}) for a in (one, other))
    differing = sorted(name for name in {*own, *theirs} if own.get(name) != theirs.get(name))
    return f"they differ in {', '.join(differing)}" if differing else ""


def _listed(adapter: Adapter) -> str:
    labels = adapter.task.labels or ()
    return ", ".join(labels[:4]) + (" …" if len(labels) > 4 else "") or "none"


def _group(adapters: Mapping[str, Adapter], names: Sequence[str], shares: Sequence[Mapping[str, float]]) -> HeadGroup:
    each = [{n: adapters[name].tensors[n] for n in head_names([adapters[name]])} for name in names]
    if len(names) == 1:
        return HeadGroup(tuple(names), adapters[names[0]], each[0])
    tensors = {name: _mean([own[name] for own in each], [share[name] for share in shares]) for name in each[0]}
    return HeadGroup(tuple(names), adapters[names[0]], tensors)


def _mean(tensors: Sequence[Tensor], shares: Sequence[float]) -> Tensor:
    """The mean by shares; of those that are all 0, the plain one."""
    total = sum(shares)
    parts = [share / total for share in shares] if total else [1.0 / len(shares)] * len(shares)
    return torch.stack([part * own for part, own in zip(parts, tensors, strict=True)]).sum(dim=0)
