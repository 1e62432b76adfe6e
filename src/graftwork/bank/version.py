"""A version: a finished adapter as it was when it was put under a name. It never changes."""

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from threading import Lock
from typing import final

import torch
from torch import Tensor

from graftwork.adapters import Adapter
from graftwork.backbones import Backbone
from graftwork.bank.resident import Resident
from graftwork.bank.stored import Stored
from graftwork.heads.objectives import supervised_loss
from graftwork.ops.op import Ops
from graftwork.ops.shared import Shared
from graftwork.ops.shrinks import with_joint_shrinks
from graftwork.ops.slabs import Packed


@dataclass(frozen=True)
class _Loaded:
    """What of a version is on the device.

    Attributes:
        head: the parameters of its head, float32.
        ops: in the backbone's precision.
        packed: the same as one row of numbers, where it can share a pass.
    """

    head: Mapping[str, Tensor]
    ops: Ops
    packed: Packed | None

    def size(self, precision: torch.dtype) -> tuple[int, int]:
        """The bytes that are the same in any precision of the backbone, and how many numbers are in its precision.

        Args:
            precision: the backbone's.
        """
        every = [op for acting in self.ops.values() for op in acting]
        common = {id(shared.tensor) for op in every for shared in op.shared()}
        own = {id(tensor): tensor for op in every for tensor in op.numbers() if id(tensor) not in common}
        numbers = own.values() if self.packed is None else self.packed.tensors
        fixed = [*self.head.values(), *(tensor for tensor in numbers if tensor.dtype != precision)]
        rounded = sum(tensor.numel() for tensor in numbers if tensor.dtype == precision)
        return sum(tensor.nbytes for tensor in fixed), rounded

    def shared(self) -> dict[str, int]:
        """How many numbers each tensor has that others have as well."""
        every = [own for acting in self.ops.values() for op in acting for own in op.shared()]
        return {own.key[0]: own.tensor.numel() for own in every}


def _kept(adapter: Adapter, *, owned: bool) -> dict[str, Tensor]:
    """An adapter's tensors while it is resident, which nobody else can change. What its method never trains, such as
    VeRA's matrices, is there once for all adapters that have the same."""
    cpu = torch.device("cpu")
    return {
        name: Shared(tensor.detach()).pooled(tensor.dtype, cpu).tensor
        if name in adapter.fixed
        else (tensor if owned else tensor.detach().clone())
        for name, tensor in adapter.tensors.items()
    }


@final
class Version(Resident):
    """A finished adapter on one backbone.

    What runs is lowered once from its tensors, which are kept as they were given: in memory, or on disk. It may be
    unloaded from the device, and is loaded again by its next use; answers are the same either way. Whoever holds a
    version can use it, whatever its name stands for by now.

    Args:
        owned: nobody else can change the adapter's tensors, so that they need not be copied.
        folder: where its tensors are kept on disk; None keeps them in memory.
    """

    trainable = False

    def __init__(
        self, adapter: Adapter, backbone: Backbone, *, owned: bool = False, folder: Path | None = None
    ) -> None:
        self.objective = supervised_loss
        self.adapter = replace(adapter, tensors={})
        self.backbone = backbone
        self._stored = Stored(adapter.tensors if folder is not None else _kept(adapter, owned=owned), folder)
        # Of a file, other tensors than the given ones.
        tensors = self.tensors()
        ops = self._exact(tensors)
        self._look_at(ops)
        self.layout = None
        self._loading = Lock()
        loaded = self._put_on_device(tensors, ops)
        self._size = loaded.size(backbone.dtype)
        self._shared = loaded.shared()
        # Within a budget, it is loaded when there is room for it.
        self._loaded: _Loaded | None = loaded if folder is None else None

    @property
    def nbytes(self) -> int:
        fixed, rounded = self._size
        return fixed + rounded * self.backbone.dtype.itemsize

    @property
    def shared(self) -> Mapping[str, int]:
        return {key: numbers * self.backbone.dtype.itemsize for key, numbers in self._shared.items()}

    @property
    def loaded(self) -> bool:
        return self._loaded is not None

    def load(self) -> None:
        """Have it on the device."""
        self._on_device()

    def unload(self) -> None:
        """Free the device of it, until its next use."""
        self._loaded = None

    def head(self) -> Mapping[str, Tensor]:
        return self._on_device().head

    def ops(self, *, training: bool = False) -> Ops:
        return self._on_device().ops

    def packed(self, *, training: bool = False) -> Packed:
        packed = self._on_device().packed
        assert packed is not None
        return packed

    def exact_ops(self) -> Ops:
        """The ops by site before they are rounded to the backbone's precision."""
        return self._exact(self.tensors())

    def drawing(self) -> AbstractContextManager[None]:
        return nullcontext()

    def tensors(self) -> Mapping[str, Tensor]:
        """The adapter's tensors, on the CPU; of one that is on disk, they are read."""
        return self._stored.tensors()

    def snapshot(self) -> Adapter:
        return replace(self.adapter, tensors={n: t.clone() for n, t in self.tensors().items()})

    def _on_device(self) -> _Loaded:
        loaded = self._loaded
        if loaded is None:
            with self._loading:
                loaded = self._loaded
                if loaded is None:
                    tensors = self.tensors()
                    self._loaded = loaded = self._put_on_device(tensors, self._exact(tensors))
        return loaded

    # Tensors made in inference mode could not take part in a later pass with gradients.

    def _exact(self, tensors: Mapping[str, Tensor]) -> Ops:
        with torch.inference_mode(False), torch.no_grad():
            return self._lower(tensors, training=False)

    def _put_on_device(self, tensors: Mapping[str, Tensor], exact: Ops) -> _Loaded:
        with torch.inference_mode(False), torch.no_grad():
            device = self.backbone.device
            head = {name: t.to(device, copy=True) for name, t in tensors.items() if name.startswith("head.")}
            ops = with_joint_shrinks(exact)
            if not self.routed:
                pooled = {
                    site: [op.with_shared(lambda own: own.pooled(self.backbone.dtype, device)) for op in acting]
                    for site, acting in ops.items()
                }
                return _Loaded(head, self._in_precision(pooled), None)
            packed = Packed.of(ops).to_row(self.backbone.dtype, device)
            self.layout = packed.layout
            return _Loaded(head, packed.ops(), packed)
