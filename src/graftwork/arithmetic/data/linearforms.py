"""Adapters as sums whose coefficients can be trained: the tensors of a body as a function of how much each one counts.

The tensors are base + Σ_i λ_i τ_i, one λ for each adapter, or for each adapter and tensor. What runs with them is an
adapter like any other, which is lowered anew in each pass.
"""

from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import final

import torch
from torch import Tensor

from graftwork.adapters import Adapter
from graftwork.arithmetic.adapters.bodies import Bodies, Body, LowRankBodies
from graftwork.arithmetic.adapters.differences import as_lora
from graftwork.arithmetic.adapters.lowrank import concatenated
from graftwork.arithmetic.adapters.vectors import Vector, nothing
from graftwork.backbones import Backbone
from graftwork.bank import Resident
from graftwork.heads.objectives import supervised_loss
from graftwork.methods import Method
from graftwork.ops.op import Ops
from graftwork.ops.slabs import Packed

Put = Callable[[str, Mapping[str, Tensor]], Mapping[str, Tensor]]
"""Puts tensors by under a name, and gives them as they are then."""


@dataclass(frozen=True)
class LinearForm:
    """Tensors of a method as base + Σ_i λ_i τ_i.

    Attributes:
        method: the method.
        base: by name; those of no τ are constant.
        parts: all τ_i, by the names that λ scales. They may be mapped from a file.
    """

    method: Method
    base: Mapping[str, Tensor]
    parts: Mapping[str, tuple[Tensor, ...]]

    @property
    def names(self) -> tuple[str, ...]:
        """The tensors that λ scales, in order: a layer of layer-wise coefficients is each of them."""
        return tuple(self.parts)

    def tensors(self, coefficients: Tensor) -> dict[str, Tensor]:
        """The tensors, differentiable in the coefficients.

        Args:
            coefficients: λ, (N, 1), or (N, L) for the L names.
        """
        each = coefficients.expand(len(coefficients), len(self.parts)).unbind(dim=1)
        found = dict(self.base)
        for (name, parts), own in zip(self.parts.items(), each, strict=True):
            total = self.base[name]
            for factor, part in zip(own.to(total), parts, strict=True):
                total = total + factor * part
            found[name] = total
        return found

    def to(self, device: torch.device) -> "LinearForm":
        """The same on a device."""
        base = {name: t.to(device) for name, t in self.base.items()}
        parts = {name: tuple(part.to(device) for part in own) for name, own in self.parts.items()}
        return LinearForm(self.method, base, parts)

    def body(self, coefficients: Tensor) -> Body:
        """The body with these coefficients."""
        with torch.no_grad():
            tensors = self.tensors(coefficients.to(next(iter(self.base.values())).device))
            return Body(self.method, {name: tensor.cpu().contiguous() for name, tensor in tensors.items()})


def linear_form(
    bodies: Bodies, vectors: Iterable[Vector] | None = None, *, put: Put = lambda name, tensors: tensors
) -> LinearForm:
    """The bodies of adapters as one sum.

    Args:
        bodies: vectors of which sums are bodies again.
        vectors: others in the place of theirs (trimmed, elected), with the same names and shapes; one at a time is
            asked for.
        put: puts the tensors of each body by under a name, and gives them as they are then, such as on disk.
    """
    if isinstance(bodies, LowRankBodies) and vectors is None:
        return _of_factors(bodies)
    unchanged = bodies.written({name: nothing(t.shape) for name, t in bodies.vectors[0].items()})
    base = {name: _without_memory(tensor) for name, tensor in unchanged.tensors.items()}
    parts = []
    for i, vector in enumerate(bodies.vectors if vectors is None else vectors):
        tensors = bodies.written(vector).tensors
        # A body is its vector and what is there when that is zero.
        moved = {name: own - base[name] if bool(base[name].any()) else own for name, own in tensors.items()}
        parts.append(put(f"part-{i}", moved))
    names = [name for name in base if any(bool(part[name].any()) for part in parts)]
    return LinearForm(unchanged.method, base, {name: tuple(part[name] for part in parts) for name in names})


def _without_memory(tensor: Tensor) -> Tensor:
    """A tensor; one of zeros as such that take none."""
    return tensor if bool(tensor.any()) else nothing(tensor.shape)


def _of_factors(bodies: LowRankBodies) -> LinearForm:
    """Of products: A has the rows of all adapters, and λ scales each one's columns of B."""
    each, count = bodies.factors, len(bodies.factors)
    like = [adapter.method for adapter in bodies.adapters.values()]

    def lora(scales: list[float]) -> tuple[Method, dict[str, Tensor]]:
        return as_lora({n: concatenated([one[n] for one in each], scales) for n in each[0]}, bodies.backbone, like=like)

    method, whole = lora([1.0] * count)
    own = [lora([float(i == j) for j in range(count)])[1] for i in range(count)]
    scaled = [name for name in whole if name.endswith(".B")]
    base = {name: torch.zeros_like(t) if name in scaled else t for name, t in whole.items()}
    return LinearForm(method, base, {name: tuple(one[name] for one in own) for name in scaled})


@final
class Interpolated(Resident):
    """An adapter of a linear form on a backbone, with the coefficients as they are in each pass.

    Args:
        form: the body.
        coefficients: λ, which may require gradients.
        adapter: gives the head and the task.
        backbone: where it runs.
    """

    trainable = True  # it is lowered in each pass

    def __init__(self, form: LinearForm, coefficients: Tensor, adapter: Adapter, backbone: Backbone) -> None:
        self.form, self.coefficients, self.backbone = form, coefficients, backbone
        self.objective = supervised_loss
        head = {name: t.to(backbone.device) for name, t in adapter.tensors.items() if name.startswith("head.")}
        self._head = head
        self.adapter = replace(adapter, method=form.method, tensors={})
        with torch.no_grad():
            ops = self._lower(form.tensors(coefficients), training=False)
        self._look_at(ops)
        self.layout = None
        # The parts are those of all tasks: rows of two tasks do not share a pass.
        self.routed = False

    @property
    def nbytes(self) -> int:
        return 0

    @property
    def loaded(self) -> bool:
        return True

    def head(self) -> Mapping[str, Tensor]:
        return self._head

    def ops(self, *, training: bool = False) -> Ops:
        return self._in_precision(self._lower(self.form.tensors(self.coefficients), training=training))

    def packed(self, *, training: bool = False) -> Packed:
        raise AssertionError("it shares no pass")

    def drawing(self) -> AbstractContextManager[None]:
        return nullcontext()

    def snapshot(self) -> Adapter:
        return replace(self.adapter, tensors={**self.form.body(self.coefficients).tensors, **self._head})
