"""The interface of an op: tensors, and how they change what runs at a site."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import Any, ClassVar, Protocol, runtime_checkable

import torch
import torch.nn as nn
from torch import Tensor

from graftwork.backbones import SiteKind
from graftwork.ops.routing import Route

Forward = Callable[..., Any]
"""What a site computes: the frozen module's call, or that with ops around it."""


@runtime_checkable
class Place(Protocol):
    """What an op may know of where it runs: the frozen module, whether training is on, and the batch's route."""

    inner: nn.Module
    training: bool

    @property
    def route(self) -> Route: ...


@dataclass(frozen=True, kw_only=True)
class Op(ABC):
    """Tensors that act at a site. An op decorates the site's forward; it knows no method and no model family.

    Attributes:
        kinds: the kinds of site where it can act.
        replaces: whether it computes the frozen module's part anew instead of calling it; such an op stands innermost,
            and there can be only one.
    """

    kinds: ClassVar[frozenset[SiteKind]]
    replaces: ClassVar[bool] = False

    @abstractmethod
    def around(self, forward: Forward, place: Place) -> Forward:
        """The site's forward with this op applied to it."""

    def to(self, dtype: torch.dtype) -> "Op":
        """The same op with its floating-point tensors in another precision; gradients flow through the cast."""
        cast = {f.name: getattr(self, f.name) for f in fields(self)}
        cast = {n: v.to(dtype) for n, v in cast.items() if isinstance(v, Tensor) and v.is_floating_point()}
        return replace(self, **cast)
