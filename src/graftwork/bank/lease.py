"""What a call is given of the bank: what names stand for when it begins, and what adapters take in memory."""

from collections.abc import Mapping
from dataclasses import dataclass

from graftwork.bank.resident import Resident
from graftwork.grafting.graft import Modules


@dataclass(frozen=True)
class Memory:
    """The memory that adapters use on the device, in bytes.

    Attributes:
        adapters: bytes of each loaded adapter, its head included, by name.
        unloaded: names of the adapters that are not loaded; each is loaded when it is next used.
        budget: the maximum for all adapters together; None: no maximum.
        shared: bytes of what several adapters have in common, such as the random matrices of VeRA.
        slabs: bytes of what is kept for the next batch with the same adapters.
    """

    adapters: Mapping[str, int]
    unloaded: tuple[str, ...]
    budget: int | None
    shared: int = 0
    slabs: int = 0

    @property
    def total(self) -> int:
        """Bytes of all loaded adapters, with `shared` and `slabs`."""
        return sum(self.adapters.values()) + self.shared + self.slabs


@dataclass(frozen=True)
class Merged:
    """An adapter in the backbone's weights.

    Attributes:
        name: under which it was merged.
        version: what the name stood for then.
        modules: the backbone's modules with it in their weights, by path.
    """

    name: str
    version: Resident
    modules: Modules


@dataclass(frozen=True)
class Lease:
    """What names stand for when a call begins. It holds until the call ends, whatever they stand for by then.

    Attributes:
        residents: by name.
        merged: what is in the backbone's weights.
    """

    residents: Mapping[str, Resident]
    merged: Merged | None

    def __getitem__(self, name: str) -> Resident:
        return self.residents[name]

    def modules(self, resident: Resident | None) -> Modules | None:
        """What runs in the place of the backbone's own modules, when this adapter alone acts and is merged."""
        merged = self.merged
        return merged.modules if merged is not None and resident is merged.version else None
