"""The bank: the adapters that are on a backbone, within a budget of bytes."""

import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import mkdtemp
from weakref import finalize

from graftwork.adapters.resident import Resident
from graftwork.errors import AdapterError, nearest


@dataclass(frozen=True)
class Memory:
    """What adapters take on the device, in bytes.

    Attributes:
        adapters: of each whose ops are at hand, by name, its head included.
        put_away: the names of those that are read again when they are next used.
        budget: None when there is none.
    """

    adapters: Mapping[str, int]
    put_away: tuple[str, ...]
    budget: int | None

    @property
    def total(self) -> int:
        return sum(self.adapters.values())


class Bank(Mapping[str, Resident]):
    """Adapters by name. Past the budget, those that were not used for longest are put away, on disk; their next use
    brings them back. Pinned and trainable ones stay.

    Args:
        budget: bytes on the device.
    """

    def __init__(self, budget: int | None = None) -> None:
        self.budget = budget
        self._residents: dict[str, Resident] = {}
        self._pinned: set[str] = set()
        # Of those whose ops are at hand: their bytes, the one that was not used for longest first.
        self._sizes: dict[str, int] = {}
        self._total = 0
        # Of those that are put away: what they took, and will take again.
        self._away: dict[str, int] = {}
        self._folder: Path | None = None
        self._written = 0

    def __getitem__(self, name: str) -> Resident:
        return self._residents[name]

    def named(self, name: str) -> Resident:
        """The adapter of that name.

        Raises:
            AdapterError: there is none; the nearest names are listed.
        """
        if name not in self._residents:
            raise AdapterError(f"no adapter is named {name!r}", expected=nearest(name, self._residents))
        return self._residents[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._residents)

    def __len__(self) -> int:
        return len(self._residents)

    def __contains__(self, name: object) -> bool:
        return name in self._residents

    def put(self, name: str, resident: Resident, *, pinned: bool = False) -> None:
        """Keep an adapter under a name, in the place of one that is there.

        Raises:
            AdapterError: it does not fit into the budget beside those that stay.
        """
        staying = sum(self._sizes[other] for other in self._pinned - {name})
        if self.budget is not None and staying + resident.nbytes > self.budget:
            raise AdapterError(
                f"adapter {name!r} takes {resident.nbytes:,} bytes; beside the {staying:,} of those that stay there is "
                f"no room for it in a budget of {self.budget:,}",
                expected="a larger budget, or fewer pinned adapters",
            )
        self._make_room(resident.nbytes - self._sizes.get(name, 0), [name])
        self._residents[name] = resident
        self._pinned.discard(name)
        if pinned or resident.trainable:
            self._pinned.add(name)
        self._mark(name)

    def drop(self, name: str) -> Resident:
        """Forget an adapter.

        Raises:
            AdapterError: there is none of that name.
        """
        resident = self.named(name)
        del self._residents[name]
        self._forget(name)
        self._pinned.discard(name)
        return resident

    def clear(self) -> None:
        """Forget all."""
        for name in list(self):
            self.drop(name)

    def use(self, names: Sequence[str]) -> list[Resident]:
        """The adapters of these names with their ops at hand, to be used in one pass.

        Raises:
            AdapterError: there is none of one of the names; or together with those that stay they take more than the
                budget. Nothing has changed then.
        """
        found = [self.named(name) for name in names]
        if self.budget is None:
            return found
        sizes = self._sizes | self._away
        together = sum(sizes[name] for name in self._pinned | set(names))
        if together > self.budget:
            raise AdapterError(
                f"the {len(names)} adapters of one pass and those that stay take {together:,} bytes",
                expected=f"at most the budget, {self.budget:,}",
            )
        self._make_room(sum(self._away.get(name, 0) for name in names), names)
        for name, resident in zip(names, found, strict=True):
            resident.bring()
            self._mark(name)
        return found

    def memory(self) -> Memory:
        """What is where."""
        return Memory(dict(self._sizes), tuple(name for name in self if name in self._away), self.budget)

    def _mark(self, name: str) -> None:
        """Note that an adapter is at hand, and used last of all."""
        self._forget(name)
        self._sizes[name] = self._residents[name].nbytes
        self._total += self._sizes[name]

    def _forget(self, name: str) -> None:
        self._total -= self._sizes.pop(name, 0)
        self._away.pop(name, None)

    def _make_room(self, more: int, needed: Sequence[str]) -> None:
        """Put away what was not used for longest, until so many more bytes, which are known to fit, do."""
        while self.budget is not None and self._total + more > self.budget:
            name = next(name for name in self._sizes if name not in self._pinned and name not in needed)
            self._residents[name].put_away(self._new_path)
            size = self._sizes[name]
            self._forget(name)
            self._away[name] = size

    def _new_path(self) -> Path:
        if self._folder is None:
            self._folder = Path(mkdtemp(prefix="graftwork-"))
            finalize(self, shutil.rmtree, self._folder, ignore_errors=True)
        self._written += 1
        return self._folder / f"{self._written}"
