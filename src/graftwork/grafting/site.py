"""Site modules: they run a backbone's module with the ops of its sites around it."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, final

import torch
import torch.nn as nn
from torch import Tensor

from graftwork.backbones import Site
from graftwork.errors import SiteError
from graftwork.grafting.wrapper import ModuleWrapper
from graftwork.ops import Forward, Op, Place

Acting = tuple[tuple[tuple[int, int] | None, tuple[Op, ...]], ...]
"""What acts at a module: the columns of each of its sites, where they are not all, and the ops there."""


@final
class SiteModule(ModuleWrapper, Place):
    """Runs the module that it holds with the ops of its sites around it, in the precision of what enters.

    Attributes:
        sites: those at the module's path.
        acting: what acts there in the pass that runs.
        module: what runs in the pass: the backbone's own module, or one with other weights.
        own: the backbone's own module. What is held outside of passes may be one with other weights.
        training: whether the pass is one of training.

    Args:
        memory: gives the memory of the pass that runs.
    """

    sites: tuple[Site, ...]
    acting: Acting
    module: nn.Module
    own: nn.Module

    def __init__(self, inner: nn.Module, sites: Sequence[Site], memory: Callable[[], dict[str, Any]]) -> None:
        super().__init__(inner)
        self.__dict__.update(sites=tuple(sites), acting=(), module=inner, own=inner, _memory=memory, training=False)

    def run_with(self, module: nn.Module, acting: Acting) -> None:
        """Run this module with these ops around it, from now on."""
        # By the dictionary: a module that is set as an attribute would become a child.
        self.__dict__.update(module=module, acting=acting)

    @property
    def memory(self) -> dict[str, Any]:
        """What ops of the pass left for later ones."""
        found: dict[str, Any] = self._memory()
        return found

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "SiteModule":
        super()._apply(fn, recurse)
        if self.own is not self.inner:
            self.own._apply(fn, recurse)  # type: ignore[no-untyped-call]
        return self

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        if self.own is not self.inner:
            raise SiteError(
                "weights cannot be loaded while an adapter is merged into them",
                expected="unmerge() first",
            )
        super()._load_from_state_dict(*args, **kwargs)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        forward: Any = self.module
        if not self.acting:
            return forward(*args, **kwargs)
        dtype = _precision((*args, *kwargs.values()))
        parts = []
        for columns, ops in self.acting:
            suited = [_suited(op, dtype) for op in ops]
            if columns is not None:
                parts.append((columns, suited))
                continue
            for op in suited:
                forward = op.around(forward, self)
        if parts:
            forward = self._around_parts(forward, parts)
        return forward(*args, **kwargs)

    def _around_parts(self, forward: Forward, parts: Sequence[tuple[tuple[int, int], Sequence[Op]]]) -> Forward:
        """A fused product, with ops around the linear maps that are its columns."""

        def parted(x: Tensor) -> Tensor:
            whole: Tensor = forward(x)
            pieces, done = [], 0
            for (start, end), acting in sorted(parts, key=lambda part: part[0]):
                piece: Forward = partial(_columns, whole, start, end)
                for op in acting:
                    piece = op.around(piece, self)
                pieces += [whole[..., done:start], piece(x)]
                done = end
            return torch.cat([*pieces, whole[..., done:]], dim=-1)

        return parted


def _columns(whole: Tensor, start: int, end: int, x: Tensor) -> Tensor:
    return whole[..., start:end]


def _precision(inputs: Sequence[Any]) -> torch.dtype | None:
    """The precision of what enters; None where that has none, as tokens have not."""
    return next((x.dtype for x in inputs if isinstance(x, Tensor) and x.is_floating_point()), None)


def _suited(op: Op, dtype: torch.dtype | None) -> Op:
    """An op in the precision that arrives. A backbone may hold a part of its weights in another one than the rest, as
    T5 in float16 does with the output of its feed-forwards. Under autocast it is torch that chooses, and what replaces
    a module's own computation is in the module's precision."""
    if dtype is None or op.replaces or torch.is_autocast_enabled() or torch.is_autocast_enabled("cpu"):
        return op
    same = all(t.dtype == dtype for t in op.numbers() if t.is_floating_point())
    return op if same else op.to(dtype)
