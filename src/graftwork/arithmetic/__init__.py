"""Model arithmetic: checkpoints and adapters as vectors that can be added, scaled, merged and aligned."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from graftwork.arithmetic.activations import activation_matching, recompute_batch_norm
    from graftwork.arithmetic.adaptermerging import MergedAdapters, merge_adapters
    from graftwork.arithmetic.extracting import Extracted, ExtractedTensor, extract_lora
    from graftwork.arithmetic.finetuned import finetuned_adapter
    from graftwork.arithmetic.joint_spectra import knots
    from graftwork.arithmetic.landscape_files import Line, Surface
    from graftwork.arithmetic.landscapes import around, line, plane
    from graftwork.arithmetic.matching import MatchingSettings, merge_many, weight_matching
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
    from graftwork.arithmetic.permutations import Permutations, Specification
    from graftwork.arithmetic.soups import GreedySoup, greedy_soup
    from graftwork.arithmetic.specifications import checkpoint_specification, sequential_specification, specification_of
    from graftwork.arithmetic.straightthrough import StraightThroughSettings, straight_through
    from graftwork.arithmetic.surveying import landscape
    from graftwork.arithmetic.unifying import EMR, emr
    from graftwork.arithmetic.weights import Weights

_HOMES = {
    "EMR": "unifying",
    "Extracted": "extracting",
    "ExtractedTensor": "extracting",
    "GreedySoup": "soups",
    "Line": "landscape_files",
    "MatchingSettings": "matching",
    "MergeRecipe": "mergerecipe",
    "MergeResult": "merging",
    "MergedAdapters": "adaptermerging",
    "Permutations": "permutations",
    "Specification": "permutations",
    "StraightThroughSettings": "straightthrough",
    "Surface": "landscape_files",
    "Weights": "weights",
    "activation_matching": "activations",
    "analogy": "operations",
    "around": "landscapes",
    "average": "operations",
    "breadcrumbs": "operations",
    "checkpoint_specification": "specifications",
    "dare": "operations",
    "dare_merge": "operations",
    "della": "operations",
    "elected": "operations",
    "emr": "unifying",
    "extract_lora": "extracting",
    "finetuned_adapter": "finetuned",
    "greedy_soup": "soups",
    "interpolate": "operations",
    "iso_c": "operations",
    "knots": "joint_spectra",
    "landscape": "surveying",
    "line": "landscapes",
    "merge": "merging",
    "merge_adapters": "adaptermerging",
    "merge_many": "matching",
    "model_stock": "operations",
    "plane": "landscapes",
    "recompute_batch_norm": "activations",
    "sce": "operations",
    "sequential_specification": "specifications",
    "slerp": "operations",
    "specification_of": "specifications",
    "straight_through": "straightthrough",
    "task_arithmetic": "operations",
    "ties": "operations",
    "tsv_m": "operations",
    "weight_matching": "matching",
}
"""Loaded when they are first used: what a merge would do is told from headers, before torch is imported. No module is
called as one of them, whose place it would take."""

__all__ = [
    "EMR",
    "Extracted",
    "ExtractedTensor",
    "GreedySoup",
    "Line",
    "MatchingSettings",
    "MergeRecipe",
    "MergeResult",
    "MergedAdapters",
    "Permutations",
    "Specification",
    "StraightThroughSettings",
    "Surface",
    "Weights",
    "activation_matching",
    "analogy",
    "around",
    "average",
    "breadcrumbs",
    "checkpoint_specification",
    "dare",
    "dare_merge",
    "della",
    "elected",
    "emr",
    "extract_lora",
    "finetuned_adapter",
    "greedy_soup",
    "interpolate",
    "iso_c",
    "knots",
    "landscape",
    "line",
    "merge",
    "merge_adapters",
    "merge_many",
    "model_stock",
    "plane",
    "recompute_batch_norm",
    "sce",
    "sequential_specification",
    "slerp",
    "specification_of",
    "straight_through",
    "task_arithmetic",
    "ties",
    "tsv_m",
    "weight_matching",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'graftwork.arithmetic' has no attribute {name!r}")
    return getattr(import_module(f"graftwork.arithmetic.{_HOMES[name]}"), name)
