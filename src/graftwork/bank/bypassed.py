"""A finished adapter without its ops at some sites, which the backbone then runs as they are."""

from collections.abc import Collection, Mapping
from contextlib import AbstractContextManager
from typing import final

from torch import Tensor

from graftwork.adapters import Adapter
from graftwork.bank.resident import Resident
from graftwork.bank.version import Version
from graftwork.ops.op import Ops
from graftwork.ops.slabs import Packed


@final
class Bypassed(Resident):
    """A version with ops left out. It has no tensors of its own, and its rows share no pass with other adapters'.

    Args:
        version: the whole one.
        sites: those at which its ops are left out.
    """

    trainable = False

    def __init__(self, version: Version, sites: Collection[str]) -> None:
        self._version, self._without = version, frozenset(sites)
        self.objective = version.objective
        self.adapter, self.backbone = version.adapter, version.backbone
        self._look_at(self.ops())
        self.routed, self.layout = False, None

    @property
    def nbytes(self) -> int:
        return 0

    @property
    def loaded(self) -> bool:
        return self._version.loaded

    def head(self) -> Mapping[str, Tensor]:
        return self._version.head()

    def ops(self, *, training: bool = False) -> Ops:
        return {site: acting for site, acting in self._version.ops().items() if site not in self._without}

    def packed(self, *, training: bool = False) -> Packed:
        raise NotImplementedError("its rows share no pass with other adapters'")

    def drawing(self) -> AbstractContextManager[None]:
        return self._version.drawing()

    def snapshot(self) -> Adapter:
        """The whole adapter: what is left out is left out of passes."""
        return self._version.snapshot()
