"""Folders that several processes use: one process at a time holds a folder, and files are written completely or not at
all.

A held folder has a file on which the system keeps a lock for as long as the process lives, however it ends, and beside
it a note of which process that is. What a killed process left is known by its free lock.
"""

import ctypes
import json
import logging
import os
import re
import shutil
import socket
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path

import psutil
from filelock import FileLock, Timeout

from graftwork.errors import InProgressError, OutputError, first_line

LOCK, OWNER = "lock", "owner.json"
"""The files of a held folder: the one that is locked, and the one that says by whom."""

NEW, OLD = "new", "old"
"""In a temporary folder: what is to appear, and what stood in its place where two folders cannot be exchanged."""

PATIENCE = 2.0
"""Seconds in which a process that has just taken a folder is waited for, until it has said who it is."""

CLOCK = 2.0
"""Seconds by which two readings of when a process began may differ: the system's clock is set now and then."""

VANISHING = 50
"""How often a folder is made again that is removed at the same time: one that is empty and not locked yet is taken for
a killed process's."""

TORCH_WRITER = ("inline_container", "PyTorchStreamWriter", "iostream")
"""What torch says of a file that it could not write to its end, which it does not raise as an OSError."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Owner:
    """The process that holds a folder.

    Attributes:
        began: when the process began, in seconds since 1970: a number is given to another process when one has ended.
        since: when it took the folder, as ISO 8601 has it.
    """

    pid: int
    host: str
    began: float
    since: str

    @classmethod
    def this_process(cls) -> "Owner":
        now = datetime.now().astimezone().isoformat(timespec="seconds")
        return cls(os.getpid(), socket.gethostname(), psutil.Process().create_time(), now)

    @classmethod
    def of(cls, folder: Path) -> "Owner | None":
        """Who holds a folder, or held it when it was killed; None when nobody has said so."""
        try:
            return cls(**json.loads((folder / OWNER).read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError):
            return None

    @property
    def elsewhere(self) -> bool:
        """Whether it is on another host, where it cannot be looked for."""
        return self.host != socket.gethostname()

    @property
    def running(self) -> bool:
        """Whether it runs on this host."""
        if self.elsewhere:
            return False
        try:
            began: float = psutil.Process(self.pid).create_time()
        except psutil.Error:
            return False
        return abs(began - self.began) < CLOCK

    def __str__(self) -> str:
        this = " (this one)" if self.running and self.pid == os.getpid() else ""
        return f"process {self.pid}{this} on host {self.host}, since {self.since}"


class HeldFolder:
    """A folder that this process holds; see `take`."""

    def __init__(self, folder: Path, lock: FileLock, made: Sequence[Path]) -> None:
        self.folder, self._lock, self._made = folder, lock, made
        self._before: bytes | None = None

    @classmethod
    def take(cls, folder: Path, what: str, *, patience: float = PATIENCE) -> "HeldFolder":
        """Hold a folder, which is made when it is not there.

        Args:
            what: is done in it, for the error.
            patience: seconds in which a process that holds it and has not said who it is is waited for.

        Raises:
            InProgressError: it is held already, by another process or by a thread of this one; or a process on another
                host held it and has not let go.
            OutputError: it cannot be made, written or locked.
        """
        made = make_folder(folder)
        lock = FileLock(folder / LOCK, thread_local=False)
        deadline = time.monotonic() + patience
        while not _acquired(lock, folder):
            owner = Owner.of(folder)
            if owner is not None and not owner.elsewhere and not owner.running:
                owner = None  # it was killed, and another process has just taken its place
            if owner is not None or time.monotonic() >= deadline:
                who = "" if owner is None else f": {owner}"
                raise InProgressError(
                    f"{what} is in progress{who}",
                    expected="one at a time",
                    change="--output, or wait until it has ended",
                )
            time.sleep(0.02)
            make_folder(folder)  # who held it may have removed it
        owner = Owner.of(folder)
        if owner is not None and owner.elsewhere:
            lock.release()
            raise InProgressError(
                f"{what} may be in progress: {owner}; this host cannot tell whether it still runs",
                expected="one at a time",
                change=f"if it no longer runs, remove the file {str(folder / OWNER)!r}",
            )
        held = cls(folder, lock, made)
        try:
            held._sign()
        except BaseException:
            empty = {path.name for path in folder.iterdir()} <= {LOCK, OWNER, f".{OWNER}"}
            held.remove() if empty else held.release()
            raise
        return held

    def _sign(self) -> None:
        """Say who holds it."""
        file = self.folder / OWNER
        with writing(file):
            self._before = file.read_bytes() if file.is_file() else None
            write_whole(file, json.dumps(asdict(Owner.this_process())))

    def restore(self) -> None:
        """Let go of it, and say what was said before of who holds it."""
        if self._before is None:
            self.release()
            return
        try:
            write_whole(self.folder / OWNER, self._before)
        except OSError as error:
            logger.warning("%s cannot be written: %s", self.folder / OWNER, first_line(error))
        finally:
            self._lock.release()

    def release(self) -> None:
        """Let go of it. What is in it stays."""
        try:
            (self.folder / OWNER).unlink(missing_ok=True)
        except OSError as error:
            logger.warning("%s cannot be removed: %s", self.folder / OWNER, first_line(error))
        finally:
            self._lock.release()

    def clear(self, last: Sequence[str] = ()) -> None:
        """Remove all that is in it.

        Args:
            last: names of files that go when all others have gone, in this order.
        """
        names = {path.name for path in self.folder.iterdir()} - {LOCK, OWNER, *last}
        for name in (*sorted(names), *last):
            _remove(self.folder / name)

    def remove(self, last: Sequence[str] = ()) -> None:
        """Remove it, with the folders around it that were made for it and are empty, and let go of it. What cannot be
        removed stays, and is told.

        Args:
            last: see `clear`.
        """
        try:
            self.clear(last)
            # While it is locked: who waits for it then finds it gone, and makes another one in its place.
            (self.folder / OWNER).unlink(missing_ok=True)
            (self.folder / LOCK).unlink(missing_ok=True)
            for folder in (self.folder, *self._made):
                with suppress(OSError):  # another process may work in it by now
                    folder.rmdir()
        except OSError as error:
            logger.warning("%s cannot be removed: %s", self.folder, first_line(error))
        finally:
            self._lock.release()


def _acquired(lock: FileLock, folder: Path) -> bool:
    """Whether a lock could be had."""
    try:
        lock.acquire(blocking=False)
    except Timeout:
        return False
    except (FileNotFoundError, FileExistsError):  # who held the folder has just removed it, or removes it now
        return False
    except OSError as error:
        raise OutputError(
            f"folder {str(folder)!r} cannot be locked: {error.strerror}",
            expected="a file system with locks (flock)",
            change="--output",
        ) from error
    return True


def _remove(path: Path) -> None:
    """Remove a file or folder. Half of a folder never stands under its name."""
    if path.is_symlink() or not path.is_dir():
        path.unlink(missing_ok=True)
        return
    going = path if path.name.startswith("gone.") else path.with_name(f"gone.{path.name}")
    if going != path:
        shutil.rmtree(going, ignore_errors=True)
        path.rename(going)
    shutil.rmtree(going)


def resolved_path(path: Path) -> str:
    """A path that means the same from any current folder. Links within the last name are kept: its ending says of what
    kind it is."""
    path = path.expanduser()
    return str(path.resolve() if path.name in ("", "..") else path.parent.resolve() / path.name)


# -- writing ---------------------------------------------------------------------------------------------------------


@contextmanager
def writing(path: Path, *, change: str = "--output, or make room on the disk") -> Iterator[None]:
    """Inside, what the system says of writing is an error that names the path.

    Raises:
        OutputError: it cannot be written.
    """
    try:
        yield
    except OSError as error:
        raise OutputError(f"{str(path)!r} cannot be written: {error.strerror or error}", change=change) from error
    except RuntimeError as error:
        if not any(word in str(error) for word in TORCH_WRITER):
            raise
        raise OutputError(
            f"{str(path)!r} cannot be written completely: the disk may be full, or a file too large", change=change
        ) from error


def make_folder(folder: Path) -> list[Path]:
    """Make a folder that can be written, unless it is there already; gives what was made, the innermost first.

    Raises:
        OutputError: it cannot be made or written.
    """
    made = [path for path in (folder, *folder.parents) if not path.exists()]
    for last in (*[False] * VANISHING, True):
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except (FileExistsError, FileNotFoundError) as error:
            if last or folder.exists():
                raise _not_made(folder, error) from None
            continue  # another process has just removed it, or what it stands in
        except OSError as error:
            raise _not_made(folder, error) from None
        if os.access(folder, os.W_OK):
            return made
        if last or folder.exists():
            break
    raise OutputError(f"folder {str(folder)!r} cannot be written", change="--output")


def _not_made(folder: Path, error: OSError) -> OutputError:
    return OutputError(f"folder {str(folder)!r} cannot be created: {error.strerror}", change="--output")


def write_whole(file: Path, content: str | bytes) -> None:
    """Write a file that has its old content or the new one, also when the machine stops."""
    temporary = file.with_name(f".{file.name}")
    temporary.write_bytes(content.encode() if isinstance(content, str) else content)
    _sync(temporary)
    os.replace(temporary, file)
    _sync(file.parent)


@contextmanager
def replacing_folder(folder: Path, *, overwrite: bool = False) -> Iterator[Path]:
    """A new folder that becomes `folder` when the block ends well, and is removed when it does not. What killed
    processes left of theirs goes.

    Raises:
        OutputError: there is one and `overwrite` is off, or it cannot be written.
    """
    folder = folder.resolve()
    make_folder(folder.parent)
    sweep(folder)
    held = _temporary_for(folder)
    new = held.folder / NEW
    try:
        with writing(folder):
            new.mkdir()
            yield new
            for path in (*new.rglob("*"), new):
                _sync(path)
            _put(new, folder, held.folder / OLD, overwrite=overwrite)
            _sync(folder.parent)
    finally:
        held.remove()


def sweep(folder: Path) -> None:
    """Remove what killed processes left that were replacing a folder. If one was killed while the old one stood aside,
    it is put back."""
    ours = re.compile(rf"\.{re.escape(folder.name)}\.[a-z0-9_]{{8}}")  # as `tempfile` names them
    for path in folder.parent.iterdir():
        if not ours.fullmatch(path.name) or path.is_symlink() or not path.is_dir():
            continue
        if not (path / LOCK).is_file():
            with suppress(OSError):
                path.rmdir()  # an empty one was left before it could be locked; any other is not ours
            continue
        try:
            held = HeldFolder.take(path, f"a write to {str(folder)!r}", patience=0.0)
        except OutputError:
            continue
        with suppress(OSError):
            if not folder.exists():
                (path / OLD).rename(folder)
        held.remove()


def _temporary_for(folder: Path) -> HeldFolder:
    """A new folder beside another one, held."""
    while True:
        with writing(folder):
            path = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
        with suppress(InProgressError):  # another process has just taken it for a killed one's
            return HeldFolder.take(path, f"a write to {str(folder)!r}")


def _put(new: Path, folder: Path, aside: Path, *, overwrite: bool) -> None:
    """Give a new folder its name."""
    if not folder.exists() or not overwrite:
        try:
            new.rename(folder)
            return
        except OSError as error:
            if not folder.exists():
                raise
            if not overwrite:
                raise OutputError(
                    f"output {str(folder)!r} was written by another process meanwhile",
                    change="--output, or --overwrite to replace it",
                ) from error
    if not _exchange(new, folder):
        folder.rename(aside)
        try:
            new.rename(folder)
        except BaseException:
            aside.rename(folder)
            raise


def _exchange(new: Path, old: Path) -> bool:
    """Swap two folders in one step, where the system can (Linux's renameat2)."""
    here, exchange = -100, 2
    try:
        renameat2 = ctypes.CDLL(None, use_errno=True).renameat2
    except (AttributeError, OSError):
        return False
    return bool(renameat2(here, os.fsencode(new), here, os.fsencode(old), exchange) == 0)


def _sync(path: Path) -> None:
    """Have what was written, or renamed in a folder, on the disk."""
    if path.is_dir() and os.name != "posix":
        return
    number = os.open(path, os.O_RDONLY)
    try:
        os.fsync(number)
    finally:
        os.close(number)
