"""Tensors of an adapter that is resident: in memory, or in a file of our own that is checked when it is read."""

import hashlib
from collections.abc import Mapping
from pathlib import Path
from weakref import finalize

from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from graftwork.errors import AdapterError


class Stored:
    """Tensors by name, which nobody else can change.

    Args:
        tensors: on the CPU; they are kept as they are.
        folder: where they are kept in a file; None keeps them in memory.

    Raises:
        AdapterError: the file cannot be written.
    """

    def __init__(self, tensors: Mapping[str, Tensor], folder: Path | None = None) -> None:
        self._tensors: Mapping[str, Tensor] | None = tensors
        self._file: Path | None = None
        self._digest = b""
        if folder is not None:
            self._spill(folder)

    def tensors(self) -> Mapping[str, Tensor]:
        """The tensors.

        Raises:
            AdapterError: their file is gone or has changed.
        """
        if self._tensors is not None:
            return self._tensors
        assert self._file is not None
        try:
            content = self._file.read_bytes()
        except OSError as error:
            raise AdapterError(
                f"an adapter's tensors were written to {str(self._file)!r}, which cannot be read: {error.strerror}",
                expected="a file that stays in place while the adapter is on the model",
                change="remove() the adapter and add it again; and leave the folder alone, or take a model without a "
                "budget, which needs none",
            ) from error
        try:
            if _digest(content) != self._digest:
                raise SafetensorError("its content has changed")
            return load(content)
        except SafetensorError as error:
            raise AdapterError(
                f"an adapter's tensors were written to {str(self._file)!r}, which has changed since: {error}",
                expected="a file that only this model writes to",
                change="remove() the adapter and add it again; and leave the folder alone, or take a model without a "
                "budget, which needs none",
            ) from error

    def _spill(self, folder: Path) -> None:
        """Move the tensors into a file of a folder. It goes with this object."""
        assert self._tensors is not None
        content = save({name: tensor.contiguous() for name, tensor in self._tensors.items()})
        file = folder / f"{id(self):x}.safetensors"
        try:
            with file.open("xb") as opened:
                opened.write(content)
        except OSError as error:
            file.unlink(missing_ok=True)
            raise AdapterError(
                f"the tensors of an adapter cannot be written to {str(file)!r}: {error.strerror}",
                expected=f"room for {len(content):,} bytes there",
                change="the folder for temporary files ($TMPDIR), or a model without a budget",
            ) from error
        finalize(self, file.unlink, missing_ok=True)
        self._digest, self._file, self._tensors = _digest(content), file, None


def _digest(content: bytes) -> bytes:
    return hashlib.blake2b(content, digest_size=16).digest()
