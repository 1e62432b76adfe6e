"""Shared tensors: what nobody trains, and what many ops, also of several adapters, have in common."""

from hashlib import blake2b
from threading import Lock
from typing import Any

import torch
from torch import Tensor
from torch.utils.weak import TensorWeakRef, WeakTensorKeyDictionary

Key = tuple[str, torch.dtype]
"""What tells shared tensors apart: a digest of their numbers, and the precision."""

_DIGESTS: Any = WeakTensorKeyDictionary()
"""Of a tensor: how often it was written to by then, and the digest."""

_CASTS: Any = WeakTensorKeyDictionary()
"""Of a tensor: how often it was written to by then, and what it was cast to by precision and device."""

_POOL: dict[tuple[Key, torch.device], TensorWeakRef] = {}
"""What resident adapters use, once for all of them, as long as one of them uses it."""

_POOLING = Lock()


class Shared:
    """A tensor that is known by its contents: two of them are equal when their numbers and their precision are.

    Args:
        tensor: without gradients.
        digest: of its numbers; None: it is computed when it is asked for.
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
        """The shape of the tensor."""
        return self.tensor.shape

    def to(self, dtype: torch.dtype) -> "Shared":
        """The same numbers in another precision, cast once as long as this tensor is not written to."""
        own = self.tensor
        if own.dtype == dtype:
            return self
        version, casts = _CASTS.get(own, (None, {}))
        if version != _version(own):
            casts = {}
            _CASTS[own] = _version(own), casts
        if dtype not in casts:
            # A tensor made in inference mode could not take part in a later pass with gradients.
            with torch.inference_mode(False), torch.no_grad():
                casts[dtype] = own.to(dtype)
        return Shared(casts[dtype], self.key[0])

    def pooled(self, dtype: torch.dtype, device: torch.device) -> "Shared":
        """The same numbers, in the one tensor that all who ask for them in this precision and on this device have. It
        is a copy, which nobody writes to.
        """
        digest, _ = self.key
        place = (digest, dtype), device
        with _POOLING:
            known = _POOL.get(place)
            found = None if known is None else known()
            if found is None:
                for other in [other for other, held in _POOL.items() if held() is None]:
                    del _POOL[other]
                with torch.inference_mode(False), torch.no_grad():
                    found = self.tensor.detach().to(device, dtype, copy=True)
                _POOL[place] = TensorWeakRef(found)
        return Shared(found, digest)

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
    """Of the numbers in float32, in which adapters are stored: the same when they are promoted."""
    version, known = _DIGESTS.get(tensor, (None, ""))
    digest: str = known
    if version != _version(tensor):
        numbers: Any = tensor.detach().cpu().float().contiguous().reshape(-1).view(torch.uint8).numpy()
        digest = blake2b(f"{tuple(tensor.shape)} ".encode() + numbers.tobytes(), digest_size=16).hexdigest()
        _DIGESTS[tensor] = _version(tensor), digest
    return digest
