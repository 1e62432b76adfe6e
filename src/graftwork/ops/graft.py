"""The graft: site modules put in the place of a backbone's own, so that ops can act there, and taken out again.

A site acts by select-and-replace: the module at a site's path is wrapped by a `SiteModule` that holds it. Only sites
that some adapter uses are wrapped. Detaching puts back the very modules, and the backbone is then bit for bit what it
was.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from copy import copy
from dataclasses import dataclass, field
from functools import partial
from threading import RLock
from typing import Any, final

import torch
import torch.nn as nn
from torch import Tensor

from graftwork.backbones import Backbone, Site, Sites
from graftwork.errors import SiteError
from graftwork.ops.op import Forward, Op, Place

Ops = Mapping[str, Sequence[Op]]
"""Ops by the name of the site where they act."""

Acting = tuple[tuple[tuple[int, int] | None, tuple[Op, ...]], ...]
"""What acts at a module: the columns of each of its sites, where they are not all, and the ops there."""


@dataclass
class _Running:
    """What acts during a forward pass: the ops at each site, and what ops left for later ones."""

    ops: Ops = field(default_factory=dict)
    memory: dict[str, Any] = field(default_factory=dict)


class StandIn(nn.Module):
    """Stands in the place of one of the backbone's modules, and holds it."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def __getattr__(self, name: str) -> Any:
        """What it has not itself is the module's that it holds: the backbone's code reads weights and settings."""
        try:
            return super().__getattr__(name)
        except AttributeError:
            if name == "inner":
                raise
            return getattr(self.inner, name)


@final
class SiteModule(StandIn, Place):
    """Runs the module that it holds with the ops of its sites around it."""

    def __init__(self, inner: nn.Module, sites: Sequence[Site], graft: "Graft") -> None:
        super().__init__(inner)
        self.sites = tuple(sites)
        self.graft = graft
        self.acting: Acting = ()

    @property
    def memory(self) -> dict[str, Any]:
        return self.graft.running.memory

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        forward: Any = self.inner
        parts = []
        for columns, ops in self.acting:
            if columns is not None:
                parts.append((columns, ops))
                continue
            for op in ops:
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


