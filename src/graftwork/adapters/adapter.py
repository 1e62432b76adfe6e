"""An adapter: one trained result of any method, with its head, its labels and the identity of its backbone."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from graftwork.adapters.contents import digest_of
from graftwork.adapters.identity import BackboneIdentity, TaskIdentity, library_versions
from graftwork.backbones import Backbone, Site, Sites
from graftwork.errors import AdapterError
from graftwork.heads import Head
from graftwork.methods import Method
from graftwork.methods.parameters import Group, Parameter, initialise
from graftwork.ops.graft import Ops

DESCRIPTIONS = {
    "classification": ("texts", None),
    "regression": ("texts", "a number"),
    "token-classification": ("words", None),
    "multiple-choice": ("questions with choices", "a choice"),
    "generation": ("texts", "a text"),
    "image-classification": ("images", None),
}
"""Kind of task -> what it takes, and what it says; None: one of its labels."""


@dataclass(frozen=True, kw_only=True)
class Adapter:
    """One trained result.

    Attributes:
        method, head: how the tensors are to be read.
        task: labels and how its texts are read.
        backbone: which backbone it was made for.
        sites: names of the sites where it acts, in site order.
        tensors: training parameters and the head's, float32 on the CPU, under canonical names.
        fixed: the names of those tensors that are kept but never trained.
        metrics: scores by split, then by metric.
        seed: of initialisation and training.
        recipe: everything that the run was started with, as resolved; empty for an adapter made by hand.
        versions: of the libraries that made it.
    """

    method: Method
    head: Head
    task: TaskIdentity
    backbone: BackboneIdentity
    sites: tuple[str, ...]
    tensors: Mapping[str, Tensor]
    fixed: tuple[str, ...] = ()
    metrics: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    seed: int = 0
    recipe: Mapping[str, Any] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=library_versions)

    @classmethod
    def create(cls, backbone: Backbone, method: Method, head: Head, task: TaskIdentity, *, seed: int = 0) -> "Adapter":
        """A new adapter, initialised as its method says: the backbone's outputs are (nearly) unchanged by it.

        Raises:
            SiteError, BackboneError: the method or head asks for what the backbone does not have.
            MethodError: the method asks for what the task does not have.
        """
        sites = method.sites(usable_sites(backbone, head))
        declared = [(site, method.declare(site)) for site in sites]
        generator = torch.Generator().manual_seed(seed)
        tensors = initialise([*declared, (None, head.declare(backbone))], backbone, generator)
        tensors |= method.initial(tensors, sites, backbone, task.labels, generator)
        return cls(
            method=method,
            head=head,
            task=task,
            backbone=BackboneIdentity.of(backbone),
            sites=tuple(site.name for site in sites),
            tensors=tensors,
            fixed=tuple(n for _, parameters in declared for n, p in parameters.items() if not p.trained),
            seed=seed,
        )

    @classmethod
    def load(cls, folder: str | Path) -> "Adapter":
        """Read an adapter's folder. See `graftwork.adapters.read_adapter`."""
        from graftwork.adapters.folder import read_adapter

        return read_adapter(Path(folder))

    def save(self, folder: str | Path, *, overwrite: bool = False) -> None:
        """Write an adapter's folder. See `graftwork.adapters.write_adapter`."""
        from graftwork.adapters.folder import write_adapter

        write_adapter(self, Path(folder), overwrite=overwrite)

    def finished(self, backbone: Backbone) -> "Adapter":
        """The adapter that its method keeps when training has ended, which says the same."""
        usable = usable_sites(backbone, self.head)
        method, tensors = self.method.finish(self.tensors, self.method.sites(usable))
        sites = method.sites(usable)
        fixed = (name for name, p in declare(backbone, method, self.head, sites=sites).items() if not p.trained)
        acting = tuple(site.name for site in sites)
        return replace(self, method=method, tensors=tensors, sites=acting, fixed=tuple(fixed))

    def without_layers(self, backbone: Backbone, count: int) -> "Adapter":
        """The adapter less what it does in the first layers of each stack, whose work it then shares with the frozen
        backbone (AdapterDrop, Rücklé et al. 2021, section 3). Its scores are left out: they are no longer its own.

        Args:
            count: of layers, those among them that the adapter left out before.

        Raises:
            AdapterError: its method's settings do not say how many layers are left out; or it acts in fewer than that.
            MethodError: it would act nowhere in one of the stacks.
        """
        skipped = getattr(self.method, "skip_layers", None)
        if skipped is None:
            raise AdapterError(
                f"method {self.method.name!r} leaves out no layers", expected="an adapter of a bottleneck method"
            )
        if count < skipped:
            raise AdapterError(f"the first {skipped} layers are left out already", expected=f"{skipped} or more")
        settings = {**self.method.model_dump(mode="json"), "skip_layers": count, "robust_drop": False}
        method = type(self.method).model_validate(settings)
        sites = method.sites(usable_sites(backbone, self.head))
        declared = declare(backbone, method, self.head, sites=sites)
        return replace(
            self,
            method=method,
            sites=tuple(site.name for site in sites),
            tensors={name: tensor for name, tensor in self.tensors.items() if name in declared},
            fixed=tuple(name for name in self.fixed if name in declared),
            metrics={},
        )

    @cached_property
    def digest(self) -> str:
        """32 hexadecimal digits that are the same for two adapters with the same answers: a hash over the tensors, and
        over what decides how they are read and what is said. Scores, seed, recipe, versions and the backbone's name
        do not count. Computed once."""
        content = {
            "method": {"name": self.method.name, **self.method.model_dump(mode="json", exclude_defaults=True)},
            "head": {"kind": self.head.kind, **self.head.model_dump(mode="json", exclude_defaults=True)},
            "task": self.task.model_dump(mode="json", exclude_defaults=True),
            "backbone": self.backbone.fingerprint,
            "sites": list(self.sites),
            "fixed": sorted(self.fixed),
        }
        return digest_of(content, self.tensors)

    @property
    def kind(self) -> str:
        """The kind of its task."""
        return self.task.kind or self.head.task_kind

    def describe(self) -> tuple[str, str]:
        """What it takes and what it says, in words."""
        taken, said = DESCRIPTIONS[self.kind]
        return "pairs of texts" if self.task.pairs else taken, said or ", ".join(self.task.labels or ("classes",))

    @property
    def num_parameters(self) -> int:
        """Number of trained parameters, head included."""
        return sum(tensor.numel() for name, tensor in self.tensors.items() if name not in self.fixed)

    def check(self, backbone: Backbone, *, allow_mismatch: bool = False) -> None:
        """Refuse a backbone that this adapter was not made for, and tensors that are not as declared.

        Raises:
            AdapterError: what differs.
        """
        self.backbone.check(backbone, allow_mismatch=allow_mismatch)
        sites = self.method.sites(usable_sites(backbone, self.head))
        declared = declare(backbone, self.method, self.head, sites=sites)
        expected = {name: p.shape for name, p in declared.items()}
        found = {name: tuple(tensor.shape) for name, tensor in self.tensors.items()}
        types = [
            f"{name} is {tensor.dtype} instead of torch.float32"
            for name, tensor in self.tensors.items()
            if tensor.dtype != torch.float32
        ]
        problems = misfits(expected, found) + types
        acting = tuple(site.name for site in sites)
        if self.sites != acting:
            differing = ", ".join(sorted({*self.sites} ^ {*acting})[:3])
            problems.append(f"acts at other sites ({differing or 'in another order'})")
        fixed = {name for name, p in declared.items() if not p.trained}
        if fixed != set(self.fixed):
            problems.append(f"trains or fixes what it should not: {', '.join(sorted(fixed ^ set(self.fixed))[:3])}")
        outputs = self.head.num_labels
        named = self.task.labels is not None and self.kind != "multiple-choice"
        if named and len(self.task.labels or ()) != outputs:
            problems.append(f"has {len(self.task.labels or ())} labels for {outputs} outputs")
        if problems:
            raise AdapterError(
                f"the adapter is not as its method {self.method.name!r} declares: it {first_few(problems)}",
                expected=f"{len(expected)} tensors at {len(sites)} sites",
            )

    def __repr__(self) -> str:
        return f"Adapter({self.method!r}, task={self.task.name!r}, {self.num_parameters:,} parameters)"


