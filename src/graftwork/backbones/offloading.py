"""Weights that accelerate keeps on disk or on another device and loads for each call of their module."""

from collections.abc import Callable, Iterator, Mapping

import torch.nn as nn
from torch import Tensor


def offloaded(module: nn.Module) -> bool:
    """Whether the weights of a module are elsewhere until it is called."""
    if not hasattr(module, "_hf_hook"):
        return False
    from accelerate.utils import has_offloaded_params  # slow to import, and rarely needed

    return bool(has_offloaded_params(module))


class OffloadedParameters(Mapping[str, Tensor]):
    """Parameters of a module whose weights are offloaded, as copies, which are read when they are first asked for.

    Args:
        own: gives them by name, whether or not they are here.
    """

    def __init__(self, module: nn.Module, own: Callable[[], Mapping[str, Tensor]]) -> None:
        self._module, self._own = module, own
        self._names = tuple(own())
        self._read: dict[str, Tensor] = {}

    def __getitem__(self, name: str) -> Tensor:
        if not self._read:
            from accelerate.utils import align_module_device

            with align_module_device(self._module):
                self._read = {own: tensor.detach().clone() for own, tensor in self._own().items()}
        return self._read[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)
