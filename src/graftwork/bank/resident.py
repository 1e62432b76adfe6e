"""What a name in the bank stands for: an adapter on one backbone, as passes use it."""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from contextlib import AbstractContextManager
from functools import cached_property
from itertools import count

import torch
from torch import Tensor

from graftwork.adapters import Adapter
from graftwork.adapters.declared import lower, usable_sites
from graftwork.backbones import Backbone
from graftwork.encoding import Encoder
from graftwork.heads.objectives import Objective
from graftwork.kinds import KINDS
from graftwork.ops.op import Ops, check
from graftwork.ops.slabs import Layout, Packed, routed

_SERIAL = count()


class Resident(ABC):
    """An adapter as it runs.

    Attributes:
        adapter: all of it but its tensors.
        backbone: where it runs.
        sites: the names of those where its ops act.
        routed: whether it can share a pass with other adapters.
        objective: what is minimised in a pass of training.
        serial: counts residents as they are made.
        layout: how its numbers lie where nothing is drawn at random; None of one that cannot share a pass.
    """

    trainable: bool
    adapter: Adapter
    backbone: Backbone
    sites: tuple[str, ...]
    routed: bool
    objective: Objective
    layout: Layout | None
    serial: int

    def _look_at(self, ops: Ops) -> None:
        """Note what follows from the ops.

        Raises:
            SiteError: they cannot act where they are to act.
        """
        check(ops, self.backbone.sites)
        self.serial = next(_SERIAL)
        self.sites = tuple(ops)
        self.routed = routed(ops, self.backbone)

    @cached_property
    def encoder(self) -> Encoder:
        """How the inputs of its task are read."""
        return KINDS[self.adapter.kind].encoder(
            self.backbone, self.adapter.task, self.adapter.head, prompt_tokens=self.adapter.method.num_prompt_tokens
        )

    @property
    @abstractmethod
    def nbytes(self) -> int:
        """Of what is on the device for it when it is loaded, in bytes."""

    @property
    def acts_as(self) -> "Resident":
        """The one whose ops it has: those that have the same share a slot."""
        return self

    @property
    def shared(self) -> Mapping[str, int]:
        """Bytes of what it needs besides and has in common with others, by what tells it apart."""
        return {}

    @property
    @abstractmethod
    def loaded(self) -> bool:
        """Whether it is on the device."""

    @abstractmethod
    def head(self) -> Mapping[str, Tensor]:
        """The parameters of its head, on the device, by canonical name."""

    @abstractmethod
    def ops(self, *, training: bool = False) -> Ops:
        """The ops by site, in the backbone's precision.

        Args:
            training: whether what is random about them is drawn.
        """

    @abstractmethod
    def packed(self, *, training: bool = False) -> Packed:
        """Of one that can share a pass, the ops as numbers."""

    @abstractmethod
    def drawing(self) -> AbstractContextManager[None]:
        """Inside, what is random about it is drawn from its own source, where it has one."""

    @abstractmethod
    def snapshot(self) -> Adapter:
        """The adapter with its parameters as they are now."""

    @cached_property
    def _acting_sites(self):  # type: ignore[no-untyped-def]
        return self.adapter.method.sites(usable_sites(self.backbone, self.adapter.head))

    def _lower(self, tensors: Mapping[str, Tensor], *, training: bool) -> Ops:
        """The ops of these tensors, lowered in float32, or in the backbone's precision where that is a finer one."""
        device, precision = self.backbone.device, torch.promote_types(torch.float32, self.backbone.dtype)
        given = {name: tensor.to(device, precision) for name, tensor in tensors.items()}
        method, head = self.adapter.method, self.adapter.head
        ops = lower(self.backbone, method, head, given, training=training, sites=self._acting_sites)
        return ops if training else {site: [op.for_inference() for op in acting] for site, acting in ops.items()}

    def _in_precision(self, ops: Ops) -> Ops:
        return {site: [op.to(self.backbone.dtype) for op in acting] for site, acting in ops.items()}


def bytes_of(residents: Iterable[Resident]) -> int:
    """What adapters take on the device, with what they have in common counted once."""
    every = list(residents)
    return sum(resident.nbytes for resident in every) + shared_bytes(every)


def shared_bytes(residents: Iterable[Resident]) -> int:
    """What adapters have in common, each counted once."""
    found: dict[str, int] = {}
    for resident in residents:
        found.update(resident.shared)
    return sum(found.values())
