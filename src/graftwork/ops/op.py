"""The interface of an op: tensors, and how they change what runs at a site."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol, runtime_checkable

import torch
import torch.nn as nn
from torch import Tensor

from graftwork.backbones import SiteKind, Sites
from graftwork.errors import SiteError
from graftwork.ops.tensortree import TensorTree, Tree

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
class Op(TensorTree, ABC):
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

    def to(self: Tree, dtype: torch.dtype) -> Tree:
        """The same op with its floating-point tensors in another precision; gradients flow through the cast."""
        own = self.mapped(lambda tensor: tensor.to(dtype) if tensor.is_floating_point() else tensor)
        return own.with_shared(lambda shared: shared.to(dtype))


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
