"""What long computations keep on the way, so that an interrupted one goes on where it was.

A file is written whole or not at all, and says what it is of: what belongs to another computation is not taken up.
"""

import json
import logging
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from hashlib import blake2b
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from graftwork.errors import InterruptedRunError, OutputError
from graftwork.folders import HeldFolder, make_folder, write_whole, writing

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
        with writing(self.file):
            write_whole(self.file, save(held, metadata={"state": state}))
        self._written = time.monotonic()


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
