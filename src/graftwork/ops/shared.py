"""Shared tensors: what nobody trains, and what many ops, also of several adapters, have in common."""

from hashlib import blake2b
from typing import Any
from weakref import WeakValueDictionary

import torch
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

Key = tuple[str, torch.dtype]
"""What tells shared tensors apart: a digest of their numbers as they were given, and the precision."""

_DIGESTS: Any = WeakTensorKeyDictionary()
"""Of a tensor: how often it was written to by then, and the digest."""

_CASTS: Any = WeakTensorKeyDictionary()
"""Of a tensor: how often it was written to by then, and by precision and device, what it was cast to."""

_POOL: WeakValueDictionary[tuple[Key, torch.device], Tensor] = WeakValueDictionary()
"""What resident adapters use, once for all of them, as long as one of them uses it."""


class Shared:
    """A tensor that is known by its contents: two of them are equal when their numbers and their precision are.

    Args:
        tensor: without gradients.
        digest: of its numbers before any cast; None: it is computed when it is asked for.
    """

    def __init__(self, tensor: Tensor, digest: str | None = None) -> None:
        self.tensor = tensor
        self._digest = digest

    @property
    def key(self) -> Key:
        """What tells it apart."""
        if self._digest is None:
            self._digest = _digest_of(self.tensor)
        return self._digest, self.tensor.dtype

    @property
    def shape(self) -> torch.Size:
        return self.tensor.shape

    def to(self, dtype: torch.dtype, device: torch.device | None = None) -> "Shared":
        """The same numbers in another precision, or on another device; cast once."""
        own = self.tensor
        device = own.device if device is None else device
        if own.dtype == dtype and own.device == device:
            return self
        version, casts = _CASTS.get(own, (None, {}))
        if version != _version(own):
            casts = {}
            _CASTS[own] = _version(own), casts
        if (dtype, device) not in casts:
            casts[dtype, device] = own.to(device, dtype)
        return Shared(casts[dtype, device], self.key[0])

    def pooled(self) -> "Shared":
        """The same, in the tensor that all who ask for these numbers here have."""
        place = self.key, self.tensor.device
        found = _POOL.get(place)
        if found is None:
            _POOL[place] = found = self.tensor.clone()
        return Shared(found, self.key[0])

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Shared):
            return NotImplemented
        return self.tensor is other.tensor or (self.shape == other.shape and self.key == other.key)

    def __hash__(self) -> int:
        return hash(self.key)

    def __repr__(self) -> str:
        return f"Shared{tuple(self.shape)}"


def _version(tensor: Tensor) -> int:
    return 0 if tensor.is_inference() else tensor._version


def _digest_of(tensor: Tensor) -> str:
    version, known = _DIGESTS.get(tensor, (None, ""))
    digest: str = known
    if version != _version(tensor):
        numbers: Any = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
        digest = blake2b(f"{tuple(tensor.shape)} ".encode() + numbers.tobytes(), digest_size=16).hexdigest()
        _DIGESTS[tensor] = _version(tensor), digest
    return digest
