"""Declared parameters: what a method or head trains, by name, before any tensor exists.

From one declaration follow the counts, the initial tensors, the keys a saved adapter must have, what weight decay
spares, and the rate of each.
"""

from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn as nn
from torch import Generator, Tensor

from graftwork.backbones import Backbone, Site

Init = Callable[[Tensor, Mapping[str, Tensor], Generator], None]
"""Fills a new float32 tensor in place, given the frozen parameters at the site and the source of randomness."""

Group = Literal["adapter", "norms", "head"]


@dataclass(frozen=True, kw_only=True)
class Parameter:
    """One tensor of an adapter, declared.

    Attributes:
        shape: its shape.
        init: how it starts.
        group: under which heading it is counted.
        decay: whether weight decay acts on it (not on biases and norms).
        trained: whether it is trained. One that is not is kept with the others and counted nowhere.
        rate: its learning rate, as a multiple of the run's.
        unfreezes: the epoch, counted from 0, from which on it is trained.
        of_task: whether each task has its own where several tasks train one adapter. Parameters of heads always are.
    """

    shape: tuple[int, ...]
    init: Init
    group: Group = "adapter"
    decay: bool = True
    trained: bool = True
    rate: float = 1.0
    unfreezes: int = 0
    of_task: bool = False

    @property
    def count(self) -> int:
        return int(torch.Size(self.shape).numel())

    @property
    def of_each_task(self) -> bool:
        """Whether each of several tasks has its own."""
        return self.of_task or self.group == "head"


def zeros(tensor: Tensor, frozen: Mapping[str, Tensor], generator: Generator) -> None:
    tensor.zero_()


def ones(tensor: Tensor, frozen: Mapping[str, Tensor], generator: Generator) -> None:
    tensor.fill_(1.0)


def constant(value: float) -> Init:
    """The same number everywhere."""

    def fill(tensor: Tensor, frozen: Mapping[str, Tensor], generator: Generator) -> None:
        tensor.fill_(value)

    return fill


def normal(std: float) -> Init:
    """N(0, std²)."""

    def fill(tensor: Tensor, frozen: Mapping[str, Tensor], generator: Generator) -> None:
        tensor.normal_(0.0, std, generator=generator)

    return fill


def truncated_normal(std: float) -> Init:
    """N(0, std²) cut at two standard deviations."""

    def fill(tensor: Tensor, frozen: Mapping[str, Tensor], generator: Generator) -> None:
        nn.init.trunc_normal_(tensor, 0.0, std, -2 * std, 2 * std, generator=generator)

    return fill


def kaiming_uniform(a: float) -> Init:
    """Kaiming-uniform for a leaky ReLU of slope a, over a matrix (out, in)."""

    def fill(tensor: Tensor, frozen: Mapping[str, Tensor], generator: Generator) -> None:
        nn.init.kaiming_uniform_(tensor, a=a, generator=generator)

    return fill


def glorot_uniform(tensor: Tensor, frozen: Mapping[str, Tensor], generator: Generator) -> None:
    """Glorot-uniform over a matrix."""
    nn.init.xavier_uniform_(tensor, generator=generator)


def stacked(init: Init) -> Init:
    """Each tensor along the first dimension by itself, as that one is filled."""

    def fill(tensor: Tensor, frozen: Mapping[str, Tensor], generator: Generator) -> None:
        for part in tensor:
            init(part, frozen, generator)

    return fill


def uniform(bound: float) -> Init:
    """Uniform between -bound and bound."""

    def fill(tensor: Tensor, frozen: Mapping[str, Tensor], generator: Generator) -> None:
        tensor.uniform_(-bound, bound, generator=generator)

    return fill


def frozen_value(name: str) -> Init:
    """The frozen parameter of that name at the site."""

    def fill(tensor: Tensor, frozen: Mapping[str, Tensor], generator: Generator) -> None:
        tensor.copy_(frozen[name])

    return fill


def initialise(
    declared: Iterable[tuple[Site | None, Mapping[str, Parameter]]], backbone: Backbone, generator: Generator
) -> dict[str, Tensor]:
    """New float32 tensors on the CPU, in the order of the declarations; a name declared again is the same tensor."""
    tensors: dict[str, Tensor] = {}
    for site, parameters in declared:
        frozen = {} if site is None else {name: t.detach().cpu() for name, t in backbone.frozen(site).items()}
        for name, parameter in parameters.items():
            if name not in tensors:
                tensors[name] = torch.empty(parameter.shape, dtype=torch.float32)
                parameter.init(tensors[name], frozen, generator)
    return tensors


class ParameterTree(nn.Module):
    """Parameters under dotted names: the keys of its state dict are those names.

    Args:
        tensors: by name. One that is a parameter of another tree already is the same parameter here.
        fixed: the names of those that are never trained; they become buffers.
    """

    def __init__(self, tensors: Mapping[str, Tensor], fixed: Collection[str] = ()) -> None:
        super().__init__()
        for name, tensor in tensors.items():
            *path, leaf = name.split(".")
            node: nn.Module = self
            for part in path:
                if part not in node._modules:
                    node.add_module(part, nn.Module())
                node = node.get_submodule(part)
            if name in fixed:
                node.register_buffer(leaf, tensor)
            else:
                node.register_parameter(leaf, tensor if isinstance(tensor, nn.Parameter) else nn.Parameter(tensor))
        # Where each of them is held, so that no pass has to look through the tree.
        self._held: list[tuple[str, dict[str, Any], str]] = [
            (f"{path}.{leaf}".removeprefix("."), held, leaf)
            for kind in ("_parameters", "_buffers")
            for path, node in self.named_modules()
            for held in [getattr(node, kind)]
            for leaf in held
        ]

    def by_name(self) -> dict[str, Tensor]:
        """Every tensor by its name."""
        return {name: held[leaf] for name, held, leaf in self._held}
