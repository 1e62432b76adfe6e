"""An adapter in memory on one backbone: its parameters on the device, and its ops."""

from collections.abc import Mapping
from dataclasses import replace

import torch
import torch.nn as nn
from torch import Tensor

from graftwork.adapters.adapter import Adapter, lower
from graftwork.backbones import Backbone
from graftwork.methods.parameters import ParameterTree
from graftwork.ops.graft import Ops


class Resident(nn.Module):
    """An adapter's parameters as a module.

    A trainable one is lowered anew at each forward pass, so that gradients reach its parameters; any other one once.
    """

    def __init__(self, adapter: Adapter, backbone: Backbone, *, trainable: bool) -> None:
        super().__init__()
        self.adapter = adapter
        self.trainable = trainable
        self._backbone = backbone
        self._lowered: Ops | None = None
        self.parameters_by_name = ParameterTree({n: t.clone() for n, t in adapter.tensors.items()}, adapter.fixed)
        self.parameters_by_name.requires_grad_(trainable)
        self.to(backbone.device)

    def tensors(self) -> Mapping[str, Tensor]:
        """The parameters by canonical name."""
        return self.parameters_by_name.by_name()

    def ops(self) -> Ops:
        """The ops by site, in the backbone's precision."""
        if self.trainable:
            return self._cast(self._lower(training=self.training))
        if self._lowered is None:
            self._lowered = self._cast(self.exact_ops())
        return self._lowered

    def exact_ops(self) -> Ops:
        """The ops by site as they act without training, before they are rounded to the backbone's precision."""
        # Tensors made in inference mode could not take part in a later pass with gradients.
        with torch.inference_mode(False), torch.no_grad():
            return self._lower(training=False)

    def snapshot(self) -> Adapter:
        """The adapter with the parameters as they are now."""
        return replace(self.adapter, tensors={n: t.detach().cpu().clone() for n, t in self.tensors().items()})

    def assign(self, tensors: Mapping[str, Tensor]) -> None:
        """Overwrite the parameters with tensors of the same names and shapes."""
        own = self.tensors()
        if own.keys() != tensors.keys():
            raise KeyError(f"names differ: {sorted(own.keys() ^ tensors.keys())[:5]}")
        with torch.no_grad():
            for name, tensor in own.items():
                tensor.copy_(tensors[name])
        self._lowered = None

    def _lower(self, *, training: bool) -> Ops:
        return lower(self._backbone, self.adapter.method, self.adapter.head, self.tensors(), training=training)

    def _cast(self, ops: Ops) -> Ops:
        return {site: [op.to(self._backbone.dtype) for op in acting] for site, acting in ops.items()}

    def _apply(self, fn, recurse: bool = True):  # type: ignore[no-untyped-def]
        self._lowered = None
        return super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
