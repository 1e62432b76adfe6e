"""Tensor trees: what ops are made of, and how their tensors stand in slabs.

A slab holds the same tensors of several adapters, with a leading dimension of slots, one a slot.
"""

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol, TypeVar, cast, runtime_checkable

import torch
import torch.nn.functional as F
from torch import Tensor

from graftwork.ops.routing import Route
from graftwork.ops.shared import Shared


@runtime_checkable
class Copy(Protocol):
    """Copies a tensor: as it is, or so that its transpose is contiguous."""

    def __call__(self, tensor: Tensor, *, transposed: bool = False) -> Tensor: ...


Change = Callable[[Tensor], Tensor]

Tree = TypeVar("Tree", bound="TensorTree")


@dataclass(frozen=True, kw_only=True)
class TensorTree:
    """A frozen dataclass whose fields are tensors, shared tensors, other trees, tuples of trees, and settings."""

    def tensors(self) -> dict[str, Tensor]:
        """Its own tensors by field; those of the trees within it are theirs."""
        return {name: value for name, value in vars(self).items() if isinstance(value, Tensor)}

    def trees(self) -> dict[str, tuple["TensorTree", ...]]:
        """The trees within it by field; a tree that stands alone is a tuple of one."""
        return {name: _trees_in(value) for name, value in vars(self).items() if _trees_in(value)}

    def mapped(self: Tree, change: Change) -> Tree:
        """The same tree with each of its tensors changed, those of the trees within it included."""
        return self._with(change, lambda tree: tree.mapped(change))

    def shared(self) -> list[Shared]:
        """Those of its tensors that others have as well, and that are in no slab."""
        return self._own_shared() + [
            shared for own in self.trees().values() for tree in own for shared in tree.shared()
        ]

    def with_shared(self: Tree, change: Callable[[Shared], Shared]) -> Tree:
        """The same tree with each of its shared tensors changed."""
        own = {name: change(value) for name, value in vars(self).items() if isinstance(value, Shared)}
        tree = self._with(None, lambda tree: tree.with_shared(change))
        return replace(tree, **own) if own else tree

    def numbers(self) -> list[Tensor]:
        """All tensors that it needs to run."""
        own = [*self.tensors().values(), *(shared.tensor for shared in self._own_shared())]
        return own + [number for trees in self.trees().values() for tree in trees for number in tree.numbers()]

    def for_inference(self: Tree) -> Tree:
        """The same tree as it acts without training."""
        return self._with(None, lambda tree: tree.for_inference())

    def alike(self) -> Hashable:
        """What trees must have in common to share a slab: all but the numbers in their tensors, and their sizes."""
        return (type(self), *((name, _alike(value)) for name, value in vars(self).items()))

    def slab(self: Tree, slots: int) -> Tree:
        """The slab of this tree, whose tensors have the dimension of slots already."""
        return self._with(None, lambda tree: tree.slab(slots))

    def spread(self: Tree, route: Route) -> Tree:
        """This slab as the rows of a batch need it: with a slot for each row, or for groups of equal size. A tree that
        has matrices leaves them where the rows stand in blocks, and keeps the blocks.
        """
        return self._with(route.spread, lambda tree: tree.spread(route))

    def laid_out(self: Tree, copy: Copy) -> Tree:
        """This slab with a copy of its tensors that lies in memory as its products read it fastest."""
        return self._with(copy, lambda tree: tree.laid_out(copy))

    def neutral(self: Tree, frozen: Mapping[str, Tensor]) -> Tree:
        """A slab of one slot that changes nothing, to be joined to this slab.

        Args:
            frozen: the parameters at the site as linear maps and norms have them.
        """
        return self._with(lambda tensor: torch.zeros_like(tensor[:1]), lambda tree: tree.neutral(frozen))

    def joined(self: Tree, parts: Sequence[Tree]) -> Tree:
        """One slab of the slots of several, of which this is the first; what is smaller is padded with zeros."""
        changes: dict[str, Any] = {name: join_slabs([getattr(part, name) for part in parts]) for name in self.tensors()}
        for name, own in self.trees().items():
            others = [part.trees()[name] for part in parts]
            trees = tuple(first.joined(same) for first, *same in zip(own, *others, strict=True))
            changes[name] = trees if isinstance(getattr(self, name), tuple) else trees[0]
        return replace(self, **changes)

    def _own_shared(self) -> list[Shared]:
        return [value for value in vars(self).values() if isinstance(value, Shared)]

    def _with(
        self: Tree, change: Callable[[Tensor], Tensor] | None, within: Callable[["TensorTree"], "TensorTree"]
    ) -> Tree:
        """The same tree with its own tensors changed, where a way is given, and the trees within in their own way."""
        changes: dict[str, Any] = {}
        for name, value in vars(self).items():
            if isinstance(value, Tensor):
                if change is not None:
                    changes[name] = change(value)
            elif isinstance(value, TensorTree):
                changes[name] = within(value)
            elif _trees_in(value):
                changes[name] = tuple(within(tree) for tree in value)
        return replace(self, **changes) if changes else self


def _trees_in(value: object) -> tuple[TensorTree, ...]:
    if isinstance(value, TensorTree):
        return (value,)
    if isinstance(value, tuple) and value and all(isinstance(part, TensorTree) for part in value):
        return cast(tuple[TensorTree, ...], value)
    return ()


def _alike(value: object) -> Hashable:
    if isinstance(value, Tensor):
        return "tensor"
    if isinstance(value, TensorTree):
        return value.alike()
    trees = _trees_in(value)
    return tuple(tree.alike() for tree in trees) if trees else value


def join_slabs(slabs: Sequence[Tensor]) -> Tensor:
    """Slabs one after the other, each padded at the end of each dimension to the largest of them."""
    shape = [max(sizes) for sizes in zip(*(slab.shape[1:] for slab in slabs), strict=True)]
    return torch.cat([_padded(slab, shape) for slab in slabs])


def _padded(slab: Tensor, shape: Sequence[int]) -> Tensor:
    room = [(0, size - own) for own, size in zip(slab.shape[1:], shape, strict=True)]
    if not any(more for _, more in room):
        return slab
    return F.pad(slab, [n for pair in reversed(room) for n in pair])
