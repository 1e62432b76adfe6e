"""Adapters: the trained result of any method, with its head, its labels and the identity of its backbone."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import torch

from graftwork.adapters.added import first_rows
from graftwork.adapters.contents import first_few, misfits, not_finite
from graftwork.adapters.declared import declare, usable_sites
from graftwork.adapters.folder import read_record, write_adapter
from graftwork.adapters.identity import BackboneIdentity
from graftwork.adapters.new import check_new, identity_of
from graftwork.adapters.parts import bring_parts
from graftwork.adapters.record import Record
from graftwork.backbones import Backbone, Pooling, Site
from graftwork.encoding.identity import TaskIdentity
from graftwork.errors import AdapterError
from graftwork.heads import Head
from graftwork.kinds import DEFAULT_KIND, KINDS
from graftwork.kinds.heads import head_for
from graftwork.methods import Method, as_method
from graftwork.methods.gating import GatedComposition
from graftwork.methods.parameters import Parameter, initialise


class Adapter(Record):
    """The trained result of a method for one task, with its head. Its attributes are those of `Record`.

    `Adapter.new` makes an untrained one, `Adapter.load` reads one from a folder, and `tune` trains one.
    """

    @classmethod
    def create(cls, backbone: Backbone, method: Method, head: Head, task: TaskIdentity, *, seed: int = 0) -> "Adapter":
        """Make an untrained adapter with a given head. `Adapter.new` also makes the head.

        Args:
            backbone: the frozen model.
            method: the method, which determines the initial values.
            head: the head.
            task: name, kind and labels of the task, and how inputs are read.
            seed: seed of the initialisation.

        Raises:
            SiteError, BackboneError: the backbone lacks something that the method or the head needs.
            MethodError: the task lacks something that the method needs.
        """
        bring_parts(method, backbone)
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
            fixed=tuple(dict.fromkeys(n for _, parameters in declared for n, p in parameters.items() if not p.trained)),
            seed=seed,
        )

    @classmethod
    def new(
        cls,
        backbone: Backbone,
        method: Method | str,
        *,
        kind: str = DEFAULT_KIND,
        labels: Sequence[str] | None = None,
        pairs: bool = False,
        name: str = "task",
        pooling: Pooling | Literal["auto"] = "auto",
        max_length: int = 128,
        separator: str | None = None,
        seed: int = 0,
    ) -> "Adapter":
        """Make an untrained adapter for your own training loop, with the head for its kind of task.

        `AdaptedModel.add(name, adapter, trainable=True)` makes its parameters trainable parameters of the model, and
        `AdaptedModel.adapter(name)` returns it with the current parameters.

        Args:
            backbone: the frozen model.
            method: a method or its name.
            kind: the kind of task, a key of `graftwork.kinds.KINDS`.
            labels: the classes or tags, in the order of their ids; required for kinds of task that have them. For
                multiple choice, optional names of the choices. Regression and generation have no labels.
            pairs: whether inputs are pairs of texts; for classification and regression.
            name: the name of the task.
            pooling: how a text becomes one vector for the head; `auto` is the backbone's pooling.
            max_length: maximum number of tokens of a text or pair; longer ones are truncated.
            separator: for generation and multiple choice: the text between source and target in a causal model. None: a
                line break.
            seed: seed of the initialisation.

        Raises:
            AdapterError: the kind is unknown or does not suit the backbone's inputs; labels are missing, repeated or
                not strings; labels, pairs or a separator are given for a kind without them; or another argument is
                invalid.
            SiteError, BackboneError: the backbone lacks something that the method or the head needs.
            MethodError: the method is unknown, or the task lacks something that it needs.
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
        """Read an adapter from its folder.

        Raises:
            AdapterError: the folder is missing, damaged, or not an adapter; names the file and what is wrong with it.
        """
        return cls(**read_record(Path(folder)))

    def save(self, folder: str | Path, *, overwrite: bool = False) -> None:
        """Write the adapter to a folder. The folder is written completely or not at all.

        Args:
            folder: the folder.
            overwrite: replace an existing adapter.

        Raises:
            OutputError: the folder exists and `overwrite` is off, or it cannot be written.
            AdapterError: a tensor contains NaN or infinity.
        """
        write_adapter(self, Path(folder), overwrite=overwrite)

    def finished(self, backbone: Backbone) -> "Adapter":
        """The adapter that is kept after training: some methods replace what was trained by something smaller with the
        same outputs (AdaMix averages its experts).
        """
        usable = usable_sites(backbone, self.head)
        method, tensors = self.method.finish(self.tensors, self.method.sites(usable))
        sites = method.sites(usable)
        fixed = (name for name, p in self.declared(backbone, method, sites).items() if not p.trained)
        acting = tuple(site.name for site in sites)
        return replace(self, method=method, tensors=tensors, sites=acting, fixed=tuple(fixed))

    def without_layers(self, backbone: Backbone, count: int) -> "Adapter":
        """A copy without bottlenecks in the first layers of each stack, which are then the frozen backbone's own
        (AdapterDrop, Rücklé et al. 2021, section 3). The scores are removed, since they no longer apply.

        Args:
            backbone: the backbone of the adapter.
            count: number of layers without bottlenecks, including those that had none before.

        Raises:
            AdapterError: the method has no bottlenecks; or more layers have none already.
            MethodError: a stack would have no bottlenecks left.
        """
        skipped = getattr(self.method, "skip_layers", None)
        if skipped is None:
            raise AdapterError(
                f"method {self.method.name!r} cannot leave out layers", expected="an adapter of a bottleneck method"
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

    def without_parts(self, names: Sequence[str]) -> "Adapter":
        """A copy of a fusion or gated composition that leaves out some of its parts; those that are left share what the
        gates give. The scores are removed, since they no longer apply.

        Args:
            names: names of parts.

        Raises:
            AdapterError: the method has no gates.
            MethodError: there is no such part, or none is left.
        """
        if not isinstance(self.method, GatedComposition):
            raise AdapterError(
                f"method {self.method.name!r} has no parts to leave out", expected="an adapter of method fuse or gate"
            )
        masked = tuple(dict.fromkeys([*self.method.masked_parts, *names]))
        method = type(self.method)(**{**dict(self.method), "masked_parts": masked})
        return replace(self, method=method, metrics={}, baseline={}, rows={})

    def declared(
        self, backbone: Backbone, method: Method | None = None, sites: Sequence[Site] | None = None
    ) -> dict[str, Parameter]:
        """The declared parameters of the adapter, by canonical name.

        Args:
            backbone: the backbone of the adapter.
            method: another method, to get the parameters that the adapter would have with it.
            sites: the sites of the method, if they are known already.
        """
        method = method or self.method
        return declare(backbone, method, self.head, sites=sites, added=len(self.task.added_tokens))

    def check(self, backbone: Backbone, *, allow_mismatch: bool = False) -> None:
        """Check that the adapter fits a backbone, and that its tensors are those that its method declares.

        Args:
            backbone: the backbone.
            allow_mismatch: accept other weights of the same shape.

        Raises:
            AdapterError: names the differences.
            BackboneError: weights that the method replaces are offloaded.
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
        named = self.task.labels is not None and KINDS[self.kind].named
        if named and len(self.task.labels or ()) != outputs:
            problems.append(f"has {len(self.task.labels or ())} labels for {outputs} outputs")
        if problems:
            raise AdapterError(
                f"the adapter does not match its method {self.method.name!r}: it {first_few(problems)}",
                expected=f"{len(expected)} tensors at {len(sites)} sites",
            )
        for site in sites:
            if self.method.replaces(site):
                backbone.require_here(site)
