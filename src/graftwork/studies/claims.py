"""Who runs what: one process at a time holds a run, and what a dead one held is taken over.

A process on this machine holds a run by a lock, which the system takes from it when it dies. Of a process on another
machine a lock may say nothing: it shows that it lives by touching a file every few seconds.
"""

import os
import shutil
import tempfile
import threading
import time
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
def in_turn(folder: Path, what: str) -> Iterator[None]:
    """Inside, no other process is; waits until it is this one's turn.

    Args:
        folder: is there for as long as one is inside.
        what: is done.
    """
    while True:
        with claimed(folder, what) as claim:
            if claim is not None:
                claim.ended = True
                yield
                return
        time.sleep(0.05)


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
            _free(folder, owner)


def _free(folder: Path, dead: Owner) -> None:
    """Remove the note of a dead process. Another one may have taken the folder over since it was read: its note stays.

    The note is moved out of the way before it is read again, so that what is removed is what was read.
    """
    aside = Path(tempfile.mkdtemp(prefix="dead.", dir=folder))
    try:
        os.rename(folder / OWNER, aside / OWNER)
        if Owner.of(aside) != dead:
            with suppress(FileExistsError):  # a still later one has signed
                os.link(aside / OWNER, folder / OWNER)
    finally:
        shutil.rmtree(aside, ignore_errors=True)
