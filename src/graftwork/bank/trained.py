"""An adapter that is being trained: its parameters are a module's, and gradients reach them."""

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from typing import Any, cast, final

import torch
import torch.nn as nn
from torch import Tensor

from graftwork.adapters import Adapter
from graftwork.adapters.contents import misfits
from graftwork.adapters.declared import refuse_nothing_to_train
from graftwork.backbones import Backbone
from graftwork.bank.randomness import RandomSource
from graftwork.bank.resident import Resident
from graftwork.errors import AdapterError
from graftwork.heads.objectives import ConsistencyLoss, Objective, PenalisedLoss, Penalty, supervised_loss
from graftwork.methods.parameters import ParameterTree
from graftwork.ops.op import Ops
from graftwork.ops.shrinks import with_joint_shrinks
from graftwork.ops.slabs import Packed


@final
class Trained(nn.Module, Resident):
    """An adapter in training: it is lowered anew in each forward pass.

    Its parameters stay float32, in whatever precision the rest of the model is held.

    Attributes:
        parameters_by_name: its parameters, as a module.
        objective: what is minimised; by default as its method has it.
        random_source: where its random numbers in training come from; None: from torch's source, as it stands.
    """

    trainable = True

    def __init__(self, adapter: Adapter, backbone: Backbone) -> None:
        super().__init__()
        refuse_nothing_to_train(adapter.method, adapter.kind, backbone, adapter.num_parameters)
        self.adapter = replace(adapter, tensors={})
        self.backbone = backbone
        self.objective: Objective = supervised_loss
        self.learn(supervised_loss)
        self.random_source: RandomSource | None = None
        own = {name: tensor.detach().clone().to(backbone.device) for name, tensor in adapter.tensors.items()}
        self.parameters_by_name = ParameterTree(own, adapter.fixed)
        if adapter.method.penalty(self.tensors()) is not None:
            self.objective = PenalisedLoss(self.objective, cast(Penalty, adapter.method.penalty))
        with torch.inference_mode(False), torch.no_grad():
            ops = self._lower(self.tensors(), training=False)
        self._look_at(ops)
        self.layout = Packed.of(with_joint_shrinks(ops)).layout if self.routed else None

    def learn(self, first: Objective) -> None:
        """Have the first pass learn by another loss than the head's own. What its method adds stays."""
        passes = self.adapter.method.passes
        self.objective = ConsistencyLoss(passes, first) if passes > 1 else first

    @property
    def nbytes(self) -> int:
        return sum(tensor.nbytes for tensor in self.tensors().values())

    @property
    def loaded(self) -> bool:
        return True

    def tensors(self) -> Mapping[str, Tensor]:
        """Its parameters by canonical name, those of the head among them."""
        return self.parameters_by_name.by_name()

    def head(self) -> Mapping[str, Tensor]:
        return self.tensors()

    def ops(self, *, training: bool = False) -> Ops:
        with self.drawing():
            return with_joint_shrinks(self._in_precision(self._lower(self.tensors(), training=training)))

    def packed(self, *, training: bool = False) -> Packed:
        with self.drawing():
            return Packed.of(with_joint_shrinks(self._lower(self.tensors(), training=training)))

    def drawing(self) -> AbstractContextManager[None]:
        return nullcontext() if self.random_source is None else self.random_source.own()

    def snapshot(self) -> Adapter:
        now = {name: tensor.detach().cpu().clone() for name, tensor in self.tensors().items()}
        return replace(self.adapter, tensors=now)

    def assign(self, tensors: Mapping[str, Tensor]) -> None:
        """Overwrite the parameters with tensors of the same names and shapes.

        Raises:
            AdapterError: other names or shapes.
        """
        own = self.tensors()
        wrong = misfits({n: t.shape for n, t in own.items()}, {n: t.shape for n, t in tensors.items()})
        if wrong:
            raise AdapterError(f"the adapter's tensors do not match: it {wrong[0]}")
        with torch.no_grad():
            for name, tensor in own.items():
                tensor.copy_(tensors[name])

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
        def moved(tensor: Tensor) -> Tensor:
            found = fn(tensor)
            return found if found.dtype == tensor.dtype else tensor.to(found.device)

        return super()._apply(moved, recurse)  # type: ignore[no-untyped-call]
