"""Who holds a model: at most one AdaptedModel at a time, whatever backbones there are around the model."""

import gc
from threading import RLock
from weakref import ReferenceType, WeakKeyDictionary, ref

from torch import nn

_holders: "WeakKeyDictionary[nn.Module, ReferenceType[object]]" = WeakKeyDictionary()

_lock = RLock()
"""A garbage collection may let go of a model inside of it, in the same thread."""


def holder_of(model: nn.Module) -> object | None:
    """The holder of a model; None if there is none."""
    found = _holders.get(model)
    return None if found is None else found()


def hold(model: nn.Module, holder: object) -> bool:
    """Hold a model, unless another one does. Whether it is held."""
    with _lock:
        if is_held_by_another(model, holder):
            return False
        _holders[model] = ref(holder)
        return True


def is_held_by_another(model: nn.Module, holder: object | None = None) -> bool:
    """Whether anyone else holds a model."""
    with _lock:
        if holder_of(model) not in (None, holder):
            # The holder may be held by nothing but itself.
            gc.collect()
        return holder_of(model) not in (None, holder)


def let_go(model: nn.Module, holder: object) -> None:
    """Hold a model no longer. Does nothing when it is not held by this one."""
    with _lock:
        if holder_of(model) is holder:
            del _holders[model]
