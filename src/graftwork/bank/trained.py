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

    Args:
        shares: another one, whose parameters are this one's too, but for those that each task has of its own.

    Attributes:
        parameters_by_name: its parameters, as a module.
        objective: what is minimised; by default as its method has it.
        aid: what is trained beside it for the objective's sake, and is no part of it; None: nothing.
        borrowed: names of the parameters that are another one's too, and that count as its bytes.
        random_source: where its random numbers in training come from; None: from torch's source, as it stands.
    """

    trainable = True

    def __init__(self, adapter: Adapter, backbone: Backbone, *, shares: "Trained | None" = None) -> None:
        super().__init__()
        refuse_nothing_to_train(adapter.method, adapter.kind, backbone, adapter.num_parameters)
        self.adapter = replace(adapter, tensors={})
        self.backbone = backbone
        self.random_source: RandomSource | None = None
        own = {name: tensor.detach().clone().to(backbone.device) for name, tensor in adapter.tensors.items()}
        common = {} if shares is None else shares.common(adapter)
        self.parameters_by_name = ParameterTree({**own, **common}, adapter.fixed)
        self.borrowed = frozenset(common)
        # Outside the module's attributes: else it would be a part of this one.
        alike = shares is not None and len(common) == sum(not name.startswith("head.") for name in own)
        self.__dict__["_acts_as"] = shares.acts_as if shares is not None and alike else self
        self.aid: nn.Module | None
        self.learn(supervised_loss)
        with torch.inference_mode(False), torch.no_grad():
            ops = self._lower(self.tensors(), training=False)
        self._look_at(ops)
        self.layout = Packed.of(with_joint_shrinks(ops)).layout if self.routed else None

    def learn(self, first: Objective, aid: nn.Module | None = None) -> None:
        """Have the first pass learn by another loss than the head's own. What its method adds stays.

        Args:
            first: the loss.
            aid: what it needs that is trained too; its parameters are then among those of this module.
        """
        self.aid = None if aid is None else aid.to(self.backbone.device)
        method = self.adapter.method
        objective = ConsistencyLoss(method.passes, first) if method.passes > 1 else first
        penalised = method.penalty(self.tensors()) is not None
        self.objective: Objective = PenalisedLoss(objective, cast(Penalty, method.penalty)) if penalised else objective

    @property
    def acts_as(self) -> Resident:
        found: Resident = self.__dict__["_acts_as"]
        return found

    def common(self, adapter: Adapter) -> dict[str, Tensor]:
        """Its parameters that an adapter of another task has as well, by name.

        Raises:
            AdapterError: the adapter's method or its sites are others.
        """
        own = {n for n, p in adapter.declared(self.backbone).items() if not p.of_each_task}
        mine = {n for n, p in self.adapter.declared(self.backbone).items() if not p.of_each_task}
        found = {name: tensor for name, tensor in self.tensors().items() if name in mine}
        shapes = {name: tensor.shape for name, tensor in adapter.tensors.items() if name in own}
        wrong = misfits({name: tensor.shape for name, tensor in found.items()}, shapes)
        if wrong or adapter.method != self.adapter.method or adapter.sites != self.adapter.sites:
            what = wrong[0] if wrong else "has another method or acts at other sites"
            raise AdapterError(
                f"the adapter of task {adapter.task.name!r} cannot share parameters with that of task "
                f"{self.adapter.task.name!r}: it {what}",
                expected="one method, and heads that read the same layers of the backbone",
            )
        return found

    @property
    def nbytes(self) -> int:
        return sum(tensor.nbytes for name, tensor in self.tensors().items() if name not in self.borrowed)

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
