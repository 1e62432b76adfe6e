"""An adapter: one trained result of any method, with its head, its labels and the identity of its backbone."""

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
from graftwork.adapters.record import Record
from graftwork.backbones import Backbone, Pooling, Site
from graftwork.encoding.identity import TaskIdentity
from graftwork.errors import AdapterError
from graftwork.heads import Head
from graftwork.kinds import DEFAULT_KIND, KINDS
from graftwork.kinds.heads import head_for
from graftwork.methods import Method, as_method
from graftwork.methods.parameters import Parameter, initialise


class Adapter(Record):
    """One trained result. Its attributes are those of `Record`."""

    @classmethod
    def create(cls, backbone: Backbone, method: Method, head: Head, task: TaskIdentity, *, seed: int = 0) -> "Adapter":
        """A new adapter, initialised as its method prescribes: it leaves the backbone's outputs (nearly) unchanged.

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
        """A new adapter for a training loop of one's own, with the head that its kind of task needs.

        `AdaptedModel.add(name, adapter, trainable=True)` makes its parameters trainable parameters of the model, and
        `AdaptedModel.adapter(name)` returns it in its current state.

        Args:
            method: a method, or its name.
            kind: of the task, one of `graftwork.kinds.KINDS`.
            labels: the classes or tags, in the order of their ids: kinds whose answers are such labels need them. Of a
                multiple choice, what the choices are called; may be left out. Regression and generation have none.
            pairs: whether inputs are pairs of texts; of classification and regression.
            name: of the task.
            pooling: how the head's input is made; `auto` is the backbone's own way.
            max_length: tokens a text or pair is cut to.
            separator: what stands between source and target in a causal model; of generation and multiple choice. A
                line break when left out.
            seed: of what is random in its parameters.

        Raises:
            AdapterError: an unknown kind, or one that does not suit the backbone's inputs; labels are missing, repeated
                or not texts; labels, pairs or a separator are given for a kind without them; another argument is wrong.
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
        """Read a folder that `save` or a run has written.

        Raises:
            AdapterError: it is missing, damaged, or not an adapter of graftwork; says which file and what is wrong.
        """
        return cls(**read_record(Path(folder)))

    def save(self, folder: str | Path, *, overwrite: bool = False) -> None:
        """Write an adapter's folder. See `graftwork.adapters.write_adapter`."""
        write_adapter(self, Path(folder), overwrite=overwrite)

    def finished(self, backbone: Backbone) -> "Adapter":
        """The adapter that its method keeps after training; its outputs are the same."""
        usable = usable_sites(backbone, self.head)
        method, tensors = self.method.finish(self.tensors, self.method.sites(usable))
        sites = method.sites(usable)
        fixed = (name for name, p in self.declared(backbone, method, sites).items() if not p.trained)
        acting = tuple(site.name for site in sites)
        return replace(self, method=method, tensors=tensors, sites=acting, fixed=tuple(fixed))

    def without_layers(self, backbone: Backbone, count: int) -> "Adapter":
        """The adapter without its effect in the first layers of each stack, which are then those of the frozen
        backbone (AdapterDrop, Rücklé et al. 2021, section 3). Its scores are dropped, as they no longer apply.

        Args:
            count: of layers, those among them that the adapter left out before.

        Raises:
            AdapterError: its method has no setting for layers to leave out; or it acts in fewer layers.
            MethodError: it would act in no layer of one of the stacks.
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

    def declared(
        self, backbone: Backbone, method: Method | None = None, sites: Sequence[Site] | None = None
    ) -> dict[str, Parameter]:
        """The parameters that it has, by canonical name; with a method, those that it would have with that method.

        Args:
            sites: where the method acts, when that is known already.
        """
        method = method or self.method
        return declare(backbone, method, self.head, sites=sites, added=len(self.task.added_tokens))

    def check(self, backbone: Backbone, *, allow_mismatch: bool = False) -> None:
        """Refuse a backbone that this adapter was not made for, and tensors that are not as declared.

        Raises:
            AdapterError: what differs.
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