def misfits(expected: Mapping[str, Sequence[int]], found: Mapping[str, Sequence[int]]) -> list[str]:
    """How tensors differ from what they should be, by name and shape, as phrases."""
    wrong = [name for name in sorted(expected.keys() & found.keys()) if tuple(found[name]) != tuple(expected[name])]
    return [
        *(f"lacks {name}" for name in sorted(expected.keys() - found.keys())),
        *(f"has unknown {name}" for name in sorted(found.keys() - expected.keys())),
        *(f"{name} is {tuple(found[name])} instead of {tuple(expected[name])}" for name in wrong),
    ]


def first_few(problems: Sequence[str]) -> str:
    """At most five of them, and how many more there are."""
    return "; ".join(problems[:5]) + (f" and {len(problems) - 5} more" if len(problems) > 5 else "")


def usable_sites(backbone: Backbone, head: Head) -> Sites:
    """The backbone's sites less those whose output the head does not read.

    Raises:
        BackboneError: the head pools by a layer that the backbone lacks.
    """
    head.check(backbone)
    return backbone.sites.without(head.unused_sites(backbone))


def declare(
    backbone: Backbone, method: Method, head: Head, *, sites: Sequence[Site] | None = None
) -> dict[str, Parameter]:
    """Everything that would be trained, by canonical name. Needs no weights.

    Args:
        sites: where the method acts, when that is known already.
    """
    declared: dict[str, Parameter] = {}
    for site in method.sites(usable_sites(backbone, head)) if sites is None else sites:
        declared |= method.declare(site)
    return declared | head.declare(backbone)


def counts(declared: Mapping[str, Parameter]) -> dict[Group, int]:
    """Number of trained parameters by group."""
    groups: tuple[Group, ...] = ("adapter", "norms", "head")
    return {group: sum(p.count for p in declared.values() if p.group == group and p.trained) for group in groups}


def lower(
    backbone: Backbone,
    method: Method,
    head: Head,
    parameters: Mapping[str, Tensor],
    *,
    training: bool = False,
    sites: Sequence[Site] | None = None,
) -> Ops:
    """The ops of an adapter, by site. Sites at which nothing acts in this pass are left out.

    Args:
        sites: where the method acts, when that is known already.
    """
    sites = method.sites(usable_sites(backbone, head)) if sites is None else sites
    prepared = method.prepare(parameters, sites, training=training)
    ops = {site.name: method.lower(site, prepared, backbone.frozen(site)) for site in sites}
    return {name: acting for name, acting in ops.items() if acting}
