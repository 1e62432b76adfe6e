"""A module that replaces one of the backbone's and looks the same outside of forward passes."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch.nn as nn
from torch import Tensor

from graftwork.ops.substitution import hooks_of, no_hooks

SHARED = ("_parameters", "_buffers", "_modules", "_non_persistent_buffers_set")
"""What a wrapper has in common with the module that it holds: the very dictionaries, so that names, parameters and
state dict of the model are what they are without it."""

SAVING = ("_state_dict_pre_hooks", "_state_dict_hooks", "_load_state_dict_pre_hooks", "_load_state_dict_post_hooks")
"""Hooks of the state dict, which are the module's, too."""


HOOKING = ("forward", "_old_forward", "_hf_hook")
"""What accelerate sets on a module that it hooks into: it calls what it found there, and that is what stands there."""


class ModuleWrapper(nn.Module):
    """Wraps a module: it stands in the module's place, and holds it.

    The module's parameters, buffers and children are its own as well, under the same names. What else is read or set is
    the module's. Its forward hooks and backward hooks move to whatever stands in its place, and back: they see what the
    model computes there. A copy of it, and what is pickled of it, is the module alone, with those hooks.

    Attributes:
        inner: the module.
    """

    inner: nn.Module

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.hold(inner)
        self.__dict__["training"] = inner.training

    def hold(self, inner: nn.Module) -> None:
        """Stand for another module from now on."""
        own = self.__dict__
        own["inner"] = inner
        own.update({name: getattr(inner, name) for name in (*SHARED, *SAVING, "_version")})

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            if "inner" not in self.__dict__:  # it is being made
                raise
            return getattr(self.__dict__["inner"], name)

    def __setattr__(self, name: str, value: Any) -> None:
        if "inner" not in self.__dict__ or name in self.__dict__ or name in HOOKING:
            super().__setattr__(name, value)
        else:
            setattr(self.inner, name, value)

    def __delattr__(self, name: str) -> None:
        if name in self.__dict__:
            super().__delattr__(name)
        else:
            delattr(self.inner, name)

    def train(self, mode: bool = True) -> "ModuleWrapper":
        super().train(mode)
        self.inner.training = mode
        return self

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "ModuleWrapper":
        self.inner._apply(fn, recurse)  # type: ignore[no-untyped-call]
        return self

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        self.inner._save_to_state_dict(destination, prefix, keep_vars)

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        self.inner._load_from_state_dict(*args, **kwargs)

    def __copy__(self) -> nn.Module:
        return self.inner

    def __reduce_ex__(self, protocol: Any) -> Any:
        return _hooked, (self.inner, hooks_of(self))


def _hooked(module: nn.Module, hooks: Mapping[str, Any]) -> nn.Module:
    """A copy of a module that was held, with a copy of the hooks."""
    module.__dict__.update(hooks)
    return module


def unwrapped(module: nn.Module) -> nn.Module:
    """The module itself, out of all that stands in its place."""
    while isinstance(module, ModuleWrapper):
        module = module.inner
    return module


def unwrapped_modules(root: nn.Module) -> Iterator[nn.Module]:
    """All modules of a model themselves."""
    return map(unwrapped, root.modules())


def replace_module(root: nn.Module, path: str, old: nn.Module, new: nn.Module) -> nn.Module:
    """Put a module in the place of another one, wherever that stands among the wrappers at a path. Hooks stay at the
    place.

    Returns:
        The root, which is the new module where the old one was the root.
    """
    parent, _, leaf = path.rpartition(".")
    place = root.get_submodule(parent) if path else None
    here: nn.Module = root if place is None else place._modules[leaf]  # type: ignore[assignment]
    if here is not old:
        while isinstance(here, ModuleWrapper) and here.inner is not old:
            here = here.inner
        assert isinstance(here, ModuleWrapper), f"{path}: the module is not there"
        here.__dict__["inner"] = new
    elif place is not None:
        place._modules[leaf] = new
    if isinstance(new, ModuleWrapper) and new.inner is old:
        new.__dict__.update(hooks_of(old))
        old.__dict__.update(no_hooks())
    else:
        _give_back(hooks_of(old), new)
    return new if here is old and place is None else root


def _give_back(hooks: Mapping[str, Any], module: nn.Module) -> None:
    """Give a module the hooks of its place, beside those that somebody set on it while something stood there."""
    for name, own in hooks.items():
        known = module.__dict__[name]
        if known and own and known is not own:
            own.update(known)
        if own or not known:
            module.__dict__[name] = own
