"""What a checkpoint holds, and where in its files: from headers alone, before anything heavy is imported.

A file of safetensors has the length of its header in 8 bytes, the header as JSON, and the numbers
(https://huggingface.co/docs/safetensors). Pickled files are read by torch with `weights_only`.
"""

import json
import struct
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from math import prod
from pathlib import Path
from typing import Any

from graftwork.errors import WeightsError
from graftwork.folders import resolved_path

SIZES: Mapping[str, int] = {
    **{"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "F8_E4M3": 1, "F8_E5M2": 1},
    **{"I64": 8, "I32": 4, "I16": 2, "I8": 1, "U8": 1, "BOOL": 1, "U16": 2, "U32": 4, "U64": 8},
}
"""Types of numbers, as safetensors calls them -> bytes of one."""

FLOATING = frozenset({"F64", "F32", "F16", "BF16", "F8_E4M3", "F8_E5M2"})

LONGEST_HEADER = 100 * 2**20
"""Bytes of a header, as safetensors itself bounds it."""

SAFETENSORS, INDEX = "model.safetensors", "model.safetensors.index.json"
PICKLED, PICKLED_INDEX = "pytorch_model.bin", "pytorch_model.bin.index.json"

LAYOUTS = (INDEX, SAFETENSORS, PICKLED_INDEX, PICKLED)
"""The files that can say where the weights of a folder are, in the order in which they are looked for."""

ADAPTERS = {"adapter.json": "graftwork", "adapter_config.json": "peft"}
"""The files by which adapters are known -> whose they are."""


@dataclass(frozen=True)
class Entry:
    """Where a tensor lies.

    Attributes:
        file: the file.
        dtype: type of its numbers, as safetensors calls it.
        shape: its shape.
        offset: byte of the file at which its numbers begin; None: the file is pickled.
    """

    file: Path
    dtype: str
    shape: tuple[int, ...]
    offset: int | None = None

    @property
    def numel(self) -> int:
        """Number of numbers."""
        return prod(self.shape)

    @property
    def nbytes(self) -> int:
        """Size in bytes."""
        return self.numel * SIZES[self.dtype]

    @property
    def floating(self) -> bool:
        """Whether arithmetic acts on it."""
        return self.dtype in FLOATING


@dataclass(frozen=True)
class Checkpoint:
    """A folder of a Hugging Face model, or a single file of tensors.

    Attributes:
        path: the folder or file.
        entries: where each tensor lies, by name.
        config: what config.json says; empty for a file.
    """

    path: Path
    entries: Mapping[str, Entry]
    config: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def read(cls, path: str | Path) -> "Checkpoint":
        """Read the headers.

        Raises:
            WeightsError: there is no checkpoint, a file is damaged or lacks tensors, or it is quantised.
        """
        where = Path(path).expanduser()
        if where.is_file():
            return cls(Path(resolved_path(where)), _entries_of(where))
        if not where.is_dir():
            where = _carried(str(path))
        where = Path(resolved_path(where))
        for name, whose in ADAPTERS.items():
            if (where / name).is_file():
                raise WeightsError(
                    f"{str(where)!r} is an adapter of {whose}, whose tensors are not weights of a model",
                    expected="a folder with config.json and weights, or a .safetensors file",
                )
        found = next((where / name for name in LAYOUTS if (where / name).is_file()), None)
        if found is None:
            raise WeightsError(
                f"{str(where)!r} holds no weights", expected=f"a folder with {', '.join(LAYOUTS[:3])} or {LAYOUTS[3]}"
            )
        entries = _indexed(found) if found.name in (INDEX, PICKLED_INDEX) else _entries_of(found)
        config = _json(where / "config.json") if (where / "config.json").is_file() else {}
        if "quantization_config" in config:
            raise WeightsError(
                f"the weights in {str(where)!r} are quantised (quantization_config in config.json)",
                expected="weights as floating-point numbers",
            )
        return cls(where, entries, config)

    @property
    def name(self) -> str:
        """The last part of its path."""
        return self.path.name

    @property
    def nbytes(self) -> int:
        """Bytes of all its tensors."""
        return sum(entry.nbytes for entry in self.entries.values())

    @property
    def vocab_size(self) -> int | None:
        """Number of tokens, where the configuration says it."""
        texts = (self.config, self.config.get("text_config") or {})
        return next((int(own["vocab_size"]) for own in texts if own.get("vocab_size")), None)

    @property
    def labels(self) -> tuple[str, ...] | None:
        """The labels of its head in the order of their ids, where the configuration names them."""
        named = self.config.get("id2label")
        if not isinstance(named, Mapping):
            return None
        return tuple(str(named[key]) for key in sorted(named, key=int))

    @cached_property
    def alike(self) -> list[tuple[str, ...]]:
        """Names of tensors that may be one tied tensor, stored more than once: over the vocabulary, of one shape and
        type. Whether they are is seen from their numbers."""
        vocabulary = self.vocab_size
        groups: dict[tuple[Any, ...], list[str]] = {}
        for name, entry in self.entries.items():
            if vocabulary is not None and entry.floating and entry.shape[:1] == (vocabulary,):
                groups.setdefault((entry.shape, entry.dtype), []).append(name)
        return [tuple(names) for names in groups.values() if len(names) > 1]


def _carried(name: str) -> Path:
    """The folder of a backbone that a Python package carries."""
    from graftwork.backbones.checkpoints import EMBEDDED, source_of

    if name in EMBEDDED:
        return Path(source_of(name))
    hub = f"; to use {name!r} of the hub, download it first: hf download {name}" if name.count("/") == 1 else ""
    raise WeightsError(
        f"{name!r} does not exist{hub}", expected=f"a folder, a .safetensors file, or {' or '.join(EMBEDDED)}"
    )


def _entries_of(file: Path) -> dict[str, Entry]:
    """Where the tensors of one file lie."""
    if file.suffix in (".bin", ".pt", ".pth"):
        return _pickled_entries(file)
    try:
        size = file.stat().st_size
        with file.open("rb") as opened:
            length = struct.unpack("<Q", opened.read(8))[0]
            if length > min(size - 8, LONGEST_HEADER):
                raise ValueError("its header ends behind it")
            header = json.loads(opened.read(length))
        return {name: _entry(file, own, 8 + length, size) for name, own in header.items() if name != "__metadata__"}
    except OSError as error:
        raise WeightsError(f"{file} cannot be read: {error.strerror}") from error
    except (ValueError, KeyError, TypeError, AttributeError, struct.error) as error:
        raise WeightsError(
            f"{file} is damaged or is not a safetensors file: {error}", expected="a file as safetensors writes it"
        ) from error


def _entry(file: Path, own: Mapping[str, Any], start: int, size: int) -> Entry:
    first, last = own["data_offsets"]
    if own["dtype"] not in SIZES:
        raise ValueError(f"it has numbers of type {own['dtype']}")
    entry = Entry(file, own["dtype"], tuple(own["shape"]), start + first)
    if last - first != entry.nbytes or start + last > size:
        raise ValueError("it ends before its tensors, or has tensors of another size than their shapes'")
    return entry


def _pickled_entries(file: Path) -> dict[str, Entry]:
    import torch

    from graftwork.arithmetic.values.dtypes import name_of
    from graftwork.backbones.checkpoints import UNREADABLE

    try:
        held = torch.load(file, map_location="meta", weights_only=True)
        return {name: Entry(file, name_of(tensor.dtype), tuple(tensor.shape)) for name, tensor in held.items()}
    except (*UNREADABLE, AttributeError) as error:
        raise WeightsError(
            f"{file} cannot be read as tensors by name (weights_only): {str(error).splitlines()[0]}",
            expected="a state dict, or the weights as safetensors",
        ) from error


def _indexed(index: Path) -> dict[str, Entry]:
    """Where the tensors of several files lie, of which an index says which has which."""
    places = _json(index).get("weight_map")
    if not isinstance(places, dict) or not all(isinstance(name, str) for name in places.values()):
        raise WeightsError(f"{index} has no weight_map", expected="the names of tensors with the files they are in")
    entries: dict[str, Entry] = {}
    for name in sorted({*places.values()}):
        if not (index.parent / name).is_file():
            raise WeightsError(f"{index} names the file {name!r}, which is not there", expected="all its files")
        found = _entries_of(index.parent / name)
        wrong = found.keys() ^ {key for key, file in places.items() if file == name}
        if wrong:
            raise WeightsError(
                f"{index} and {name} disagree on {min(wrong)!r}", expected="an index of the tensors that are there"
            )
        entries |= found
    return entries


def _json(file: Path) -> dict[str, Any]:
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise WeightsError(f"{file} cannot be read: {error}", expected="JSON") from error
    if not isinstance(content, dict):
        raise WeightsError(f"{file} holds no keys and values", expected="JSON with keys")
    return content