class Graft:
    """The sites of one backbone at which something can act, and what acts there now.

    One forward pass runs at a time; passes started by several threads wait for each other.

    Attributes:
        compiled: whether layers run compiled: a compiler is then told that the sizes of ops' tensors stay what they
            are, unlike those of batches.
    """

    def __init__(self, backbone: Backbone) -> None:
        self.backbone = backbone
        self.running = _Running()
        self.compiled = False
        self.root: nn.Module = backbone.model
        self.lock = RLock()
        self._modules: dict[str, SiteModule] = {}

    @property
    def base(self) -> nn.Module:
        """What to call for a pass of the backbone without its language-model head."""
        path = self.backbone.base_path
        return self.root.get_submodule(path) if path else self.root

    @property
    def encoder(self) -> nn.Module:
        """What to call for a pass of an encoder-decoder's encoder alone."""
        base: Any = self.base
        return base.encoder  # type: ignore[no-any-return]

    def attach(self, names: Iterable[str]) -> None:
        """Wrap the modules of the named sites, where they are not wrapped yet.

        Raises:
            SiteError: the backbone has no such site; or another model is on the backbone already.
        """
        paths = [path for path in {self.backbone.sites[name].path: None for name in names} if path not in self._modules]
        others = (m for m in self.backbone.model.modules() if isinstance(m, SiteModule) and m.graft is not self)
        if paths and next(others, None) is not None:
            raise SiteError(
                f"backbone {self.backbone.name!r} is in use by another AdaptedModel",
                expected="one AdaptedModel on a backbone at a time",
                change="call detach() on the other one, or load the backbone again",
            )
        for path in paths:
            inner = self.backbone.modules[path]
            here = [site for site in self.backbone.sites.values() if site.path == path]
            self._modules[path] = module = SiteModule(inner, here, self)
            module.train(inner.training)
            self._put(path, module)

    def detach(self) -> None:
        """Put the backbone's own modules back."""
        with self.lock:
            self.unmerge()
            # Innermost first: a wrapped module may stand inside another wrapped one.
            for path, module in sorted(self._modules.items(), key=lambda item: -len(item[0])):
                self._put(path, module.inner)
            self._modules.clear()
            self.running = _Running()

    def merge(self, parameters: Mapping[str, Mapping[str, Tensor]]) -> None:
        """Let site modules hold copies of the backbone's modules with other parameters; the backbone's own stay as they
        are, out of use.

        Args:
            parameters: by the path of a module that is wrapped, then by their name in it. One tensor at several places
                becomes one parameter.
        """
        made: dict[int, nn.Parameter] = {}
        with self.lock:
            for path, changed in parameters.items():
                module = self._modules[path]
                module.inner = other = copy(module.inner)
                # Only this dictionary is the copy's own: submodules and buffers are those of the original.
                other._parameters = dict(other._parameters)
                for name, tensor in changed.items():
                    other._parameters[name] = made.setdefault(id(tensor), nn.Parameter(tensor, requires_grad=False))

    def unmerge(self) -> None:
        """Let site modules hold the backbone's own modules again."""
        with self.lock:
            for module, original in self._merged():
                original.training = module.inner.training
                module.inner = original

    def apply(self, fn: Callable[[Tensor], Tensor]) -> None:
        """Do to the modules that are out of use what is done to the model: it may be moved or cast."""
        for _, original in self._merged():
            original._apply(fn)  # type: ignore[no-untyped-call]

    def _merged(self) -> list[tuple[SiteModule, nn.Module]]:
        """The site modules that hold a copy, each with the backbone's own module."""
        pairs = [(module, self.backbone.modules[path]) for path, module in self._modules.items()]
        return [(module, original) for module, original in pairs if module.inner is not original]

    def train(self, mode: bool) -> None:
        """Set whether ops are training (their dropout acts); the backbone's own modules are left alone."""
        for module in self._modules.values():
            module.training = mode

    @contextmanager
    def run(self, ops: Ops) -> Iterator[None]:
        """The ops act inside; afterwards, also after an exception, those that acted before."""
        with self.lock:
            before = self.running
            try:
                self._hand_out(_Running(ordered(ops)))
                yield
            finally:
                self._hand_out(before)

    def run_again(self) -> AbstractContextManager[None]:
        """What runs now, to be run again later: a checkpointed layer is recomputed in the backward pass."""
        return self.run(self.running.ops)

    def _hand_out(self, running: _Running) -> None:
        """Give each site module what acts there. It is not asked for by the sites' names: layers of one structure then
        have one forward, which can be compiled once for all of them."""
        self.running = running
        if self.compiled:
            for tensor in (tensor for acting in running.ops.values() for op in acting for tensor in op.numbers()):
                torch._dynamo.mark_static(tensor)
        for module in self._modules.values():
            module.acting = tuple(
                (site.columns, tuple(running.ops[site.name])) for site in module.sites if running.ops.get(site.name)
            )

    def _put(self, path: str, module: nn.Module) -> None:
        if not path:
            self.root = module
            return
        parent, _, leaf = path.rpartition(".")
        setattr(self.backbone.model.get_submodule(_through(self._modules, parent)), leaf, module)


def _columns(whole: Tensor, start: int, end: int, x: Tensor) -> Tensor:
    return whole[..., start:end]


def check(ops: Ops, sites: Sites) -> None:
    """Refuse ops that cannot act where they are to act.

    Raises:
        SiteError: the backbone has no such site; an op acts at no site of its kind; or two ops replace what one site
            computes.
    """
    for name, acting in ops.items():
        site = sites[name]
        for op in acting:
            if site.kind not in op.kinds:
                raise SiteError(
                    f"{type(op).__name__} cannot act at site {name!r}, which is of kind {site.kind}",
                    expected=f"a site of kind {' or '.join(sorted(op.kinds))}",
                )
        replacing = [type(op).__name__ for op in acting if op.replaces]
        if len(replacing) > 1:
            raise SiteError(f"{' and '.join(replacing)} both replace what site {name!r} computes; only one can")


def ordered(ops: Ops) -> Ops:
    """The ops of each site with the one that replaces its computation first, so that it stands innermost."""
    return {name: sorted(acting, key=lambda op: not op.replaces) for name, acting in ops.items()}


def _through(wrapped: Mapping[str, SiteModule], path: str) -> str:
    """The path as it is while modules on the way are wrapped: `a.b` is at `a.inner.b` when `a` is."""
    parts: list[str] = []
    original: list[str] = []
    for part in path.split(".") if path else ():
        parts.append(part)
        original.append(part)
        if ".".join(original) in wrapped:
            parts.append("inner")
    return ".".join(parts)
