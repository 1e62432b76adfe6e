"""Which functions have their annotations checked at run time."""

from beartype import beartype


def checked(target, *args, **kwargs):
    """As beartype checks them; but a function made inside another one would be prepared anew at every call."""
    return target if "<locals>" in getattr(target, "__qualname__", "") else beartype(target, *args, **kwargs)
