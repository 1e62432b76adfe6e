"""The bank: which adapter each name stands for, within a budget of bytes."""

import shutil
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, ValuesView
from contextlib import contextmanager
from pathlib import Path
from tempfile import mkdtemp
from threading import Condition, Lock, get_ident
from weakref import finalize

import torch

from graftwork.bank.lease import Lease, Memory, Merged
from graftwork.bank.resident import Resident, bytes_of, shared_bytes
from graftwork.bank.slabcache import SlabCache
from graftwork.bank.version import Version
from graftwork.errors import AdapterError, nearest
from graftwork.ops.op import Ops
from graftwork.ops.slabs import laid_out


class Bank(Mapping[str, Resident]):
    """Adapters by name.

    What a name stands for is put, replaced and dropped in one step; calls that run go on with what they leased. Past
    the budget, adapters that were not used for longest are unloaded, and their next use loads them again. Pinned ones
    stay, those in training, and those that a pass uses. Nothing is read, written or computed while the bank is locked.

    Args:
        budget: bytes on the device. Adapters are then kept on disk besides.
    """

    def __init__(self, budget: int | None = None) -> None:
        self.budget = budget
        self._changed = Condition()
        self._residents: dict[str, Resident] = {}
        self._merged: Merged | None = None
        self._standing: set[Resident] = set()
        self._coming: set[str] = set()
        self._pinned: set[str] = set()
        # What is on the device, the one that was not used for longest first, with its bytes.
        self._loaded: dict[Resident, int] = {}
        # Of several of them, for the next pass over the same ones.
        self._slabs = SlabCache()
        # How many passes use each of them, and how many passes each thread has begun.
        self._uses: Counter[Resident] = Counter()
        self._passes: Counter[int] = Counter()
        # Those that want room, in the order in which they came.
        self._waiting: list[object] = []
        self._folder: Path | None = None
        self._making = Lock()

    # -- names ---------------------------------------------------------------------------------------------------------

    def __getitem__(self, name: str) -> Resident:
        return self._residents[name]

    def __iter__(self) -> Iterator[str]:
        with self._changed:
            return iter(list(self._residents))

    def values(self) -> ValuesView[Resident]:
        with self._changed:
            return dict(self._residents).values()

    def __len__(self) -> int:
        return len(self._residents)

    def __contains__(self, name: object) -> bool:
        return name in self._residents

    def named(self, name: str) -> Resident:
        """What a name stands for.

        Raises:
            AdapterError: nothing; the nearest names are listed.
        """
        return self.lease([name])[name]

    def lease(self, names: Iterable[str]) -> Lease:
        """What these names stand for at this moment, all of them at once.

        Raises:
            AdapterError: one of them stands for nothing; the nearest names are listed.
        """
        with self._changed:
            found = {}
            for name in names:
                if name not in self._residents:
                    raise AdapterError(f"no adapter is named {name!r}", expected=nearest(name, self._residents))
                found[name] = self._residents[name]
            return Lease(found, self._merged)

    @property
    def merged(self) -> Merged | None:
        """What is in the backbone's weights."""
        return self._merged

    def pinned(self, name: str) -> bool:
        """Whether an adapter is never unloaded."""
        return name in self._pinned

    @contextmanager
    def reserved_name(self, name: str) -> Iterator[None]:
        """Inside, a new name is taken, and stands for nothing yet.

        Raises:
            AdapterError: the name is taken.
        """
        with self._changed:
            if name in self._residents or name in self._coming:
                raise AdapterError(
                    f"an adapter named {name!r} is already on the model",
                    expected="another name, or replace(), or remove() first",
                )
            self._coming.add(name)
        try:
            yield
        finally:
            with self._changed:
                self._coming.discard(name)

    @contextmanager
    def room(self, resident: Resident, name: str, *, leaving: Resident | None = None) -> Iterator[None]:
        """Inside, an adapter is loaded that is about to be put under a name.

        Args:
            leaving: what the name stands for until then; None: nothing.

        Raises:
            AdapterError: there is no room for it beside those that stay.
        """
        self._reserve([resident], what=f"adapter {name!r}", leaving=leaving)
        try:
            if isinstance(resident, Version):
                resident.load()
            yield
        finally:
            self._give_back([resident])

    def put(
        self, name: str, resident: Resident, *, pinned: bool | None = False, replaced: Resident | None = None
    ) -> None:
        """Let a name stand for an adapter for which there is room.

        Args:
            pinned: whether it is never unloaded; None: as it was for what is replaced.
            replaced: what the name has to stand for until now; None: nothing.

        Raises:
            AdapterError: the name stands for something else by now. Nothing has changed then.
        """
        with self._changed:
            self._check(name, replaced)
            if pinned is None:
                pinned = name in self._pinned and not self._residents[name].trainable
            self._residents[name] = resident
            self._standing.add(resident)
            self._pinned.discard(name)
            if pinned or resident.trainable:
                self._pinned.add(name)
            if replaced is not None:
                self._standing.discard(replaced)
                self._tidy(replaced)

    def require_unmerged(self, name: str) -> None:
        """Refuse to change what is merged.

        Raises:
            AdapterError: the adapter of that name is.
        """
        merged = self._merged
        if merged is not None and merged.name == name:
            raise AdapterError(f"adapter {name!r} is merged into the backbone's weights", expected="unmerge() first")

    def require_none_merged(self) -> None:
        """Refuse to merge another one.

        Raises:
            AdapterError: one is merged.
        """
        merged = self._merged
        if merged is not None:
            raise AdapterError(f"adapter {merged.name!r} is merged already", expected="unmerge() first")

    def _check(self, name: str, expected: Resident | None) -> None:
        if self._residents.get(name) is not expected:
            raise AdapterError(
                f"adapter {name!r} was changed by another thread meanwhile", expected="one thread at a time, or a retry"
            )
        self.require_unmerged(name)

    def drop(self, name: str) -> Resident:
        """Let a name stand for nothing.

        Raises:
            AdapterError: it stands for nothing; or it is merged.
        """
        with self._changed:
            resident = self.named(name)
            self._check(name, resident)
            del self._residents[name]
            self._standing.discard(resident)
            self._pinned.discard(name)
            self._tidy(resident)
            self._changed.notify_all()
        return resident

    def clear(self) -> None:
        """Forget all names, in one step."""
        with self._changed:
            for name in list(self._residents):
                self.drop(name)

    def merge(self, merged: Merged | None) -> None:
        """Note what is in the backbone's weights from now on.

        Raises:
            AdapterError: another one is; or the name stands for something else by now.
        """
        with self._changed:
            if merged is not None:
                self.require_none_merged()
                self._check(merged.name, merged.version)
            self._merged = merged

    # -- memory --------------------------------------------------------------------------------------------------------

    def memory(self) -> Memory:
        """What is loaded."""
        with self._changed:
            loaded = {name: self._loaded[r] for name, r in self._residents.items() if r in self._loaded}
            unloaded = tuple(name for name in self._residents if name not in loaded)
            return Memory(loaded, unloaded, self.budget, shared_bytes(self._loaded), self._slabs.nbytes)

    @property
    def folder(self) -> Path | None:
        """Where adapters are kept on disk; None where there is no budget. It goes with the bank."""
        if self.budget is None:
            return None
        with self._making:
            if self._folder is None:
                self._folder = Path(mkdtemp(prefix="graftwork-"))
                finalize(self, shutil.rmtree, self._folder, ignore_errors=True)
            return self._folder

    @contextmanager
    def use(self, residents: Sequence[Resident]) -> Iterator[None]:
        """Inside, a pass uses these adapters: they are loaded, and stay so. Where the passes of other threads leave no
        room for them, those are waited for.

        Raises:
            AdapterError: together with those that stay they take more than the budget. Nothing has changed then.
        """
        self._reserve(residents, what=f"the {len(residents)} adapters of one pass")
        thread = get_ident()
        self._passes[thread] += 1
        try:
            for resident in residents:
                if isinstance(resident, Version):
                    resident.load()
            yield
        finally:
            self._passes[thread] -= 1
            if not self._passes[thread]:
                del self._passes[thread]
            self._give_back(residents)

    def slabs(self, residents: Sequence[Resident | None], make: Callable[[], Ops]) -> Ops:
        """The joined ops of the adapters of a pass. Those of finished adapters are made once and kept: the last
        ones, others as long as all take no more than the adapters themselves, and any only within the budget.

        Args:
            residents: by slot; in use.
            make: joins their ops.
        """
        if any(resident is not None and resident.trainable for resident in residents):
            return make()
        with self._changed:
            found = self._slabs.get(residents)
        if found is not None:
            return found
        # Tensors made in inference mode could not take part in a later pass with gradients.
        with torch.inference_mode(False), torch.no_grad():
            ops = laid_out(make())
        with self._changed:
            taken = bytes_of(self._loaded)
            left = None if self.budget is None else self.budget - taken
            self._slabs.put(residents, ops, room=taken if left is None else min(taken, left), most=left)
        return ops

    def unload(self) -> None:
        """Unload all that can be: the model was moved or cast. What is used next is loaded anew."""
        with self._changed:
            self._slabs.shrink(0)
            for resident in list(self._loaded):
                if isinstance(resident, Version):
                    resident.unload()
                    self._tidy(resident)

    def _reserve(self, residents: Sequence[Resident], *, what: str, leaving: Resident | None = None) -> None:
        """Count these as loaded and used, once there is room for them.

        Args:
            leaving: what goes when these have come.
        """
        if not residents:
            return
        with self._changed, self._in_line() as first:
            while True:
                self._refuse_too_many(residents, what, leaving)
                if first() and self._make_room(residents, leaving):
                    break
                if self._passes[get_ident()]:
                    raise AdapterError(
                        f"{what} and those that an unfinished pass of this thread uses take more than the budget of "
                        f"{self.budget:,} bytes",
                        expected="a larger budget, or no pass inside another one",
                    )
                self._changed.wait()
            for resident in residents:
                # Used last of all.
                self._loaded.pop(resident, None)
                self._loaded[resident] = resident.nbytes
                self._uses[resident] += 1

    @contextmanager
    def _in_line(self) -> Iterator[Callable[[], bool]]:
        """Stand in the line of those that want room; gives whether this one is the first of it.

        Who comes later does not go before: passes that follow one another would leave no room for ever. Only a thread
        that runs a pass already does, since others may wait for that pass.
        """
        place = object()
        if not self._passes[get_ident()]:
            self._waiting.append(place)
        try:
            yield lambda: place not in self._waiting or self._waiting[0] is place
        finally:
            if place in self._waiting:
                self._waiting.remove(place)
                self._changed.notify_all()

    def _refuse_too_many(self, residents: Sequence[Resident], what: str, leaving: Resident | None) -> None:
        """Refuse adapters that have no room beside those that stay, whatever passes run."""
        staying = {self._residents[name] for name in self._pinned} - {leaving}
        together = bytes_of(staying | {*residents})
        if self.budget is not None and together > self.budget:
            raise AdapterError(
                f"{what} and those that stay take {together:,} bytes, more than the budget of {self.budget:,}",
                expected="a larger budget, fewer pinned adapters, or fewer adapters in one pass",
            )

    def _make_room(self, residents: Sequence[Resident], leaving: Resident | None) -> bool:
        """Unload what was not used for longest, until these have room. Whether they have."""
        if self.budget is None:
            return True
        gone = None if leaving is None or self._uses[leaving] > 0 else leaving
        here = {*self._loaded, *residents} - {gone}
        total = bytes_of(here)
        staying = {self._residents[name] for name in self._pinned} | {*residents, leaving}
        self._slabs.shrink(max(0, self.budget - total))
        for resident in list(self._loaded):
            if total <= self.budget:
                break
            if resident not in staying and not self._uses[resident] and isinstance(resident, Version):
                resident.unload()
                del self._loaded[resident]
                here.discard(resident)
                total = bytes_of(here)
        return total <= self.budget

    def _give_back(self, residents: Sequence[Resident]) -> None:
        """A pass has ended that used these."""
        with self._changed:
            for resident in residents:
                self._uses[resident] -= 1
                self._tidy(resident)
            self._changed.notify_all()

    def _tidy(self, resident: Resident) -> None:
        """Count an adapter that no pass uses as what it is."""
        if self._uses[resident] > 0:
            return
        self._uses.pop(resident, None)
        if resident in self._standing and resident.loaded:
            self._loaded[resident] = resident.nbytes
        else:
            self._loaded.pop(resident, None)
            if isinstance(resident, Version) and resident not in self._standing:
                self._slabs.forget(resident)
                # A call that leased it may run again: it is loaded, and counted, for that pass.
                resident.unload()
