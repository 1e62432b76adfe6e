"""The graft: site modules put in the place of a backbone's own, so that ops can act there, and taken out again.

A site acts by select-and-replace: the module at a site's path is wrapped by a `SiteModule` that holds it. Only sites
that some adapter uses are wrapped. Detaching puts back the very modules, and the backbone is then bit for bit what it
was.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from threading import RLock
from typing import Any

import torch
import torch.nn as nn

from graftwork.backbones import Backbone
from graftwork.errors import SiteError
from graftwork.grafting.site import SiteModule
from graftwork.grafting.wrapper import replace_module
from graftwork.ops.op import Ops, ordered

Modules = Mapping[str, nn.Module]
"""Modules with other weights than the backbone's, by the path where they run."""


@dataclass(frozen=True)
class Running:
    """What acts in one pass.

    Attributes:
        ops: at each site.
        modules: what runs in the place of the backbone's own modules.
        training: whether the dropout of adapters acts, and the backbone's where that is kept.
        memory: what ops left for later ones.
    """

    ops: Ops = field(default_factory=dict)
    modules: Modules = field(default_factory=dict)
    training: bool = False
    memory: dict[str, Any] = field(default_factory=dict)


class Graft:
    """The sites of one backbone at which something can act, and what acts there now.

    One pass of the backbone runs at a time; passes started by several threads wait for each other. What acts, which
    weights run and whether dropout acts are facts of a pass: outside of passes no op acts and no dropout.

    Attributes:
        running: what acts now.
        lock: held by the pass that runs, and by whoever changes the modules.
        dropout: whether the backbone's own dropout acts in passes of training.
        recomputed: layers that are recomputed in the backward pass of training.
        compiled: whether layers run compiled: a compiler is then told that the sizes of ops' tensors stay what they
            are, unlike those of batches.
    """

    def __init__(self, backbone: Backbone, *, dropout: bool = False) -> None:
        self.backbone = backbone
        self.dropout = dropout
        self.recomputed: Sequence[nn.Module] = ()
        self.compiled = False
        self.root: nn.Module = backbone.model
        self.lock = RLock()
        self.running = self._outside_passes = Running()
        self._modules: dict[str, SiteModule] = {}
        self._sites: set[str] = set()
        self._training = False
        # Passes that run: one, or one in another by the same thread.
        self._depth = 0

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
        """Wrap the modules of the named sites, where they are not wrapped yet. The pass that runs is waited for.

        Raises:
            SiteError: the backbone has no such site.
        """
        paths = {self.backbone.sites[name].path: None for name in names}
        if paths.keys() <= self._modules.keys():
            return
        with self.lock:
            for path in paths:
                if path not in self._modules:
                    self._wrap(path)

    def _wrap(self, path: str) -> None:
        inner = self.backbone.modules[path]
        here = [site for site in self.backbone.sites.values() if site.path == path]
        module = SiteModule(inner, here, self._memory)
        self.root = replace_module(self.root, path, inner, module)
        self._modules[path] = module
        self._sites.update(site.name for site in here)

    def _memory(self) -> dict[str, Any]:
        return self.running.memory

    def detach(self) -> None:
        """Put the backbone's own modules back. If it is interrupted, call it again.

        Raises:
            SiteError: a pass of this thread is running.
        """
        with self.lock:
            self.require_outside()
            self.run_outside_passes()
            # Innermost first: a wrapped module may stand inside another wrapped one.
            for path in sorted(self._modules, key=lambda path: -len(path)):
                self.root = replace_module(self.root, path, self._modules[path], self.backbone.modules[path])
                del self._modules[path]
            self._sites.clear()

    def require_outside(self) -> None:
        """Refuse to take adapters off a pass that runs.

        Raises:
            SiteError: a pass of this thread is running; those of others are waited for.
        """
        with self.lock:
            if self._depth:
                raise SiteError(
                    "detach() was called inside a forward pass of this thread",
                    expected="detach() outside of forward passes and their hooks",
                )

    def run_outside_passes(self, modules: Modules | None = None) -> None:
        """Let these modules run outside of passes from now on, and have their weights be the model's, in the place of
        the backbone's own, which stay as they are. Passes of other threads are waited for; one of this thread goes
        on as it began.

        Args:
            modules: by the path of a module that is wrapped; None: the backbone's own run.
        """
        with self.lock:
            self._outside_passes = Running(modules=modules or {})
            for path, module in self._modules.items():
                module.hold(self._outside_passes.modules.get(path, self.backbone.modules[path]))
            if not self._depth:
                self._hand_out(self._outside_passes)

    @contextmanager
    def run(self, ops: Ops, *, modules: Modules | None = None, training: bool = False) -> Iterator[None]:
        """The ops act inside; afterwards, also after an exception, those that acted before.

        Args:
            modules: what runs in the place of the backbone's own modules.
            training: whether dropout acts.

        Raises:
            SiteError: ops for a site at which none can act.
        """
        with self._running(Running(ordered(ops), modules or {}, training)):
            yield

    def run_again(self) -> AbstractContextManager[None]:
        """What runs now, to be run again later: a checkpointed layer is recomputed in the backward pass."""
        now = self.running
        return self._running(Running(now.ops, now.modules, now.training))

    @contextmanager
    def _running(self, running: Running) -> Iterator[None]:
        with self.lock:
            before = self.running
            self._depth += 1
            try:
                self._hand_out(running)
                yield
            finally:
                self._depth -= 1
                # What runs outside of passes may be others by now.
                self._hand_out(before if self._depth else self._outside_passes)

    def _hand_out(self, running: Running) -> None:
        """Give each site module what acts there. It is not asked for by the sites' names: layers of one structure then
        have one forward, which can be compiled once for all of them."""
        lost = [*(running.ops.keys() - self._sites), *(running.modules.keys() - self._modules.keys())]
        if lost:
            raise SiteError(
                f"nothing can act at {', '.join(sorted(lost)[:3])}: no site module stands there",
                expected="an AdaptedModel that has not been detached",
            )
        self.running = running
        self._set_mode(running.training)
        if self.compiled:
            for tensor in (tensor for acting in running.ops.values() for op in acting for tensor in op.numbers()):
                torch._dynamo.mark_static(tensor)
        for path, module in self._modules.items():
            module.run_with(
                running.modules.get(path, self.backbone.modules[path]),
                tuple(
                    (site.columns, tuple(running.ops[site.name])) for site in module.sites if running.ops.get(site.name)
                ),
            )

    def _set_mode(self, training: bool) -> None:
        """Whether dropout acts: that of ops and, where it is kept, the backbone's own."""
        own = training and self.dropout
        if training == self._training and self.root.training == own:
            return
        self._training = training
        if self.root.training != own:
            # Also when somebody else has set the mode of the backbone.
            self.root.train(own)
        for module in (*self._modules.values(), *self.recomputed):
            module.__dict__["training"] = training
