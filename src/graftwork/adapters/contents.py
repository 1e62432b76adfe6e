"""What an adapter holds, as checksums and a digest.

A checksum is CRC-32: it finds every flipped bit and cut file, a changed file in all but one of 4·10⁹ cases, and takes
0.4 ms of a megabyte, which is read more often than anything else. It does not protect against deliberate changes. A
digest is BLAKE2b, and tells adapters with different contents apart.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from hashlib import blake2b
from math import prod
from typing import Any
from zlib import crc32

import torch
from torch import Tensor

FLOAT32 = 4
"""Bytes of a number: an adapter's tensors are float32."""


def checksum_of_json(content: Mapping[str, Any]) -> str:
    """Of plain values, whatever the order of their keys is; 8 hexadecimal digits."""
    return f"{crc32(_as_bytes(content)):08x}"


def checksum_of_tensors(tensors: Mapping[str, Tensor]) -> str:
    """Of names, types, shapes and numbers, whatever their order is; 8 hexadecimal digits."""
    found = 0
    for piece in _pieces(tensors):
        found = crc32(piece, found)
    return f"{found:08x}"


def size_of_file(shapes: Mapping[str, Sequence[int]]) -> int:
    """Size of `adapter.safetensors`, in bytes, for float32 tensors of these shapes, by name.

    The file has the length of its header in 8 bytes, the header, padded to a multiple of 8 bytes, and the numbers in
    the order of the names (https://huggingface.co/docs/safetensors).
    """
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, shape in sorted(shapes.items()):
        start, end = end, end + FLOAT32 * prod(shape)
        header[name] = {"dtype": "F32", "shape": list(shape), "data_offsets": [start, end]}
    length = len(json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode())
    return 8 + length + -length % 8 + end


def digest_of(content: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> str:
    """Of plain values and tensors; 32 hexadecimal digits."""
    digest = blake2b(_as_bytes(content), digest_size=16)
    for piece in _pieces(tensors):
        digest.update(piece)
    return digest.hexdigest()


def not_finite(tensors: Mapping[str, Tensor]) -> list[str]:
    """The names of the tensors that hold NaN or infinity."""
    ends = {name: _ends(t) for name, t in tensors.items() if t.is_floating_point() and t.numel()}
    if not ends:
        return []
    # One look at all of them: it costs as much as one at each.
    wide = torch.float64 if any(low.dtype == torch.float64 for low, _ in ends.values()) else torch.float32
    finite = torch.stack([end.to("cpu", wide) for pair in ends.values() for end in pair]).isfinite().view(-1, 2)
    return [name for name, own in zip(ends, finite.all(dim=1).tolist(), strict=True) if not own]


def misfits(expected: Mapping[str, Sequence[int]], found: Mapping[str, Sequence[int]]) -> list[str]:
    """How tensors differ from what they should be, by name and shape, as phrases."""
    wrong = [name for name in sorted(expected.keys() & found.keys()) if tuple(found[name]) != tuple(expected[name])]
    return [
        *(f"lacks {name}" for name in sorted(expected.keys() - found.keys())),
        *(f"has unknown {name}" for name in sorted(found.keys() - expected.keys())),
        *(f"{name} is {tuple(found[name])} instead of {tuple(expected[name])}" for name in wrong),
    ]


def first_few(problems: Sequence[str]) -> str:
    """At most five of them, and how many more there are."""
    return "; ".join(problems[:5]) + (f" and {len(problems) - 5} more" if len(problems) > 5 else "")


def _ends(tensor: Tensor) -> tuple[Tensor, Tensor]:
    """The smallest and the largest number, which are NaN when any is."""
    # Types of eight bits have no comparison of their own.
    found = torch.aminmax(tensor if tensor.element_size() > 1 else tensor.float())
    return found.min, found.max


def _as_bytes(content: Mapping[str, Any]) -> bytes:
    return json.dumps(content, sort_keys=True, separators=(",", ":")).encode()


def _pieces(tensors: Mapping[str, Tensor]) -> Iterator[Any]:
    for name, tensor in sorted(tensors.items()):
        yield f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode()
        yield tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
