"""A module run with other tensors in the place of its parameters, which itself stays as it is."""

from collections import OrderedDict
from collections.abc import Callable, Mapping
from copy import copy
from functools import partial
from types import MethodType
from typing import Any

import torch
import torch.nn as nn
from torch import Tensor
from torch.func import functional_call

from graftwork.errors import SiteError

HOOKS: Mapping[str, Callable[[], Any]] = {
    "_forward_pre_hooks": OrderedDict,
    "_forward_pre_hooks_with_kwargs": OrderedDict,
    "_forward_hooks": OrderedDict,
    "_forward_hooks_with_kwargs": OrderedDict,
    "_forward_hooks_always_called": OrderedDict,
    "_backward_pre_hooks": OrderedDict,
    "_backward_hooks": OrderedDict,
    "_is_full_backward_hook": lambda: None,
}
"""Where torch keeps the hooks of a module's passes, and what stands there without any. A hook is removed by way of the
dictionary in which it was put: when hooks move, the very dictionaries do."""


def hooks_of(module: nn.Module) -> dict[str, Any]:
    """What holds the hooks of a module's passes."""
    return {name: module.__dict__[name] for name in HOOKS}


def no_hooks() -> dict[str, Any]:
    """What holds no hooks."""
    return {name: empty() for name, empty in HOOKS.items()}


def run_with(module: nn.Module, parameters: Mapping[str, Tensor], *args: Any, **kwargs: Any) -> Any:
    """What a module computes with other tensors in the place of some of its parameters.

    The module is not touched, not even for the length of the call: other threads may read it.
    """
    if torch.compiler.is_compiling():
        # A compiler only traces the exchange: nothing is exchanged when what it made runs.
        return functional_call(module, dict(parameters), args, kwargs)
    return with_parameters(module, parameters)(*args, **kwargs)


def with_parameters(module: nn.Module, parameters: Mapping[str, Tensor]) -> nn.Module:
    """A copy of a module that has other tensors in the place of some parameters, and all else in common with it.

    Args:
        parameters: by their name in the module, which may lead into modules within it.

    Raises:
        SiteError: another library has replaced the module's forward by one that cannot be told to run the copy.
    """
    twin = _twin(module)
    twin._parameters = dict(module._parameters)
    within: dict[str, dict[str, Tensor]] = {}
    for name, tensor in parameters.items():
        child, _, leaf = name.rpartition(".")
        if child:
            first, _, rest = name.partition(".")
            within.setdefault(first, {})[rest] = tensor
        else:
            twin._parameters[leaf] = tensor  # type: ignore[assignment] # a tensor does as well
    if within:
        twin._modules = dict(module._modules)
        for child, own in within.items():
            inner = module._modules[child]
            assert inner is not None
            twin._modules[child] = with_parameters(inner, own)
    return twin


def _twin(module: nn.Module) -> nn.Module:
    """A copy that has everything in common with a module, and whose forward is its own.

    accelerate replaces the forward of a single module by one that is bound to it.
    """
    twin = copy(module)
    if type(twin) is not type(module):
        # What stands in a module's place gives the very module, and has its hooks.
        twin = _twin(twin)
        twin.__dict__.update(hooks_of(module))
        return twin
    for name, value in vars(module).items():
        if isinstance(value, MethodType) and value.__self__ is module:
            twin.__dict__[name] = MethodType(value.__func__, twin)
        elif isinstance(value, partial) and any(argument is module for argument in value.args):
            rebound = (twin if argument is module else argument for argument in value.args)
            twin.__dict__[name] = partial(value.func, *rebound, **value.keywords)
    if "forward" in vars(module) and twin.__dict__["forward"] is module.__dict__["forward"]:
        raise SiteError(
            f"another library has replaced the forward of a {type(module).__name__}, and it cannot be run with other "
            "weights",
            expected="a method that leaves the backbone's weights as they are",
        )
    return twin
