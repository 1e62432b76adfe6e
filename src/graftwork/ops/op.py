"""The interface of an op: tensors, and how they change what runs at a site."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Protocol, runtime_checkable

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor

from graftwork.backbones import SiteKind, Sites
from graftwork.errors import SiteError
from graftwork.ops.routing import Route
from graftwork.ops.shared import Shared


@runtime_checkable
class Copy(Protocol):
    """Copies a tensor: as it is, or so that its transpose is contiguous."""

    def __call__(self, tensor: Tensor, *, transposed: bool = False) -> Tensor: ...


Forward = Callable[..., Any]
"""What a site computes: the frozen module's call, or that with ops around it."""


@runtime_checkable
class Place(Protocol):
    """What an op may know of where it runs: the frozen module, whether training is on, and a memory that lasts for the
    pass, in which one op leaves what another one needs.
    """

    module: nn.Module
    training: bool

    @property
    def memory(self) -> dict[str, Any]: ...


@dataclass(frozen=True, kw_only=True)
class Op(ABC):
    """Tensors that act at a site. An op decorates the site's forward; it knows no method and no model family.

    Attributes:
        kinds: the kinds of site where it can act.
        unmergeable: why it cannot be put into a module's weights; empty when it can.
        replaces: whether it computes the frozen module's part anew instead of calling it; such an op stands innermost,
            and there can be only one.
        routed: whether it takes slabs, so that each row of a batch can have its own.
    """

    kinds: ClassVar[frozenset[SiteKind]]
    replaces: ClassVar[bool] = False
    routed: ClassVar[bool] = True
    unmergeable: ClassVar[str] = ""

    @abstractmethod
    def around(self, forward: Forward, place: Place) -> Forward:
        """The site's forward with this op applied to it."""

    def into(self, frozen: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The module's parameters with this op in them, so that the module alone computes what op and module do.

        Args:
            frozen: the parameters at the site as linear maps and norms have them: weight (out, in), bias (out).

        Raises:
            SiteError: no parameters can do what this op does.
        """
        raise SiteError(f"{type(self).__name__} cannot be merged into weights: {self.unmergeable}")

    def to(self, dtype: torch.dtype) -> "Op":
        """The same op with its floating-point tensors in another precision; gradients flow through the cast."""
        own = self.mapped(lambda tensor: tensor.to(dtype) if tensor.is_floating_point() else tensor)
        return own.with_shared(lambda shared: shared.to(dtype))

    def for_inference(self) -> "Op":
        """The same op as it acts without training."""
        return self

    # Slabs: tensors with a leading dimension of slots, one a slot.

    def mapped(self, change: Callable[[Tensor], Tensor]) -> "Op":
        """The same op with each of its tensors changed, those of an op that it holds included."""
        return replace(self, **{name: change(tensor) for name, tensor in self.tensors().items()})

    def tensors(self) -> dict[str, Tensor]:
        """Its own tensors by field."""
        return {name: value for name, value in vars(self).items() if isinstance(value, Tensor)}

    def shared(self) -> list[Shared]:
        """Those of its tensors that others have as well, and that are in no slab."""
        return []

    def with_shared(self, change: Callable[[Shared], Shared]) -> "Op":
        """The same op with each of its shared tensors changed."""
        return self

    def numbers(self) -> list[Tensor]:
        """All tensors that it needs to run."""
        return [*self.tensors().values(), *(shared.tensor for shared in self.shared())]

    def alike(self) -> Hashable:
        """What ops must have in common to share a slab: all but the numbers in their tensors, and their sizes."""
        own = vars(self).items()
        return (type(self), *((name, "tensor" if isinstance(value, Tensor) else value) for name, value in own))

    def slab(self, slots: int) -> "Op":
        """The slab of this op, whose tensors have the dimension of slots already."""
        return self

    def spread(self, route: Route) -> "Op":
        """This slab as the rows of a batch need it: with a slot for each row, or for groups of equal size. An op that
        has matrices leaves them where the rows stand in blocks, and keeps the blocks.
        """
        return self.mapped(route.spread)

    def laid_out(self, copy: "Copy") -> "Op":
        """This slab with a copy of its tensors that lies in memory as its products read it fastest."""
        return self.mapped(copy)

    def neutral(self, frozen: Mapping[str, Tensor]) -> "Op":
        """A slab of one slot that changes nothing, to be joined to this slab.

        Args:
            frozen: the parameters at the site as linear maps and norms have them.
        """
        return self.mapped(lambda tensor: torch.zeros_like(tensor[:1]))

    def joined(self, parts: Sequence["Op"]) -> "Op":
        """One slab of the slots of several, of which this is the first; what is smaller is padded with zeros."""
        own = {name: [getattr(part, name) for part in parts] for name in self.tensors()}
        return replace(self, **{name: join_slabs(tensors) for name, tensors in own.items()})


Ops = Mapping[str, Sequence[Op]]
"""Ops by the name of the site where they act."""


def check(ops: Ops, sites: Sites) -> None:
    """Refuse ops that cannot act where they are to act.

    Raises:
        SiteError: the backbone has no such site; an op acts at no site of its kind; or two ops replace what one site
            computes.
    """
    for name, acting in ops.items():
        site = sites[name]
        for op in acting:
            if site.kind not in op.kinds:
                raise SiteError(
                    f"{type(op).__name__} cannot act at site {name!r}, which is of kind {site.kind}",
                    expected=f"a site of kind {' or '.join(sorted(op.kinds))}",
                )
        replacing = [type(op).__name__ for op in acting if op.replaces]
        if len(replacing) > 1:
            raise SiteError(f"{' and '.join(replacing)} both replace what site {name!r} computes; only one can")


def ordered(ops: Ops) -> Ops:
    """The ops of each site with the one that replaces its computation first, so that it stands innermost."""
    return {name: sorted(acting, key=lambda op: not op.replaces) for name, acting in ops.items()}


def join_slabs(slabs: Sequence[Tensor]) -> Tensor:
    """Slabs one after the other, each padded at the end of each dimension to the largest of them."""
    shape = [max(sizes) for sizes in zip(*(slab.shape[1:] for slab in slabs), strict=True)]
    return torch.cat([_padded(slab, shape) for slab in slabs])


def _padded(slab: Tensor, shape: Sequence[int]) -> Tensor:
    room = [(0, size - own) for own, size in zip(slab.shape[1:], shape, strict=True)]
    if not any(more for _, more in room):
        return slab
    return F.pad(slab, [n for pair in reversed(room) for n in pair])
