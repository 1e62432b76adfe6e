"""An adapter on one backbone: its ops as they run, and its head's parameters on the device."""

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from pathlib import Path

import torch
import torch.nn as nn
from torch import Tensor

from graftwork.adapters.adapter import Adapter, lower, misfits, usable_sites
from graftwork.adapters.draws import Draws
from graftwork.backbones import Backbone
from graftwork.errors import AdapterError
from graftwork.methods.parameters import ParameterTree
from graftwork.ops.graft import Ops, check
from graftwork.ops.shrinks import with_joint_shrinks
from graftwork.ops.slabs import Layout, Packed, routed


class Resident(nn.Module):
    """An adapter as it runs.

    A trainable one has all its parameters as a module's and is lowered anew at each forward pass, so that gradients
    reach them. Any other one is lowered once, into one row of numbers in the backbone's precision; only its head's
    parameters are a module's. What it was lowered from stays where it was: in the `Adapter`, or in its folder.

    Attributes:
        sites: the names of those where its ops act.
        routed: whether it can share a pass with other adapters.
        layout: how its numbers lie where nothing is drawn at random; None of one that cannot share a pass.
        draws: where its random numbers in training come from; None: from torch's source, as it stands.

    Args:
        source: the folder that the adapter was read from; it is then read again where its tensors are asked for.
    """

    def __init__(
        self, adapter: Adapter, backbone: Backbone, *, trainable: bool = False, source: Path | None = None
    ) -> None:
        super().__init__()
        self.trainable = trainable
        self.draws: Draws | None = None
        self.source = source
        self.adapter = adapter if source is None else replace(adapter, tensors={})
        self._backbone = backbone
        self._sites = adapter.method.sites(usable_sites(backbone, adapter.head))
        self._changed: Mapping[str, Tensor] | None = None
        self._packed: Packed | None = None
        self._lowered: Ops | None = None
        own = {name: t for name, t in adapter.tensors.items() if trainable or name.startswith("head.")}
        self.parameters_by_name = ParameterTree({n: t.clone() for n, t in own.items()}, adapter.fixed)
        self.parameters_by_name.requires_grad_(trainable)
        self.to(backbone.device)
        ops = self._exact(adapter.tensors)
        check(ops, backbone.sites)
        self.sites = tuple(ops)
        self.routed = routed(ops, backbone)
        self.layout: Layout | None = None
        if not trainable:
            self._keep(ops)
        elif self.routed:
            self.layout = Packed.of(with_joint_shrinks(ops)).layout

    @property
    def nbytes(self) -> int:
        """Of what is on the device for it, in bytes."""
        own = [*self.parameters_by_name.parameters(), *self.parameters_by_name.buffers()]
        if self._packed is not None:
            own += self._packed.tensors
        elif self._lowered is not None:
            own += {id(t): t for acting in self._lowered.values() for op in acting for t in op.numbers()}.values()
        return sum(tensor.numel() * tensor.element_size() for tensor in own)

    def tensors(self) -> Mapping[str, Tensor]:
        """Its parameters by canonical name: all of a trainable one, else its head's."""
        return self.parameters_by_name.by_name()

    def ops(self) -> Ops:
        """The ops by site, in the backbone's precision."""
        if self.trainable:
            with self.drawing():
                return with_joint_shrinks(self._cast(self._lower(self.tensors(), training=self.training)))
        self.bring()
        if self._lowered is None:
            with torch.inference_mode(False), torch.no_grad():
                self._lowered = self.packed().ops()
        return self._lowered

    def drawing(self) -> AbstractContextManager[None]:
        """Inside, what is random about it is drawn from its own source, where it has one."""
        return nullcontext() if self.draws is None else self.draws.own()

    def packed(self) -> Packed:
        """Of one that can share a pass, the ops as numbers."""
        if self.trainable:
            with self.drawing():
                return Packed.of(with_joint_shrinks(self._lower(self.tensors(), training=self.training)))
        self.bring()
        assert self._packed is not None
        return self._packed

    def exact_ops(self) -> Ops:
        """The ops by site as they act without training, before they are rounded to the backbone's precision."""
        return self._exact(self._all())

    def snapshot(self) -> Adapter:
        """The adapter with the parameters as they are now."""
        return replace(self.adapter, tensors={n: t.detach().float().cpu().clone() for n, t in self._all().items()})

    def assign(self, tensors: Mapping[str, Tensor]) -> None:
        """Overwrite the parameters with tensors of the same names and shapes.

        Raises:
            AdapterError: other names or shapes.
        """
        all_ = self._all()
        wrong = misfits({n: t.shape for n, t in all_.items()}, {n: t.shape for n, t in tensors.items()})
        if wrong:
            raise AdapterError(f"the adapter's tensors are others: it {wrong[0]}")
        with torch.no_grad():
            for name, tensor in self.tensors().items():
                tensor.copy_(tensors[name])
        if not self.trainable:
            self._changed = {name: tensors[name].detach().clone() for name in all_}
            self._keep(self._exact(self._changed))

    def put_away(self, folder: Callable[[], Path]) -> None:
        """Free the device of its ops. The next use lowers it again from its folder, which it is written to first where
        it has none.

        Args:
            folder: gives a new path.
        """
        if self.source is None and self._changed is None:
            path = folder()
            self.adapter.save(path)
            self.source, self.adapter = path, replace(self.adapter, tensors={})
        self._packed = self._lowered = None

    def _all(self) -> Mapping[str, Tensor]:
        """All parameters by canonical name."""
        if self.trainable:
            return self.tensors()
        if self._changed is not None:
            return self._changed
        return self.adapter.tensors if self.source is None else Adapter.load(self.source).tensors

    def bring(self) -> None:
        """Have its ops on the device, from its tensors where they were put away."""
        if not self.trainable and self._packed is None and self._lowered is None:
            self._keep(self._exact(self._all()))

    # Tensors made in inference mode could not take part in a later pass with gradients.

    def _keep(self, ops: Ops) -> None:
        """Hold ops in the backbone's precision: as one row of numbers where they can be in a slab."""
        with torch.inference_mode(False), torch.no_grad():
            if self.routed:
                self._packed = Packed.of(with_joint_shrinks(ops)).to_row(self._backbone.dtype, self._backbone.device)
                self._lowered, self.layout = None, self._packed.layout
            else:
                self._lowered = with_joint_shrinks(self._cast(ops))

    def _exact(self, tensors: Mapping[str, Tensor]) -> Ops:
        with torch.inference_mode(False), torch.no_grad():
            device = self._backbone.device
            return self._lower({n: t.to(device) for n, t in tensors.items()}, training=False)

    def _lower(self, tensors: Mapping[str, Tensor], *, training: bool) -> Ops:
        method, head = self.adapter.method, self.adapter.head
        ops = lower(self._backbone, method, head, tensors, training=training, sites=self._sites)
        return ops if training else {site: [op.at_rest() for op in acting] for site, acting in ops.items()}

    def _cast(self, ops: Ops) -> Ops:
        return {site: [op.to(self._backbone.dtype) for op in acting] for site, acting in ops.items()}

    def _apply(self, fn, recurse: bool = True):  # type: ignore[no-untyped-def]
        if self._packed is not None or self._lowered is not None:
            self._changed = {name: fn(tensor) for name, tensor in self._all().items()}
            self._packed = self._lowered = None
        return super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
