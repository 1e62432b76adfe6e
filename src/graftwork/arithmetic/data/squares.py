"""Squared gradients of each example by itself, with respect to a backbone's weights.

The square of a batch's mean gradient is no mean of squares. Here each example's own gradient is made, from what enters
and leaves each module: in a pass over B rows that do not see each other, the gradient of Σ_b s_b at a module's output
is, row by row, that of each s_b. A linear map's weight has the gradient δ_bᵀ x_b for example b, of outputs' gradients
δ_b (T, out) and inputs x_b (T, in). Other modules are linear in their parameters as well; what their gradient is, is
read off the module itself (`torch.func`), at whatever value the parameters have.

A module that runs several times in a pass, and tensors that are tied, have the sum of their gradients, which is squared
last. Where a module's output has no row for each example (T5's relative positions), examples are taken one at a time.

Notation: B examples, T tokens.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn as nn
from torch import Tensor
from torch.func import functional_call

from graftwork.backbones import Backbone, Location
from graftwork.grafting.wrapper import unwrapped

CHUNK = 64 * 2**20
"""Bytes of examples' gradients of one weight that are held at once."""


class NotByRowError(Exception):
    """A module's output has no row for each example.

    Attributes:
        path: the module's.
        tensor: whether the output is a tensor at all.
    """

    def __init__(self, path: str, *, tensor: bool) -> None:
        self.path, self.tensor = path, tensor
        super().__init__(path)


@dataclass(frozen=True)
class ModuleCall:
    """One run of a module.

    Attributes:
        args, kwargs: what entered, without graphs.
        output: what left, with a graph.
    """

    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    output: Tensor


