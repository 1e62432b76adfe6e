"""Which functions have their annotations checked at run time, and how often.

A check of all arguments takes several times as long as the short functions that it checks: of each function, the first
calls of each test are checked, and the others run as they are.
"""

import dataclasses
import functools
import inspect
from collections import Counter

import jaxtyping
from beartype import beartype

CALLS = 10
"""Of a function in a test that are checked."""

_jaxtyped = jaxtyping.jaxtyped
_calls = Counter()


def install(names):
    """Have the functions of modules checked once they are imported."""
    jaxtyping.jaxtyped = first_calls
    jaxtyping.install_import_hook(names, "typechecks.checked")


def begin():
    """With a test: no function has been called in it."""
    _calls.clear()


def checked(target, *args, **kwargs):
    """As beartype checks annotations."""
    return beartype(target, *args, **kwargs)


def first_calls(function=None, *, typechecker):
    """As jaxtyping checks shapes, for the first calls.

    A function that another one makes would be prepared anew at every call, and is left as it is.
    """
    if function is None:
        return functools.partial(first_calls, typechecker=typechecker)
    if dataclasses.is_dataclass(function):
        function.__init__ = first_calls(function.__init__, typechecker=typechecker)
        return function
    if not inspect.isfunction(function):
        return _jaxtyped(function, typechecker=typechecker)
    if "<locals>" in function.__qualname__:
        return function
    watched = _jaxtyped(function, typechecker=typechecker)
    key = f"{function.__module__}.{function.__qualname__}"

    @functools.wraps(function)
    def called(*args, **kwargs):
        if _calls[key] >= CALLS:
            return function(*args, **kwargs)
        _calls[key] += 1
        return watched(*args, **kwargs)

    return called
