"""Model arithmetic: weights of checkpoints as values, merges of models, and what they score."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from graftwork.arithmetic.weights import Weights

_HOMES = {
    "Weights": "weights",
}
"""Loaded when they are first used: what a merge would do is told from headers, before torch is imported."""

__all__ = ["Weights"]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'graftwork.arithmetic' has no attribute {name!r}")
    return getattr(import_module(f"graftwork.arithmetic.{_HOMES[name]}"), name)
