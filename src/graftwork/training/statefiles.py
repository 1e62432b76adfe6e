"""Files of cached states of many texts, one file per key, within a limit of bytes.

A file is in the format of safetensors, and is mapped into memory, so that only what is asked for is read. Its tensors:
`bounds` (N + 1), where the rows of each of N texts begin and end, and `states` (rows, n). It is written to another name
and renamed when it is whole: a killed run never leaves half of one under its name. What is read is checked.
"""

import json
import logging
import os
import tempfile
import time
from collections.abc import Iterable
from contextlib import suppress
from itertools import chain
from pathlib import Path
from zlib import crc32

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from graftwork.errors import first_line

logger = logging.getLogger(__name__)

SUFFIX, PARTIAL = ".safetensors", ".partial"

STALE = 3600.0
"""Seconds after which a file that is not whole and is not written to was left by a killed run."""

PIECE = 1 << 26
"""Bytes that are checked at once."""

NAMES = {torch.float64: "F64", torch.float32: "F32", torch.bfloat16: "BF16", torch.float16: "F16", torch.int64: "I64"}
"""Types as safetensors calls them."""


class DamagedError(Exception):
    """A file whose contents have changed."""


class StateFiles:
    """The files of states in a folder.

    Args:
        folder: made when something is written.
        limit: bytes that all of them may take together. Past it, those that were not used for longest are removed.
    """

    def __init__(self, folder: Path, limit: int) -> None:
        self.folder = folder
        self.limit = limit

    def read(self, key: str) -> tuple[Tensor, Tensor] | None:
        """The bounds and the states under a key; None when there are none.

        Raises:
            DamagedError: the file is not whole, or its contents have changed. It is removed.
        """
        file = self._file(key)
        try:
            found = _read(file)
        except FileNotFoundError:  # also when somebody has just removed it
            return None
        except DamagedError:
            file.unlink(missing_ok=True)
            raise
        except OSError as error:
            logger.warning("cached states in %s cannot be read and are computed again: %s", file, first_line(error))
            return None
        with suppress(OSError):  # the file may be another user's
            os.utime(file)
        return found

    def write(
        self, key: str, bounds: Tensor, width: int, dtype: torch.dtype, pieces: Iterable[Tensor]
    ) -> tuple[Tensor, Tensor]:
        """Store states under a key; gives what `read` does, which stays although the file may be removed by then.

        Args:
            bounds: (N + 1).
            width: n.
            pieces: the states, (rows, n) each, one after the other.

        Raises:
            OSError: the file cannot be written; FileNotFoundError: it was removed meanwhile.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        self._make_room(size_of(bounds, width, dtype))
        number, name = tempfile.mkstemp(dir=self.folder, prefix=f"{key}.", suffix=PARTIAL)
        try:
            with os.fdopen(number, "wb") as file:
                file.write(_header(bounds, width, dtype, 0))
                checksum = 0
                for piece in chain([bounds], pieces):
                    file.write(_bytes(piece))
                    checksum = crc32(_bytes(piece), checksum)
                file.seek(0)
                file.write(_header(bounds, width, dtype, checksum))
                file.flush()
                os.fsync(file.fileno())
            try:
                found = _read(Path(name))
            except DamagedError as error:
                raise OSError(f"what was written is not what is read back: {error}") from None
            with suppress(FileNotFoundError):  # removed by now: what is mapped stays
                os.replace(name, self._file(key))
            return found
        finally:
            Path(name).unlink(missing_ok=True)

    def _file(self, key: str) -> Path:
        return self.folder / f"{key}{SUFFIX}"

    def _make_room(self, size: int) -> None:
        """Remove what killed runs left, and then what was not used for longest, until there is room."""
        found = []
        for path in self.folder.iterdir():
            with suppress(FileNotFoundError):  # another run may be faster
                stat = path.stat()
                found.append((stat.st_mtime, stat.st_size, path))
        total = size + sum(own for _, own, _ in found)
        for last, own, path in sorted(found):
            left = path.suffix == PARTIAL and time.time() - last > STALE
            if left or (path.suffix == SUFFIX and total > self.limit):
                path.unlink(missing_ok=True)
                total -= own


def _read(file: Path) -> tuple[Tensor, Tensor]:
    """The bounds and the states of a file, mapped into memory.

    Raises:
        DamagedError: its contents have changed.
        OSError: it cannot be read.
    """
    try:
        with safe_open(file, "pt") as opened:
            bounds, states = opened.get_tensor("bounds"), opened.get_tensor("states")
            known = (opened.metadata() or {}).get("crc32")
    except SafetensorError as error:
        raise DamagedError(str(error)) from None
    if bounds[-1] != len(states) or known != _checksum(bounds, states):
        raise DamagedError("its contents are not those that were written")
    return bounds, states


def size_of(bounds: Tensor, width: int, dtype: torch.dtype) -> int:
    """The bytes of a file."""
    return len(_header(bounds, width, dtype, 0)) + _end(bounds, width, dtype)


def _end(bounds: Tensor, width: int, dtype: torch.dtype) -> int:
    """Of its tensors."""
    return bounds.nbytes + int(bounds[-1]) * width * dtype.itemsize


def _header(bounds: Tensor, width: int, dtype: torch.dtype, checksum: int) -> bytes:
    """As safetensors has it: its length, and JSON. Its length does not depend on the checksum."""
    # The library writes only tensors that are whole in memory; these come in pieces, which may be more than fit there.
    rows, end = int(bounds[-1]), _end(bounds, width, dtype)
    content = {
        "__metadata__": {"crc32": f"{checksum:08x}"},
        "bounds": {"dtype": NAMES[bounds.dtype], "shape": [len(bounds)], "data_offsets": [0, bounds.nbytes]},
        "states": {"dtype": NAMES[dtype], "shape": [rows, width], "data_offsets": [bounds.nbytes, end]},
    }
    text = json.dumps(content, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def _bytes(tensor: Tensor) -> memoryview:
    return tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data


def _checksum(*tensors: Tensor) -> str:
    found = 0
    for tensor in tensors:
        whole = _bytes(tensor)
        for start in range(0, len(whole), PIECE):
            found = crc32(whole[start : start + PIECE], found)
    return f"{found:08x}"
