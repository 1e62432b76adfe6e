"""Model arithmetic: weights of checkpoints as values, merges of models, and what they score."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from graftwork.arithmetic.mergerecipe import MergeRecipe
    from graftwork.arithmetic.merging import MergeResult, merge
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
    from graftwork.arithmetic.soups import GreedySoup, greedy_soup
    from graftwork.arithmetic.unifying import EMR, emr
    from graftwork.arithmetic.weights import Weights

_HOMES = {
    "EMR": "unifying",
    "GreedySoup": "soups",
    "MergeRecipe": "mergerecipe",
    "MergeResult": "merging",
    "Weights": "weights",
    "analogy": "operations",
    "average": "operations",
    "breadcrumbs": "operations",
    "dare": "operations",
    "dare_merge": "operations",
    "della": "operations",
    "elected": "operations",
    "emr": "unifying",
    "greedy_soup": "soups",
    "interpolate": "operations",
    "iso_c": "operations",
    "merge": "merging",
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
    "GreedySoup",
    "MergeRecipe",
    "MergeResult",
    "Weights",
    "analogy",
    "average",
    "breadcrumbs",
    "dare",
    "dare_merge",
    "della",
    "elected",
    "emr",
    "greedy_soup",
    "interpolate",
    "iso_c",
    "merge",
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
