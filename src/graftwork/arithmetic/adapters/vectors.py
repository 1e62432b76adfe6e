"""Vectors of which each tensor is made when it is asked for: of what lies on disk, no more than one is in memory."""

from collections.abc import Callable, Iterator, Mapping, Sequence

import torch
from torch import Tensor

from graftwork.adapters import Adapter
from graftwork.arithmetic.adapters.differences import sites_of_full, weights_of
from graftwork.backbones import Backbone
from graftwork.methods import FullFineTuning, Method

Vector = Mapping[str, Tensor]
"""Tensors by name, with which people calculate."""


class Computed(Mapping[str, Tensor]):
    """Tensors by name, made anew whenever one is asked for.

    Args:
        names: all of them, in order.
        make: makes one by its name.
    """

    def __init__(self, names: Sequence[str], make: Callable[[str], Tensor]) -> None:
        self._names, self._make = dict.fromkeys(names), make

    def __getitem__(self, name: str) -> Tensor:
        if name not in self._names:
            raise KeyError(name)
        return self._make(name)

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)

    def __contains__(self, name: object) -> bool:
        return name in self._names


def nothing(shape: Sequence[int]) -> Tensor:
    """Zeros of a shape, which take no memory."""
    return torch.zeros(()).expand(*shape)


def is_full(method: Method) -> bool:
    """Whether an adapter's tensors are differences to weights as they stand."""
    return isinstance(method, FullFineTuning) and method.random_subset is None


def changes_of(adapter: Adapter, backbone: Backbone) -> Vector:
    """What an adapter adds to the backbone's weights, by canonical name, less what is zero.

    Of full fine-tuning they are views of the adapter's own tensors: where those are mapped from a file, nothing is read
    into memory.

    Args:
        adapter: of any method that can be merged into weights.
        backbone: the adapter's.

    Raises:
        SiteError, AdapterError: as `weights_of`.
    """
    if not is_full(adapter.method):
        return weights_of(adapter, backbone)
    found: dict[str, Tensor] = {}
    for site in (site for name, site in sites_of_full(backbone, [adapter.head]).items() if site.owner == name):
        for parameter in site.parameters:
            held = adapter.tensors.get(f"{site.name}.{parameter}")
            if held is None or not bool(held.any()):
                continue
            for place in backbone.weights.within(site.path):
                if place.parameter == parameter and not any(tied in found for tied in place.tied):
                    found[place.name] = place.of(held)
    return found