class Watch:
    """What enters and leaves the modules that hold some weights, in passes while it is on.

    Args:
        backbone: the model.
        root: the model as it runs, with wrapped modules.
        names: canonical names of the weights.
    """

    def __init__(self, backbone: Backbone, root: nn.Module, names: Sequence[str]) -> None:
        self.backbone, self.root = backbone, root
        weights = backbone.weights
        # The same tensor may be at several places.
        self.places: dict[str, list[Location]] = {
            name: [weights.where(name), *(weights.where(tied) for tied in weights.where(name).tied)] for name in names
        }
        self.direct: dict[str, Location] = {}
        self.calls: dict[str, list[ModuleCall]] = {}
        self.examples = self.rows = 0
        self.watching = False
        # Tables whose output all rows of a pass have in common: of positions, and among them those of vectors that are
        # added to a text's (and not to attention's scores).
        tables = [site for site in backbone.sites.of_kind("embedding") if not site.rowwise]
        word = backbone.word_site
        self.common = {site.path for site in tables}
        self.added = {site.path for site in tables if word is not None and site.out_features == word.out_features}

    def take_directly(self, path: str) -> None:
        """Read the gradients of a module's parameters off the parameters themselves, one example at a time: what leaves
        the module says nothing of them."""
        self.direct |= {name: places[0] for name, places in self.places.items() if places[0].path == path}
        self.places = {name: places for name, places in self.places.items() if name not in self.direct}

    @contextmanager
    def on(self, examples: int, rows: int) -> Iterator[None]:
        """Inside, passes over so many examples are watched; what was seen before is forgotten.

        Args:
            rows: of the backbone's pass: an example with several choices has as many.

        Raises:
            NotByRowError: a module's output has no row for each of them.
        """
        paths = {place.path for places in self.places.values() for place in places}
        self.calls, self.examples, self.rows = {path: [] for path in paths}, examples, rows
        hooks = [
            self.root.get_submodule(path).register_forward_hook(self._seen(path), with_kwargs=True) for path in paths
        ]
        self.watching = True
        parameters = [self._parameter(place) for place in self.direct.values()]
        for parameter in parameters:
            parameter.requires_grad_(True)
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()
            for parameter in parameters:
                parameter.requires_grad_(False)

    def add_squares(self, score: Tensor, sums: Mapping[str, Tensor]) -> None:
        """Add each example's squared gradients to sums.

        Args:
            score: (B,), a number for each example of the pass that was watched.
            sums: by the weights' names, float32; they are written to.
        """
        self.watching = False  # modules are run for their derivatives
        outputs = [call.output for calls in self.calls.values() for call in calls]
        outputs += [self._parameter(place) for place in self.direct.values()]
        found = iter(torch.autograd.grad(score.sum(), outputs, retain_graph=True, allow_unused=True))
        gradients: dict[str, list[tuple[ModuleCall, Tensor]]] = {}
        for path, calls in self.calls.items():
            each = [(call, next(found)) for call in calls]
            gradients[path] = [(call, gradient.float()) for call, gradient in each if gradient is not None]
        for name, places in self.places.items():
            own = [(place, *one) for place in places for one in gradients[place.path]]
            if own:
                self._add(own, sums[name])
        for name, place in self.direct.items():
            gradient = next(found)
            if gradient is not None:
                sums[name].add_(place.of(gradient.float()).square().to(sums[name]))

    def _seen(self, path: str) -> Any:
        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
            if not self.watching:
                return output
            if not isinstance(output, Tensor):
                raise NotByRowError(path, tensor=False)
            if self.examples > 1 and (len(output) != self.rows or path in self.common):
                if path not in self.added or output.dim() != 3 or len(output) not in (1, self.rows):
                    raise NotByRowError(path, tensor=True)
                # One row for all, as that of absolute positions: a row for each says the same.
                output = output.expand(self.rows, *output.shape[1:])
            if not output.requires_grad:
                output = output.detach().requires_grad_()
            self.calls[path].append(
                ModuleCall(tuple(map(_detached, args)), {k: _detached(v) for k, v in kwargs.items()}, output)
            )
            return output

        return hook

    def _add(self, own: Sequence[tuple[Location, ModuleCall, Tensor]], total: Tensor) -> None:
        """Add the squares of one weight's gradients, which are sums over places and calls."""
        [(place, call, gradient), *more] = own
        module = self._module(place)
        if not more and type(module) is nn.Embedding and place.parameter == "weight":
            _add_embedding(call.args[0], gradient, module, self.examples, total)
            return
        step = max(1, CHUNK // max(1, 4 * total.numel()))
        for start in range(0, self.examples, step):
            rows = slice(start, min(self.examples, start + step))
            found, *others = (self._gradients(*one, rows) for one in own)
            for other in others:
                found = found + other
            for gradients in found.to(total):
                total.addcmul_(gradients, gradients)

    def _gradients(self, place: Location, call: ModuleCall, gradient: Tensor, rows: slice) -> Tensor:
        """The gradients of some examples through one call, in the canonical layout: (rows, …)."""
        module = self._module(place)
        per_example = len(gradient) // self.examples
        own = slice(rows.start * per_example, rows.stop * per_example)
        count, delta = rows.stop - rows.start, gradient[own]
        kind = None if place.site is None else self.backbone.sites[place.site].kind
        if kind in ("linear", "fused") and place.parameter in ("weight", "bias"):
            delta = delta.reshape(count, -1, delta.shape[-1])
            delta = delta if place.columns is None else delta[..., slice(*place.columns)]
            if place.parameter == "bias":
                return delta.sum(dim=1)
            x = _first(call)[own].reshape(count, delta.shape[1], -1).float()
            return torch.einsum("bto,bti->boi", delta, x)
        if kind == "norm" and place.shape == gradient.shape[-1:]:
            if place.parameter == "weight":
                delta = delta * _normalised(module, _first(call)[own])
            return delta.reshape(count, -1, delta.shape[-1]).sum(dim=1)
        each = [self._of_one(module, place, call, gradient, row, per_example) for row in range(rows.start, rows.stop)]
        return torch.stack(each)

    def _of_one(
        self, module: nn.Module, place: Location, call: ModuleCall, gradient: Tensor, row: int, per_example: int
    ) -> Tensor:
        """One example's gradient through one call of any module, as the module's own derivative has it."""
        own = slice(row * per_example, (row + 1) * per_example)
        size = len(gradient)
        args = tuple(_rows(value, own, size) for value in call.args)
        kwargs = {name: _rows(value, own, size) for name, value in call.kwargs.items()}
        held = module.get_parameter(place.parameter).detach()
        dtype = held.dtype

        def run(parameter: Tensor) -> Tensor:
            made: Tensor = functional_call(module, {place.parameter: parameter.to(dtype)}, args, kwargs)
            return made.expand(per_example, *made.shape[1:]).float()

        pull = torch.func.vjp(run, held.float())[1]
        [found] = pull(gradient[own])
        return place.of(found)

    def _parameter(self, place: Location) -> Tensor:
        return self._module(place).get_parameter(place.parameter)

    def _module(self, place: Location) -> nn.Module:
        return unwrapped(self.root.get_submodule(place.path))


def _add_embedding(ids: Tensor, gradient: Tensor, module: nn.Embedding, examples: int, total: Tensor) -> None:
    """The squares of an embedding table's gradients, of which an example has only those of its own tokens."""
    size, width = module.weight.shape
    ids = ids.expand(len(gradient), *ids.shape[1:]).reshape(examples, -1).to(total.device)
    example = torch.arange(examples, device=ids.device)[:, None].expand_as(ids)
    keys, places = torch.unique((example * size + ids).flatten(), return_inverse=True)
    flat = gradient.reshape(-1, width).to(total)
    if module.padding_idx is not None:
        flat = flat.masked_fill((ids.flatten() == module.padding_idx)[:, None], 0.0)
    sums = torch.zeros(len(keys), width, device=total.device).index_add_(0, places, flat)
    total.index_add_(0, keys % size, sums.square())


def _normalised(module: nn.Module, x: Tensor) -> Tensor:
    """x̂ of a norm whose output is x̂ ⊙ γ + β, or x̂ ⊙ (1 + γ): what one more in γ adds."""
    held = module.get_parameter("weight").detach()
    one, nothing = (functional_call(module, {"weight": torch.full_like(held, value)}, (x,)) for value in (1.0, 0.0))
    found: Tensor = (one - nothing).float()
    return found


def _first(call: ModuleCall) -> Tensor:
    """The tensor that enters a module."""
    return next(value for value in (*call.args, *call.kwargs.values()) if isinstance(value, Tensor))


def _rows(value: Any, rows: slice, size: int) -> Any:
    """Of what entered a module, that of some rows; what is for all rows is as it is."""
    return value[rows] if isinstance(value, Tensor) and value.dim() and len(value) == size else value


def _detached(value: Any) -> Any:
    return value.detach() if isinstance(value, Tensor) else value
