"""What long computations keep on the way, so that an interrupted one goes on where it was.

A file is written whole or not at all, and says what it is of: what belongs to another computation is not taken up.
"""

import gc
import json
import logging
import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from hashlib import blake2b
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from graftwork.errors import InterruptedRunError, OutputError
from graftwork.folders import HeldFolder, make_folder, writing

SUFFIX = ".kept"

EVERY = 30.0
"""Seconds between two writes."""

logger = logging.getLogger(__name__)


class Kept:
    """The state of one computation in a folder.

    Args:
        folder: where; None: nothing is kept.
        name: of the computation, a file's name.
        of: what it is of, as plain values: another computation has other ones.
    """

    def __init__(self, folder: Path | None, name: str, of: Mapping[str, Any]) -> None:
        self.file = None if folder is None else folder / f"{name}{SUFFIX}"
        text = json.dumps(of, sort_keys=True, default=str)
        self.key = blake2b(text.encode(), digest_size=16).hexdigest()
        self._written = time.monotonic()

    def read(self) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
        """The tensors and plain values that were kept last; None where there are none of this computation. The tensors
        are mapped from the file, and take no memory before they are read."""
        if self.file is None or not self.file.is_file():
            return None
        try:
            tensors, metadata = _mapped(self.file)
            said = json.loads(metadata["state"])
        except (OSError, ValueError, KeyError, SafetensorError) as error:
            logger.warning("%s is damaged, and is computed again: %s", self.file, error)
            return None
        if said["key"] != self.key:
            logger.warning("what is kept in %s is of another merge, and is computed again", self.file)
            return None
        return tensors, said["values"]

    def write(self, tensors: Mapping[str, Tensor], values: Mapping[str, Any], *, now: bool = False) -> None:
        """Keep a state; nothing where one was kept just before, unless `now`.

        Raises:
            OutputError: it cannot be written.
        """
        if self.file is None or (not now and time.monotonic() - self._written < EVERY):
            return
        state = json.dumps({"key": self.key, "values": dict(values)})
        held = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
        make_folder(self.file.parent)
        _write(self.file, held, {"state": state}, lasting=True)
        self._written = time.monotonic()


def put_by(folder: Path, name: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors on disk in the place of those in memory: the same ones, mapped from a file. They can be read as long as
    somebody holds them, also when the file has gone.

    Args:
        folder: where.
        name: of the file.
        tensors: by name.

    Raises:
        OutputError: they cannot be written.
    """
    release_memory()
    make_folder(folder)
    file = folder / f"{name}.tensors"
    _write(file, {own: tensor.detach().cpu().contiguous() for own, tensor in tensors.items()}, {}, lasting=False)
    return _mapped(file)[0]


def release_memory() -> None:
    """Have what nobody holds any more go now. The parts of a model, and of what watches it, hold each other, so that it
    would stay until Python looks for such circles: of several models that are read in turn, several."""
    gc.collect()


def _mapped(file: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """A file's tensors, of which nothing is read yet, and what it says of them."""
    with safe_open(file, framework="pt") as opened:
        return {name: opened.get_tensor(name) for name in opened.keys()}, opened.metadata() or {}  # noqa: SIM118 (it is no dict)


def _write(file: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str], *, lasting: bool) -> None:
    """Write tensors from where they lie, whole or not at all; also where the machine stops, if that is to last."""
    temporary = file.with_name(f".{file.name}")
    with writing(file):
        try:
            save_file(dict(tensors), temporary, metadata=dict(metadata))
        except SafetensorError as error:
            raise OutputError(
                f"{str(file)!r} cannot be written: {error}", change="--output, or make room on the disk"
            ) from error
        if lasting:
            with temporary.open("rb") as written:
                os.fsync(written.fileno())
        os.replace(temporary, file)


@contextmanager
def working_folder(output: Path, *, resume: bool, overwrite: bool) -> Iterator[Path]:
    """Inside, a folder beside an output in which a merge keeps how far it is (`.NAME.merging`). It goes when the block
    ends well; what was kept by an interrupted one stays.

    Args:
        output: where the result goes.
        resume: go on with an interrupted merge to the same output.
        overwrite: discard an interrupted one.

    Raises:
        OutputError: there is nothing to resume, or an interrupted merge that is neither to be resumed nor discarded;
            or another process merges to the same output.
        InterruptedRunError: the block was interrupted; says whether it can be resumed.
    """
    target = output.resolve()
    folder = target.parent / f".{target.name}.merging"
    begun = any(folder.glob(f"*{SUFFIX}"))
    if resume and not begun:
        raise OutputError(
            f"there is no interrupted merge to {str(output)!r}",
            expected=f"the folder {folder}",
            change="leave out --resume to begin a merge, or --output",
        )
    if begun and not resume and not overwrite:
        raise OutputError(
            f"an interrupted merge to {str(output)!r} is in {str(folder)!r}",
            change="--resume to go on with it, or --overwrite to start again",
        )
    held = HeldFolder.take(folder, f"a merge to {str(output)!r}")
    try:
        if not resume:
            held.clear()
        yield folder
    except BaseException as error:
        kept = any(folder.glob(f"*{SUFFIX}"))
        held.release() if kept else held.remove()
        if isinstance(error, KeyboardInterrupt):
            what = "what was computed so far is kept" if kept else "nothing is kept"
            raise InterruptedRunError(f"interrupted; {what}", resumable=kept) from error
        raise
    held.remove()
