"""Tensors of which each of several processes holds a part, and how the whole of one is had."""

from collections.abc import Callable, Iterator, Mapping

import torch
from torch import Tensor


class GatheredParameters(Mapping[str, Tensor]):
    """Parameters of which each process holds a part: one that is asked for is gathered, by all processes together.

    Args:
        own: gives, by name, what makes the canonical tensor of a whole one, and what is held.
    """

    def __init__(self, own: Mapping[str, tuple[Callable[[Tensor], Tensor], Tensor]]) -> None:
        self._own = own

    def __getitem__(self, name: str) -> Tensor:
        canonical, held = self._own[name]
        return canonical(whole(held))

    def __iter__(self) -> Iterator[str]:
        return iter(self._own)

    def __len__(self) -> int:
        return len(self._own)


def is_part(tensor: Tensor) -> bool:
    """Whether a process holds but a part of a tensor."""
    from torch.distributed.tensor import DTensor

    return isinstance(tensor, DTensor)


def whole(tensor: Tensor) -> Tensor:
    """The tensor itself, or the whole of one that is held in parts, which all processes then have to ask for."""
    from torch.distributed.tensor import DTensor

    if not isinstance(tensor, DTensor):
        return tensor
    # Not in inference mode, whose tensors could not take part in a later pass with gradients.
    with torch.inference_mode(False), torch.no_grad():
        found: Tensor = tensor.full_tensor()
    return found
