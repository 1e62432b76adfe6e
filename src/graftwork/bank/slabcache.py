"""The slab cache: the joined ops of several adapters, kept for the next pass over the same ones."""

from collections.abc import Sequence

from graftwork.bank.resident import Resident
from graftwork.ops.op import Ops
from graftwork.ops.slabs import nbytes

Slots = tuple[Resident | None, ...]
"""Finished adapters by slot; None for a slot of the backbone alone."""


class SlabCache:
    """Slabs by the adapters in their slots. Those that were not used for longest go first. The caller locks."""

    def __init__(self) -> None:
        self._found: dict[Slots, tuple[Ops, int]] = {}

    @property
    def nbytes(self) -> int:
        """What all slabs take, in bytes."""
        return sum(size for _, size in self._found.values())

    def get(self, residents: Sequence[Resident | None]) -> Ops | None:
        """Slabs of these adapters, which are now those used last; None where there are none."""
        found = self._found.pop(tuple(residents), None)
        if found is None:
            return None
        self._found[tuple(residents)] = found
        return found[0]

    def put(self, residents: Sequence[Resident | None], ops: Ops, *, room: int, most: int | None) -> None:
        """Keep slabs.

        Args:
            room: bytes that all slabs may take; the newest are kept even if they take more.
            most: bytes that even these may not exceed.
        """
        size = nbytes(ops)
        if most is None or size <= most:
            self.shrink(max(0, room - size))
            self._found[tuple(residents)] = ops, size

    def shrink(self, room: int) -> None:
        """Let slabs go until the others take no more than so many bytes."""
        for residents in list(self._found):
            if self.nbytes <= room:
                break
            del self._found[residents]

    def forget(self, resident: Resident) -> None:
        """Let go the slabs that have this adapter."""
        for residents in [own for own in self._found if resident in own]:
            del self._found[residents]
