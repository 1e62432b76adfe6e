"""Who runs what: one process at a time holds a run, and what a dead one held is taken over.

A process on this machine holds a run by a lock, which the system takes from it when it dies. Of a process on another
machine a lock may say nothing: it shows that it lives by touching a file every few seconds.
"""

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from graftwork.errors import InProgressError
from graftwork.folders import OWNER, HeldFolder, Owner

PULSE = "alive"

EVERY = 5.0
"""Seconds between two touches."""

STALE = 60.0
"""Seconds without a touch after which a process on another machine is taken for dead."""


@dataclass
class Claim:
    """A folder that this process works in alone.

    Attributes:
        folder: the folder.
        ended: what was to be done is done: the folder goes when it is let go of.
    """

    folder: Path
    ended: bool = False


@contextmanager
def claimed(working: Path, what: str) -> Iterator[Claim | None]:
    """Inside, no other process works in a folder; None where another one does.

    Args:
        working: the folder, which is made.
        what: is done in it.
    """
    for folder in (working, *working.glob(".*.tuning")):
        _take_from_the_dead(folder, working / PULSE)
    try:
        held = HeldFolder.take(working, what, patience=0.0)
    except InProgressError:
        yield None
        return
    claim = Claim(working)
    try:
        with _alive(working / PULSE):
            yield claim
    finally:
        if claim.ended:
            held.remove()
        else:
            held.release()


@contextmanager
def _alive(file: Path) -> Iterator[None]:
    """Inside, a file is touched every few seconds."""
    ended = threading.Event()
    file.touch()

    def touch() -> None:
        while not ended.wait(EVERY):
            with suppress(OSError):
                os.utime(file)

    thread = threading.Thread(target=touch, name="alive", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def _take_from_the_dead(folder: Path, pulse: Path) -> None:
    """Where a process on another machine holds a folder and has not shown for long that it lives, free it."""
    owner = Owner.of(folder)
    if owner is None or not owner.elsewhere:
        return
    with suppress(OSError):
        # Both times are the file system's: the machines' clocks may differ.
        now = folder / f"now.{os.getpid()}"
        now.touch()
        silent = now.stat().st_mtime - (pulse.stat().st_mtime if pulse.is_file() else 0.0)
        now.unlink()
        if silent > STALE:
            (folder / OWNER).unlink(missing_ok=True)
