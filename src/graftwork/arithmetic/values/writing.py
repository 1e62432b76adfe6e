"""Tensors written as safetensors in pieces, by several threads: a file is as long as it will be from the beginning, and
each piece goes to its place.
"""

import errno
import json
import os
from collections.abc import Mapping, Sequence
from math import isfinite, prod
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from graftwork.arithmetic.values.checkpoint import INDEX, SAFETENSORS, SIZES
from graftwork.arithmetic.values.dtypes import name_of
from graftwork.arithmetic.values.roles import role_of
from graftwork.arithmetic.values.running import Piece, counted_bytes, in_threads, pieces_of
from graftwork.arithmetic.values.sources import Source
from graftwork.errors import OutputError, WeightsError
from graftwork.folders import make_folder, writing
from graftwork.training.display import Display

SHARD = 5 * 10**9
"""Bytes of tensors in one file of several."""


class Place(NamedTuple):
    """Where a tensor is to be written.

    Attributes:
        file: the file.
        offset: byte of the file at which its numbers begin.
        dtype: their type.
    """

    file: Path
    offset: int
    dtype: torch.dtype


def write_source(
    source: Source, dtypes: Mapping[str, torch.dtype], place: Path, *, display: Display, shard: int = SHARD
) -> None:
    """Write all tensors of a source.

    Args:
        source: the source.
        dtypes: the type of each in the file.
        place: a file; or a folder, which gets one file, or several with an index.
        display: where a bar shows how far it is.
        shard: most bytes of tensors in one file of several.

    Raises:
        OSError: they cannot be written.
        WeightsError: a tensor cannot be read, or has numbers that are not finite in its type.
    """
    source.prepare(display)
    places = _laid_out(source, dtypes, place, shard)
    units = {name: source.unit(name) for name in places}
    tasks = pieces_of({name: source.size(name) for name in places}, units, arrays=source.arrays + 1)

    def write(piece: Piece) -> int:
        own = places[piece.name]
        numbers = _in_type(source.read(piece), own.dtype, piece.name)
        raw: Any = numbers.view(torch.uint8).numpy()
        content = memoryview(raw)
        with own.file.open("r+b", buffering=0) as file:
            file.seek(own.offset + piece.start * numbers.element_size())
            while len(content):
                content = content[file.write(content) :]
        return numbers.nbytes

    total = sum(source.size(name) * own.dtype.itemsize for name, own in places.items())
    with counted_bytes(display, "writing", total) as advance:
        for count in in_threads(write, tasks):
            advance(count)


def write_file(
    source: Source, dtypes: Mapping[str, torch.dtype], file: Path, *, overwrite: bool, display: Display
) -> None:
    """Write all tensors of a source to one file, which appears when it is complete.

    Raises:
        OutputError: it exists and `overwrite` is off, or it cannot be written.
        WeightsError: as `write_source`.
    """
    if file.is_dir() or (file.exists() and not overwrite):
        raise OutputError(
            f"output {str(file)!r} exists already", expected="a file that does not exist", change="--output"
        )
    make_folder(file.parent)
    temporary = file.with_name(f".{file.name}")
    try:
        with writing(file):
            write_source(source, dtypes, temporary, display=display)
            with temporary.open("rb") as written:
                os.fsync(written.fileno())
            os.replace(temporary, file)
    finally:
        temporary.unlink(missing_ok=True)


def _laid_out(source: Source, dtypes: Mapping[str, torch.dtype], place: Path, shard: int) -> dict[str, Place]:
    """Where each tensor goes, after the files have been made as long as they will be."""
    # The largest numbers first, so that all lie at multiples of their size; then by name, as safetensors writes them.
    names = sorted(source.shapes, key=lambda name: (-dtypes[name].itemsize, name))
    if not place.is_dir():
        return _made(place, names, source, dtypes)
    shards: list[list[str]] = [[]]
    held = 0
    for name in names:
        size = source.size(name) * dtypes[name].itemsize
        if shards[-1] and held + size > shard:
            shards.append([])
            held = 0
        shards[-1].append(name)
        held += size
    if len(shards) == 1:
        return _made(place / SAFETENSORS, names, source, dtypes)
    files = [f"model-{i:05}-of-{len(shards):05}.safetensors" for i in range(1, len(shards) + 1)]
    found: dict[str, Place] = {}
    for file, own in zip(files, shards, strict=True):
        found |= _made(place / file, own, source, dtypes)
    total = sum(source.size(name) * dtypes[name].itemsize for name in names)
    index = {"metadata": {"total_size": total}, "weight_map": {name: own.file.name for name, own in found.items()}}
    (place / INDEX).write_text(json.dumps(index, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    return found


def _made(file: Path, names: Sequence[str], source: Source, dtypes: Mapping[str, torch.dtype]) -> dict[str, Place]:
    """Make a file with its header, and room for the numbers."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    ends: dict[str, int] = {}
    end = 0
    for name in names:
        dtype = name_of(dtypes[name])
        ends[name], end = end, end + prod(source.shapes[name]) * SIZES[dtype]
        header[name] = {"dtype": dtype, "shape": list(source.shapes[name]), "data_offsets": [ends[name], end]}
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    start = 8 + len(text)
    with file.open("wb") as opened:
        opened.write(len(text).to_bytes(8, "little") + text)
        opened.flush()
        opened.truncate(start + end)
        _reserve(opened.fileno(), start + end)
    return {name: Place(file, start + ends[name], dtypes[name]) for name in names}


def _reserve(file: int, size: int) -> None:
    """Take the room on the disk now, where the system can: a full disk is then known before anything is computed."""
    if not hasattr(os, "posix_fallocate"):
        return
    try:
        os.posix_fallocate(file, 0, size)
    except OSError as error:
        if error.errno not in (errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS):
            raise


def _in_type(numbers: Tensor, dtype: torch.dtype, name: str) -> Tensor:
    """Numbers rounded to a type, and refused where they do not fit it."""
    result = numbers.to(dtype)
    if dtype.is_floating_point and role_of(name, floating=True) != "buffer":
        wide = result if dtype.itemsize > 1 else result.float()  # types of eight bits have no comparison of their own
        # A finite sum has finite terms only; others are looked at one by one.
        if not isfinite(float(wide.sum(dtype=wide.dtype if dtype.itemsize > 4 else torch.float32))) and not bool(
            torch.isfinite(wide).all()
        ):
            finite = bool(torch.isfinite(numbers).all())
            short = str(dtype).removeprefix("torch.")
            raise WeightsError(
                f"{name} holds numbers too large for {short}" if finite else f"{name} holds NaN or infinity",
                expected="finite numbers",
                change="--dtype (float32)" if finite else "the operands",
            )
    return result
