"""The interface of an op: tensors, and how they change what runs at a site."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace
from typing import Any, ClassVar, Protocol, runtime_checkable

import torch
import torch.nn as nn
from torch import Tensor

from graftwork.backbones import SiteKind
from graftwork.errors import SiteError
from graftwork.ops.routing import Route

Forward = Callable[..., Any]
"""What a site computes: the frozen module's call, or that with ops around it."""


@runtime_checkable
class Place(Protocol):
    """What an op may know of where it runs: the frozen module, whether training is on, the batch's route, and a memory
    that lasts for the pass, in which one op leaves what another one needs.
    """

    inner: nn.Module
    training: bool

    @property
    def route(self) -> Route: ...

    @property
    def memory(self) -> dict[str, Tensor]: ...


@dataclass(frozen=True, kw_only=True)
class Op(ABC):
    """Tensors that act at a site. An op decorates the site's forward; it knows no method and no model family.

    Attributes:
        kinds: the kinds of site where it can act.
        unmergeable: why it cannot be put into a module's weights; empty when it can.
        replaces: whether it computes the frozen module's part anew instead of calling it; such an op stands innermost,
            and there can be only one.
    """

    kinds: ClassVar[frozenset[SiteKind]]
    replaces: ClassVar[bool] = False
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
        raise SiteError(f"{type(self).__name__} cannot be put into weights: {self.unmergeable}")

    def to(self, dtype: torch.dtype) -> "Op":
        """The same op with its floating-point tensors in another precision; gradients flow through the cast."""
        cast = {f.name: getattr(self, f.name) for f in fields(self)}
        cast = {n: v.to(dtype) for n, v in cast.items() if isinstance(v, Tensor) and v.is_floating_point()}
        return replace(self, **cast)
