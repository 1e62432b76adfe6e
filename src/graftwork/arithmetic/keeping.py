"""What long computations keep on the way, so that an interrupted one goes on where it was.

A file is written whole or not at all, and says what it is of: what belongs to another computation is not taken up.
"""

import json
import logging
import time
from collections.abc import Mapping
from hashlib import blake2b
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from graftwork.folders import make_folder, write_whole, writing

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
        self.file = None if folder is None else folder / f"{name}.kept"
        text = json.dumps(of, sort_keys=True, default=str)
        self.key = blake2b(text.encode(), digest_size=16).hexdigest()
        self._written = time.monotonic()

    def read(self) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
        """The tensors and plain values that were kept last; None where there are none of this computation."""
        if self.file is None or not self.file.is_file():
            return None
        try:
            content = self.file.read_bytes()
            tensors = load(content)
            length = int.from_bytes(content[:8], "little")
            said = json.loads(json.loads(content[8 : 8 + length])["__metadata__"]["state"])
        except (OSError, ValueError, KeyError, SafetensorError) as error:
            logger.warning("%s is damaged, and is computed again: %s", self.file, error)
            return None
        return (tensors, said["values"]) if said["key"] == self.key else None

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
        with writing(self.file):
            write_whole(self.file, save(held, metadata={"state": state}))
        self._written = time.monotonic()
