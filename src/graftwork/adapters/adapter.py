"""An adapter: one trained result of any method, with its head, its labels and the identity of its backbone."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from graftwork.adapters.added import declare_added, first_rows, with_added
from graftwork.adapters.contents import digest_of, not_finite
from graftwork.adapters.identity import BackboneIdentity, TaskIdentity, library_versions
from graftwork.adapters.new import DESCRIPTIONS, check_new, identity_of
from graftwork.backbones import Backbone, Pooling, Site, Sites
from graftwork.backbones.pooling import describe_pooling
from graftwork.errors import AdapterError, MethodError
from graftwork.heads import Head, head_for
from graftwork.methods import Method, as_method
from graftwork.methods.parameters import Group, Parameter, initialise
from graftwork.ops.op import Ops


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
        baseline: the same of a linear model on the frozen backbone's states; empty where there is none.
        rows: how many rows of each split they were measured on; of generation, sources. Empty where it is not known.
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
    baseline: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    rows: Mapping[str, int] = field(default_factory=dict)
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
        tensors |= first_rows(backbone, task.added_tokens, generator)
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
    def new(
        cls,
        backbone: Backbone,
        method: Method | str,
        *,
        kind: str = "classification",
        labels: Sequence[str] | None = None,
        pairs: bool = False,
        name: str = "task",
        pooling: Pooling | Literal["auto"] = "auto",
        max_length: int = 128,
        separator: str | None = None,
        seed: int = 0,
    ) -> "Adapter":
        """A new adapter for a training loop of one's own, with the head that its kind of task needs.

        `AdaptedModel.add(name, adapter, trainable=True)` makes its parameters those of the model, and
        `AdaptedModel.adapter(name)` gives it back as it is then.

        Args:
            method: a method, or its name.
            kind: of the task: classification, regression, token-classification, multiple-choice, generation or
                image-classification.
            labels: the classes or tags, in the order of their ids: classification, token-classification and
                image-classification need them. Of a multiple choice, what the choices are called; may be left out.
                Regression and generation have none.
            pairs: whether inputs are pairs of texts; of classification and regression.
            name: of the task.
            pooling: how the head's input is made; `auto` is the backbone's own way.
            max_length: tokens a text or pair is cut to.
            separator: what stands between source and target in a causal model; of generation and multiple choice. A
                line break when left out.
            seed: of what is random in its parameters.

        Raises:
            AdapterError: an unknown kind, or one that the backbone's inputs are not of; labels are missing, doubled or
                no texts, or given for a kind that has none, as pairs or a separator are; or another argument is wrong.
            SiteError, BackboneError: the method or head asks for what the backbone does not have.
            MethodError: the method is unknown, or asks for what the task does not have.
        """
        labels = labels if labels is None or isinstance(labels, str) else tuple(labels)
        own: dict[str, Any] = {
            "kind": kind,
            "pairs": pairs,
            "name": name,
            "separator": separator,
            "max_length": max_length,
        }
        check_new(backbone, labels=labels, pooling=pooling, **own)
        method = as_method(method)
        pooled = backbone.pooling if pooling == "auto" else pooling
        head = head_for(kind, backbone, num_labels=len(labels or ()), pooling=pooled, **method.head_fields)
        task = identity_of(backbone, labels=labels, **own)
        return cls.create(backbone, method, head, task, seed=seed)

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
        fixed = (name for name, p in self.declared(backbone, method, sites).items() if not p.trained)
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
        declared = self.declared(backbone, method, sites)
        return replace(
            self,
            method=method,
            sites=tuple(site.name for site in sites),
            tensors={name: tensor for name, tensor in self.tensors.items() if name in declared},
            fixed=tuple(name for name in self.fixed if name in declared),
            metrics={},
            baseline={},
            rows={},
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
    def pooling(self) -> str:
        """How its head makes one vector of an input, and who chose it where that is known; empty where it does not."""
        pooling = self.head.pooled_by
        return "" if pooling is None else describe_pooling(pooling, self.recipe.get("pooling_source"))

    @property
    def num_parameters(self) -> int:
        """Number of trained parameters, head included."""
        return sum(tensor.numel() for name, tensor in self.tensors.items() if name not in self.fixed)

    def declared(
        self, backbone: Backbone, method: Method | None = None, sites: Sequence[Site] | None = None
    ) -> dict[str, Parameter]:
        """Everything that it has, by canonical name; with a method, everything that it would have with that one.

        Args:
            sites: where the method acts, when that is known already.
        """
        method = method or self.method
        return declare(backbone, method, self.head, sites=sites, added=len(self.task.added_tokens))

    def check(self, backbone: Backbone, *, allow_mismatch: bool = False) -> None:
        """Refuse a backbone that this adapter was not made for, and tensors that are not as declared.

        Raises:
            AdapterError: what differs.
            BackboneError: weights are offloaded that the method puts its own in the place of.
        """
        self.backbone.check(backbone, allow_mismatch=allow_mismatch)
        sites = self.method.sites(usable_sites(backbone, self.head))
        declared = self.declared(backbone, sites=sites)
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
        problems += [f"holds NaN or infinity in {name}" for name in not_finite(self.tensors)]
        fixed = {name for name, p in declared.items() if not p.trained}
        given = {*self.fixed}
        problems += [f"marks {name} as trained, which the method keeps fixed" for name in sorted(fixed - given)]
        problems += [f"marks {name} as fixed, which the method trains" for name in sorted(given - fixed)]
        outputs = self.head.num_labels
        named = self.task.labels is not None and self.kind != "multiple-choice"
        if named and len(self.task.labels or ()) != outputs:
            problems.append(f"has {len(self.task.labels or ())} labels for {outputs} outputs")
        if problems:
            raise AdapterError(
                f"the adapter is not as its method {self.method.name!r} declares: it {first_few(problems)}",
                expected=f"{len(expected)} tensors at {len(sites)} sites",
            )
        for site in sites:
            if self.method.replaces(site):
                backbone.require_here(site)

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
    backbone: Backbone, method: Method, head: Head, *, sites: Sequence[Site] | None = None, added: int = 0
) -> dict[str, Parameter]:
    """Everything that would be trained, by canonical name. Needs no weights.

    Args:
        sites: where the method acts, when that is known already.
        added: how many tokens are added to the backbone's.
    """
    declared: dict[str, Parameter] = {}
    for site in method.sites(usable_sites(backbone, head)) if sites is None else sites:
        declared |= method.declare(site)
    return declared | head.declare(backbone) | declare_added(backbone, added)


def refuse_nothing_to_train(method: Method, kind: str, backbone: Backbone, count: int) -> None:
    """Refuse to train an adapter that has nothing to train.

    Args:
        count: how many numbers of it are trained.

    Raises:
        MethodError: there are none.
    """
    if count < 1:
        raise MethodError(
            f"method {method.name!r} has nothing to train for a task of kind {kind}: the head is the language-model "
            f"head of backbone {backbone.name!r} itself, which stays frozen",
            expected="a method that acts on the backbone, such as lora",
            change="--method",
        )


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
    return with_added({name: acting for name, acting in ops.items() if acting}, backbone, parameters)
