"""Which adapters are on a backbone, and the one that is merged into its weights."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from threading import Lock
from weakref import finalize

import torch
import torch.nn as nn
from transformers import PretrainedConfig

from graftwork.adapters import Adapter
from graftwork.backbones import Backbone
from graftwork.bank import Bank, Memory, Merged, Resident, Trained, Version
from graftwork.errors import AdapterError, SiteError
from graftwork.grafting import Graft, Recomputing
from graftwork.grafting.merging import merged_modules
from graftwork.passes.running import Runner


class BackboneWithAdapters(nn.Module):
    """A backbone, and adapters on it by name. See `AdaptedModel`."""

    def __init__(
        self,
        backbone: Backbone,
        adapters: Mapping[str, Adapter | str | Path] | None = None,
        *,
        allow_backbone_mismatch: bool = False,
        backbone_dropout: bool = False,
        budget: int | None = None,
    ) -> None:
        super().__init__()
        self.graft = Graft(backbone, dropout=backbone_dropout)
        backbone.take(self.graft)
        self.backbone = backbone
        self.model = backbone.model
        self.allow_backbone_mismatch = allow_backbone_mismatch
        self.backbone_dropout = backbone_dropout
        self.residents = Bank(budget)
        self.trained = nn.ModuleList()
        self._runner = Runner(backbone, self.graft, self.residents)
        self._recomputing = Recomputing(self.graft)
        self._refreshing = Lock()
        self._refresh()
        # The model goes when nobody holds it any more, and gives the backbone its modules back.
        finalize(self, _let_go, self.graft, self._recomputing).atexit = False
        try:
            for name, adapter in (adapters or {}).items():
                self.add(name, adapter)
        except BaseException:
            self.detach()
            raise
        self.eval()

    def add(
        self,
        name: str,
        adapter: Adapter | str | Path,
        *,
        trainable: bool = False,
        pinned: bool = False,
        shares: str | None = None,
    ) -> None:
        """Add an adapter. Calls that are already running do not see it.

        Args:
            name: the name under which calls select the adapter.
            adapter: an adapter, or its folder, which is read once.
            trainable: make its parameters trainable parameters of this module.
            pinned: never unload it to stay within the memory budget.
            shares: the name of another trainable adapter, whose parameters this one has as well: multi-task training.
                Only what each task has of its own, as the head, is taken from the given adapter.

        Raises:
            AdapterError: the name is taken; the adapter is damaged or does not fit the backbone; the memory budget has
                no room for it; or it cannot share the other one's parameters. The model is then unchanged.
        """
        if shares is not None and not trainable:
            raise AdapterError("only an adapter in training can share parameters", change="trainable=True")
        with self.residents.reserved_name(name):
            self._put(name, adapter, trainable=trainable, pinned=pinned, replaced=None, shares=shares)

    def replace(self, name: str, adapter: Adapter | str | Path, *, pinned: bool | None = None) -> None:
        """Replace an adapter. Calls that are already running finish with the old one; later calls use the new one.

        Args:
            name: the name of the adapter to replace.
            adapter: an adapter, or its folder, which is read once.
            pinned: never unload it to stay within the memory budget. None: as for the old one.

        Raises:
            AdapterError: no adapter has that name; it is merged; the new one is damaged or does not fit the backbone;
                or the memory budget has no room for it. The old one then stays.
        """
        self._put(name, adapter, trainable=False, pinned=pinned, replaced=self.residents.named(name))

    def _put(
        self,
        name: str,
        adapter: Adapter | str | Path,
        *,
        trainable: bool,
        pinned: bool | None,
        replaced: Resident | None,
        shares: str | None = None,
    ) -> None:
        with self._taking():
            self.residents.require_unmerged(name)
            given = isinstance(adapter, Adapter)
            adapter = adapter if isinstance(adapter, Adapter) else Adapter.load(adapter)
            adapter.check(self.backbone, allow_mismatch=self.allow_backbone_mismatch)
            resident: Resident
            if trainable:
                shared = None if shares is None else self.in_training(shares)
                resident = Trained(adapter, self.backbone, shares=shared).train(self.training)
            else:
                resident = Version(adapter, self.backbone, owned=not given, folder=self.residents.folder)
            with self.residents.room(resident, name, leaving=replaced), self.graft.lock:
                # Another thread may have detached the model meanwhile.
                self.backbone.require_taken(self.graft)
                self.graft.attach(resident.sites)
                self.residents.put(name, resident, pinned=pinned, replaced=replaced)
            self._refresh()

    @contextmanager
    def _taking(self) -> Iterator[None]:
        """Inside, the backbone is this model's. After a failure it is not, where it was not so before and no other
        thread has put an adapter on it meanwhile."""
        held = self.backbone.is_taken_by(self.graft)
        self.backbone.take(self.graft)
        try:
            yield
        except BaseException:
            with self.graft.lock:
                if not held and not self.residents:
                    self.detach()
            raise

    def remove(self, name: str) -> None:
        """Remove an adapter. Calls that are already running finish with it. If it is merged, it is unmerged first.

        Raises:
            AdapterError: no adapter has that name.
        """
        if self.merged == name:
            self.unmerge()
        self.residents.drop(name)
        self._refresh()

    def memory(self) -> Memory:
        """The memory that adapters use on the device, and which adapters are unloaded."""
        return self.residents.memory()

    def adapter(self, name: str) -> Adapter:
        """The adapter of that name, with a copy of its current parameters.

        Raises:
            AdapterError: no adapter has that name.
        """
        return self.residents.named(name).snapshot()

    def in_training(self, name: str) -> Trained:
        """The module that holds the trainable parameters of an adapter.

        Raises:
            AdapterError: no adapter has that name; or it is not being trained.
        """
        resident = self.residents.named(name)
        if not isinstance(resident, Trained):
            raise AdapterError(
                f"adapter {name!r} is not being trained", expected="an adapter that was added with trainable=True"
            )
        return resident

    @property
    def merged(self) -> str | None:
        """The name of the merged adapter; None if no adapter is merged."""
        merged = self.residents.merged
        return None if merged is None else merged.name

    def merge(self, name: str) -> None:
        """Merge an adapter into the backbone's weights, so that it adds no cost to a forward pass. Its head is
        unchanged.

        The merged weights are computed in float64 and rounded once to the backbone's precision. The original weights
        are kept, and other adapters continue to use them.

        Raises:
            AdapterError: no adapter has that name; an adapter is already merged; this one is being trained; or one of
                its ops cannot be merged. The model is then unchanged.
        """
        version = self.residents.named(name)
        self.residents.require_none_merged()
        if not isinstance(version, Version):
            raise AdapterError(
                f"adapter {name!r} is being trained and cannot be merged: it would get no gradient",
                expected="an adapter that was added without trainable=True",
            )
        try:
            with torch.inference_mode(False), torch.no_grad():
                modules = merged_modules(version.exact_ops(), self.backbone)
        except SiteError as error:
            raise AdapterError(
                f"adapter {name!r} of method {version.adapter.method.name!r} cannot be merged: {error.problem}",
                expected="run it without merge()",
            ) from error
        with self.graft.lock:
            self.residents.merge(Merged(name, version, modules))
            self.graft.run_outside_passes(modules)

    def unmerge(self) -> None:
        """Restore the backbone's original weight tensors. Does nothing if no adapter is merged."""
        with self.graft.lock:
            self.residents.merge(None)
            self.graft.run_outside_passes()

    def detach(self) -> Backbone:
        """Remove all adapters and restore the backbone's original modules. Its outputs and state dict are then bit for
        bit what they were, and another `AdaptedModel` can be made on it. Waits for a running forward pass. If `detach`
        is interrupted, call it again.

        Returns:
            The backbone.

        Raises:
            SiteError: it was called within a forward pass, for example by a hook.
        """
        with self.graft.lock:
            self.graft.require_outside()
            self.unmerge()
            self.residents.clear()
            self._refresh()
            _let_go(self.graft, self._recomputing)
        return self.backbone

    def _refresh(self) -> None:
        """Have the parameters of what is trained be parameters of this module, and the configuration be that of what
        is here."""
        with self._refreshing:
            trained = [resident for resident in self.residents.values() if isinstance(resident, Trained)]
            if list(self.trained) != trained:
                self.trained = nn.ModuleList(trained)
            # It is made when it is asked for.
            self._config: PretrainedConfig | None = None


def _let_go(graft: Graft, recomputing: Recomputing) -> None:
    """Give a backbone its own modules back, and let another model take it."""
    graft.detach()
    recomputing.let_go()
    graft.backbone.release(graft)
