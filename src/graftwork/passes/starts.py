"""Starts: where a pass begins when the states before it are cached, because nothing there is trained.

A start is at a layer k: the pass is given what enters k, and the layers below do nothing. Or it is at the head, which
is given all that it reads: nothing of the backbone runs.

Notation: B rows, T tokens, d hidden size, n numbers that are cached of a token or of a text.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, final

import torch
import torch.nn as nn
from jaxtyping import Float
from torch import Tensor

from graftwork.backbones import Backbone
from graftwork.backbones.families.family import base_path
from graftwork.errors import AdapterError
from graftwork.grafting.wrapper import ModuleWrapper, replace_module
from graftwork.heads import ChoiceHead, FeatureHead, Head, PooledHead, States
from graftwork.heads.pooled import pool

CACHED_STATES = "cached_states"
"""The name under which a batch has the cached states of its rows."""

_MORE = (
    "its layers need more of those below than their hidden states, and would give other outputs; run whole passes, "
    "which tuning does with --train.prefix_cache off"
)


class Start(ABC):
    """Where a pass begins.

    Attributes:
        name: names the states that are cached for it; part of a cache's key.
        by_token: whether they are (B, T, n), or (B, n).
    """

    name: str
    by_token: bool

    def check(self, sites: Iterable[str]) -> None:
        """Refuse an adapter in a pass that begins here, where it acts below.

        Args:
            sites: where it acts.

        Raises:
            AdapterError: it does.
        """
        below = [name for name in sites if self.leaves_out(name)]
        if below:
            raise AdapterError(
                f"an adapter that acts at {below[0]} cannot take part in a pass that begins at {self.name}",
                expected="an adapter that acts above, or a pass without `cached_states`",
            )

    @abstractmethod
    def leaves_out(self, site: str) -> bool:
        """Whether what stands at a site does not run in passes that begin here."""

    @abstractmethod
    def attach(self) -> None:
        """Let passes begin there."""

    @abstractmethod
    def detach(self) -> None:
        """Put the backbone's own modules back."""


@final
class HeadStart(Start):
    """A pass of the head alone."""

    def __init__(self, backbone: Backbone, head: Head) -> None:
        self.head = head
        self._width = backbone.hidden_size
        self.name = f"head {head.reads}"
        self.by_token = head.reads != "text"
        if isinstance(head, PooledHead | ChoiceHead):
            self.name += f" {head.pooling}"

    def leaves_out(self, site: str) -> bool:
        return True

    def attach(self) -> None:
        """Nothing stands in its way."""

    def detach(self) -> None:
        """Nothing was changed."""

    def states_to_cache(self, states: States) -> Float[Tensor, "B *T n"]:
        """All that the head reads of the backbone's states."""
        if isinstance(self.head, PooledHead | ChoiceHead):
            return pool(states, self.head.pooling)
        if self.head.reads == "layers":
            assert states.layers is not None
            return torch.cat(states.layers, dim=-1)
        assert states.last is not None
        return states.last

    def states(self, cached: Float[Tensor, "B *T n"], mask: Tensor | None, segments: Tensor | None) -> States:
        """The states in which the head finds what was cached."""
        if not self.by_token:
            # One vector a text, of which every pooling makes itself.
            return States(last=cached[:, None], pooled=cached)
        if isinstance(self.head, FeatureHead):
            return States(layers=torch.split(cached, self._width, dim=-1), mask=mask, segments=segments)
        return States(last=cached, mask=mask)


class _Layer(ModuleWrapper):
    """Runs the layer that it holds unless the pass begins above it or ends below it."""

    place: int
    start: "LayerStart"

    def __init__(self, inner: nn.Module, place: int, start: "LayerStart") -> None:
        super().__init__(inner)
        self.__dict__.update(place=place, start=start)

    def forward(self, states: Tensor, *args: Any, **kwargs: Any) -> Any:
        return self.start.run(self, states, *args, **kwargs)


@final
class LayerStart(Start):
    """A pass that begins at layer k of a backbone of one stack; k = L begins behind the last layer.

    Args:
        layer: k, which may be changed between passes.
        of_adapter: the cached states are those of the adapter that goes on with them, so that it may act below.
    """

    by_token = True

    def __init__(self, backbone: Backbone, layer: int, *, of_adapter: bool = False) -> None:
        self.backbone = backbone
        self.layer = layer
        self.of_adapter = of_adapter
        self.name = f"layer {layer}"
        self.entered: dict[int, Tensor] | None = None
        self.entering: Tensor | None = None
        self.reading = False
        self.read: Tensor | None = None
        self._wrappers: dict[str, _Layer] = {}
        self._gives: dict[int, int | None] = {}

    def leaves_out(self, site: str) -> bool:
        if self.of_adapter:
            return False
        found = self.backbone.sites[site]
        total = self.backbone.sites.num_layers
        return total - found.height - (0 if found.layer is None else 1) < self.layer

    def attach(self) -> None:
        [stack] = self.backbone.family.stacks
        for place, path in enumerate(stack.layer_paths(self.backbone.model, base_path(self.backbone.model))):
            inner = self.backbone.model.get_submodule(path)
            self._wrappers[path] = _Layer(inner, place, self)
            replace_module(self.backbone.model, path, inner, self._wrappers[path])

    def detach(self) -> None:
        for path, wrapper in list(self._wrappers.items()):
            replace_module(self.backbone.model, path, wrapper, wrapper.inner)
            del self._wrappers[path]

    @contextmanager
    def begin(self, cached: Float[Tensor, "B T d"]) -> Iterator[None]:
        """Passes inside begin with these states; those after it, also after an exception, run whole."""
        self.entering = cached
        try:
            yield
        finally:
            self.entering = None

    @contextmanager
    def end(self) -> Iterator[None]:
        """Passes inside end where the others begin, and what was reached is in `read`."""
        self.reading = True
        try:
            yield
        finally:
            self.reading, self.read = False, None

    @contextmanager
    def noting(self) -> Iterator[dict[int, Tensor]]:
        """Inside, what enters each layer that runs in a pass, by its number: (B, T, d)."""
        self.entered = {}
        try:
            yield self.entered
        finally:
            self.entered = None

    def run(self, wrapper: _Layer, states: Tensor, *args: Any, **kwargs: Any) -> Any:
        """What a layer gives in the pass that runs."""
        place = wrapper.place
        if self.entering is not None and place <= self.layer:
            states = self.entering
            if place < self.layer:
                return self._given(place, states)
        if self.reading and place >= self.layer:
            self.read = states if place == self.layer else self.read
            return self._given(place, states)
        if self.entered is not None:
            self.entered[place] = states
        given = wrapper.inner(states, *args, **kwargs)
        self._gives[place] = len(given) if isinstance(given, tuple) else None
        if self.reading:
            self.read = given if isinstance(given, Tensor) else given[0]
        return given

    def disprove(self, run: Callable[[], Tensor]) -> str:
        """Why passes that begin here would not say what whole ones do, in a clause; empty when they do.

        Args:
            run: a pass over some rows, the same each time; gives its last states.
        """
        whole = run()
        with self.end():
            run()
            assert self.read is not None
            read = self.read
        try:
            with self.begin(read):
                begun = run()
        except (RuntimeError, ValueError, TypeError, AttributeError) as error:
            return f"{_MORE} ({type(error).__name__}: {error})"
        return "" if torch.equal(whole, begun) else _MORE

    def _given(self, place: int, states: Tensor) -> Any:
        """States in the form in which the layer gives them."""
        size = self._gives[place]
        return states if size is None else (states, *[None] * (size - 1))
