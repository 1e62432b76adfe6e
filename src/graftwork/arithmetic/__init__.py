"""Model arithmetic: weights of checkpoints as values, merges of models, and what they score."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from graftwork.arithmetic.operations import (
        analogy,
        average,
        breadcrumbs,
        dare,
        dare_merge,
        della,
        elected,
        interpolate,
        iso_c,
        model_stock,
        sce,
        slerp,
        task_arithmetic,
        ties,
        tsv_m,
    )
    from graftwork.arithmetic.unifying import EMR, emr
    from graftwork.arithmetic.weights import Weights

_HOMES = {
    "EMR": "unifying",
    "Weights": "weights",
    "analogy": "operations",
    "average": "operations",
    "breadcrumbs": "operations",
    "dare": "operations",
    "dare_merge": "operations",
    "della": "operations",
    "elected": "operations",
    "emr": "unifying",
    "interpolate": "operations",
    "iso_c": "operations",
    "model_stock": "operations",
    "sce": "operations",
    "slerp": "operations",
    "task_arithmetic": "operations",
    "ties": "operations",
    "tsv_m": "operations",
}
"""Loaded when they are first used: what a merge would do is told from headers, before torch is imported. No module is
called as one of them, whose place it would take."""

__all__ = [
    "EMR",
    "Weights",
    "analogy",
    "average",
    "breadcrumbs",
    "dare",
    "dare_merge",
    "della",
    "elected",
    "emr",
    "interpolate",
    "iso_c",
    "model_stock",
    "sce",
    "slerp",
    "task_arithmetic",
    "ties",
    "tsv_m",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'graftwork.arithmetic' has no attribute {name!r}")
    return getattr(import_module(f"graftwork.arithmetic.{_HOMES[name]}"), name)
