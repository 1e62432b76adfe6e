"""`merge_adapters`: several adapters of one backbone become one, with the heads of their tasks."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from graftwork.adapters import Adapter
from graftwork.adapters.declared import usable_sites
from graftwork.adapters.folder import SHARED, fill_folder, refuse_existing, write_shared
from graftwork.adapters.identity import library_versions
from graftwork.arithmetic.adapters.bodies import Align, Bodies, Body, LowRankBodies, linear
from graftwork.arithmetic.adapters.commonbasis import Formula, knots
from graftwork.arithmetic.adapters.heads import HeadGroup, HeadsMode, head_groups
from graftwork.arithmetic.adapters.mergeable import bodies_of
from graftwork.arithmetic.values.filters import Number
from graftwork.backbones import Backbone
from graftwork.errors import AdapterError, MethodError
from graftwork.folders import replacing_folder
from graftwork.settings.yamlfile import dump_yaml, read_yaml

HEADS = "heads.yaml"
"""In a folder with several heads: their names, and how they were merged."""


@dataclass(frozen=True)
class MergedAdapters:
    """One body with a head for each task, or for several tasks whose labels agree.

    Attributes:
        adapters: an adapter for each head, by the names of the tasks that it is for (`rte`, `imdb+yelp`). They have
            the same tensors but for their heads.
        members: which of the merged adapters each head is of, by the same names.
    """

    adapters: Mapping[str, Adapter]
    members: Mapping[str, tuple[str, ...]]

    @property
    def adapter(self) -> Adapter:
        """The adapter, where there is one head.

        Raises:
            AdapterError: there are several.
        """
        if len(self.adapters) != 1:
            raise AdapterError(
                f"the merged adapter has {len(self.adapters)} heads ({', '.join(self.adapters)})",
                expected="one of `adapters`",
            )
        return next(iter(self.adapters.values()))

    def save(self, folder: str | Path, *, overwrite: bool = False) -> None:
        """Write one adapter's folder, or with several heads a folder with an adapter for each, which have the tensors
        of the body in one file. The folder is written completely or not at all.

        Args:
            folder: the folder.
            overwrite: replace an existing one.

        Raises:
            OutputError: the folder exists and `overwrite` is off, it holds something else, or it cannot be written.
            AdapterError: a tensor contains NaN or infinity.
        """
        folder = Path(folder)
        refuse_output(folder, overwrite=overwrite)
        with replacing_folder(folder, overwrite=overwrite) as new:
            if len(self.adapters) == 1:
                fill_folder(self.adapter, new)
                return
            shared = _in_common([*self.adapters.values()])
            write_shared(shared, new)
            for name, adapter in self.adapters.items():
                (new / name).mkdir()
                fill_folder(adapter, new / name, shared=shared.keys())
            (new / HEADS).write_text(self.describe_heads(), encoding="utf-8")

    def describe_heads(self) -> str:
        """What the file of a folder with several heads says: the heads, and how they were merged, as YAML."""
        first = next(iter(self.adapters.values()))
        return dump_yaml({"heads": list(self.adapters), "merged": first.recipe.get("merged", {})})


def merge_adapters(
    adapters: Mapping[str, Adapter] | Sequence[Adapter],
    backbone: Backbone,
    *,
    coefficients: Sequence[float] | None = None,
    formula: Formula | None = None,
    basis: bool = False,
    by_singular_values: bool = False,
    scale: float = 1.0,
    rank: int | None = None,
    heads: HeadsMode = "auto",
    head_shares: Sequence[Number] | None = None,
    align: Align = "auto",
) -> MergedAdapters:
    """Merge adapters of one backbone by what they change, whatever their parametrisation is.

    LoRA and its relatives are merged by their products B A, so that the signs and the basis of the factors do not
    matter; IA3's vectors relative to ones; bottlenecks by a mean, after their units are permuted to match unless they
    began alike; all others, and adapters of different methods, by what they change in the weights.

    Args:
        adapters: by name, or a list, whose names are then those of their tasks.
        backbone: that they were made for, with weights.
        coefficients: c_i of Σ c_i τ_i; None: 1/N each, the mean. Negative ones subtract.
        formula: merges the vectors τ_i in the place of a sum, such as `partial(ties, keep=0.2)`. Not for bottlenecks.
        basis: apply the formula in the basis that the differences have in common (KnOTS, Stoica et al. 2024).
        by_singular_values: the formula gives U f(X) for matrices U X with any orthonormal U, as `iso_c` and `tsv_m` do:
            LoRA adapters are then merged in the basis that they have in common, which is the same and much faster.
        scale: λ, the factor of what is merged.
        rank: of the LoRA that the result is to be: the best of that rank. None: the result says the merge exactly. A
            sum of LoRA adapters is then a LoRA of the sum of their ranks; what a formula makes of them is a full
            fine-tuning, and with `basis` or `by_singular_values` again a LoRA of that rank.
        heads: `auto`: averaged where kind, labels and settings agree, else kept per task; `average`: refused where they
            do not agree; `keep`: one for each adapter.
        head_shares: how much each adapter's head counts in a mean of heads; those of 0 and below do not. None: as much
            as its coefficient.
        align: permute the units of bottlenecks: `auto`: where the adapters did not begin alike; `units`; `none`.

    Returns:
        An adapter for each head.

    Raises:
        AdapterError: an adapter is of another backbone; names are repeated; or heads cannot be averaged.
        MethodError: methods that cannot be merged, or settings that do not suit them.
    """
    named = named_adapters(adapters)
    weights = _coefficients(named, coefficients, formula)
    bodies = bodies_of(named, backbone, align=align)
    if (basis or by_singular_values) and formula is None:
        raise MethodError("a basis would do nothing without a formula", change="formula")
    groups = head_groups(named, heads, coefficients if head_shares is None else head_shares)
    if formula is None:
        body = bodies.combined([scale * c for c in weights], rank)
    else:
        turned = by_singular_values and isinstance(bodies, LowRankBodies)
        body = _by_formula(bodies, formula, basis=basis or turned, full_size=turned, scale=scale, rank=rank)
    said: dict[str, Any] = {"scale": scale, "rank": rank, "basis": basis, "align": align}
    said |= {"coefficients": list(weights)} if formula is None else {"formula": name_of(formula)}
    return with_heads(body, groups, named, backbone, said)


def named_adapters(adapters: Mapping[str, Adapter] | Sequence[Adapter]) -> dict[str, Adapter]:
    """Adapters by name: those of a list by their tasks' names.

    Raises:
        AdapterError: there are none, two have one name, or a name cannot be a folder's.
    """
    pairs = [*adapters.items()] if isinstance(adapters, Mapping) else [(a.task.name, a) for a in adapters]
    names = [name for name, _ in pairs]
    twice = next((name for i, name in enumerate(names) if name in names[:i]), None)
    if twice is not None:
        raise AdapterError(
            f"two adapters are for a task {twice!r}", expected="different names", change="a mapping of names"
        )
    if not pairs:
        raise AdapterError("no adapters are given", expected="two or more")
    wrong = next((name for name in names if not name or "/" in name or name.startswith(".")), None)
    if wrong is not None:
        raise AdapterError(f"an adapter is named {wrong!r}", expected="a name that a folder can have")
    return dict(pairs)


def with_heads(
    body: Body,
    groups: Sequence[HeadGroup],
    adapters: Mapping[str, Adapter],
    backbone: Backbone,
    said: Mapping[str, Any],
) -> MergedAdapters:
    """A body with heads, as adapters.

    Args:
        body: what all of them have in common.
        groups: the heads.
        adapters: what was merged, by name.
        backbone: of all of them.
        said: how it was merged, for the recipe.
    """
    merged = {**said, "adapters": {name: adapter.digest for name, adapter in adapters.items()}}
    found = {group.name: _with_head(body, group, backbone, merged) for group in groups}
    return MergedAdapters(found, {group.name: group.names for group in groups})


def _with_head(body: Body, group: HeadGroup, backbone: Backbone, merged: Mapping[str, Any]) -> Adapter:
    own = group.adapter
    sites = body.method.sites(usable_sites(backbone, own.head))
    declared = own.declared(backbone, body.method, sites)
    tensors = {name: t for name, t in {**body.tensors, **group.tensors}.items() if name in declared}
    task = own.task if len(group.names) == 1 else own.task.model_copy(update={"name": group.name})
    made = replace(
        own,
        method=body.method,
        task=task,
        sites=tuple(site.name for site in sites),
        tensors={name: tensor.float().cpu().contiguous() for name, tensor in tensors.items()},
        fixed=tuple(name for name, p in declared.items() if not p.trained),
        metrics={},
        baseline={},
        rows={},
        recipe={**{k: own.recipe[k] for k in ("backbone", "task") if k in own.recipe}, "merged": dict(merged)},
        versions=library_versions(),
    )
    made.check(backbone)
    return made


def _by_formula(
    bodies: Bodies, formula: Formula, *, basis: bool, full_size: bool, scale: float, rank: int | None
) -> Body:
    bodies.refuse_formula(bodies.adapters, name_of(formula))
    if basis and isinstance(bodies, LowRankBodies):
        return bodies.knotted(formula, scale, rank, full_size=full_size)
    merged = knots(bodies.vectors, formula) if basis else formula(bodies.vectors)
    lost = sorted({*bodies.vectors[0]} ^ {*merged})
    if lost:
        raise MethodError(
            f"{name_of(formula)} gives other tensors than it was given: {', '.join(lost[:3])}",
            expected="a vector with the names of those that it merges",
        )
    return bodies.written(linear([merged], [scale]), rank)


def _coefficients(
    adapters: Mapping[str, Adapter], given: Sequence[float] | None, formula: Formula | None
) -> tuple[float, ...]:
    if given is None:
        return (1.0 / len(adapters),) * len(adapters)
    if formula is not None:
        raise MethodError(
            "coefficients would do nothing: the formula merges the vectors",
            expected="one of the two",
            change="--weights",
        )
    if len(given) != len(adapters):
        raise MethodError(
            f"{len(given)} coefficients are given for {len(adapters)} adapters",
            expected=f"{len(adapters)} numbers",
            change="--weights",
        )
    return tuple(float(c) for c in given)


def name_of(formula: Formula) -> str:
    """What a formula is called, with its settings where they are bound by `functools.partial`."""
    inner, bound = getattr(formula, "func", formula), getattr(formula, "keywords", {})
    name = getattr(inner, "__name__", type(inner).__name__)
    return name + (f"({', '.join(f'{key}={value}' for key, value in bound.items())})" if bound else "")


def refuse_output(folder: Path, *, overwrite: bool) -> None:
    """Refuse an output folder that exists, before any work is done: unless it may be replaced, and is an adapter's or
    one of several heads that was written here.

    Raises:
        OutputError: it exists and is not to be replaced.
    """
    if not (overwrite and is_of_several_heads(folder)):
        refuse_existing(folder, overwrite=overwrite)


def is_of_several_heads(folder: Path) -> bool:
    """Whether a folder was written for several heads, and holds nothing else."""
    if not (folder / HEADS).is_file():
        return False
    heads = read_yaml(folder / HEADS).get("heads", [])
    return {path.name for path in folder.iterdir()} <= {HEADS, SHARED, *heads}


def _in_common(adapters: Sequence[Adapter]) -> dict[str, Tensor]:
    """The tensors that are the same in all of them."""
    first, *others = adapters
    return {
        name: tensor
        for name, tensor in first.tensors.items()
        if not name.startswith("head.") and all(_same(tensor, other.tensors.get(name)) for other in others)
    }


def _same(one: Tensor, other: Tensor | None) -> bool:
    return other is not None and torch.equal(one, other)
