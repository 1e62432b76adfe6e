"""Model arithmetic: checkpoints and adapters as vectors that can be added, scaled, merged and aligned."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from graftwork.arithmetic.activations import activation_matching, recompute_batch_norm
    from graftwork.arithmetic.adaptermerging import MergedAdapters, merge_adapters
    from graftwork.arithmetic.commonbasis import knots
    from graftwork.arithmetic.datasettings import AdaMergingSettings, FisherSettings, RegMeanSettings
    from graftwork.arithmetic.donors import DonorMerge, donor_merge
    from graftwork.arithmetic.extracting import Extracted, ExtractedTensor, extract_lora
    from graftwork.arithmetic.finetuned import finetuned_adapter, save_finetuned
    from graftwork.arithmetic.fisher import fisher_merge
    from graftwork.arithmetic.fishermerging import fisher_adapters
    from graftwork.arithmetic.landscape_files import Line, Surface
    from graftwork.arithmetic.landscapes import around, line, plane
    from graftwork.arithmetic.learnedcoefficients import AdaMerged, adamerging
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
    from graftwork.arithmetic.regressionmeans import regmean, regmean_adapters
    from graftwork.arithmetic.soups import GreedySoup, greedy_soup
    from graftwork.arithmetic.specifications import checkpoint_specification, sequential_specification, specification_of
    from graftwork.arithmetic.straightthrough import StraightThroughSettings, straight_through
    from graftwork.arithmetic.surveying import landscape
    from graftwork.arithmetic.unifying import EMR, emr
    from graftwork.arithmetic.weights import Weights

_HOMES = {
    "AdaMerged": "learnedcoefficients",
    "AdaMergingSettings": "datasettings",
    "DonorMerge": "donors",
    "EMR": "unifying",
    "Extracted": "extracting",
    "ExtractedTensor": "extracting",
    "FisherSettings": "datasettings",
    "GreedySoup": "soups",
    "Line": "landscape_files",
    "MatchingSettings": "matching",
    "MergeRecipe": "mergerecipe",
    "MergeResult": "merging",
    "MergedAdapters": "adaptermerging",
    "Permutations": "permutations",
    "RegMeanSettings": "datasettings",
    "Specification": "permutations",
    "StraightThroughSettings": "straightthrough",
    "Surface": "landscape_files",
    "Weights": "weights",
    "activation_matching": "activations",
    "adamerging": "learnedcoefficients",
    "analogy": "operations",
    "around": "landscapes",
    "average": "operations",
    "breadcrumbs": "operations",
    "checkpoint_specification": "specifications",
    "dare": "operations",
    "dare_merge": "operations",
    "della": "operations",
    "donor_merge": "donors",
    "elected": "operations",
    "emr": "unifying",
    "extract_lora": "extracting",
    "finetuned_adapter": "finetuned",
    "fisher_adapters": "fishermerging",
    "fisher_merge": "fisher",
    "greedy_soup": "soups",
    "interpolate": "operations",
    "iso_c": "operations",
    "knots": "commonbasis",
    "landscape": "surveying",
    "line": "landscapes",
    "merge": "merging",
    "merge_adapters": "adaptermerging",
    "merge_many": "matching",
    "model_stock": "operations",
    "plane": "landscapes",
    "recompute_batch_norm": "activations",
    "regmean": "regressionmeans",
    "regmean_adapters": "regressionmeans",
    "save_finetuned": "finetuned",
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
    "AdaMerged",
    "AdaMergingSettings",
    "DonorMerge",
    "Extracted",
    "ExtractedTensor",
    "FisherSettings",
    "GreedySoup",
    "Line",
    "MatchingSettings",
    "MergeRecipe",
    "MergeResult",
    "MergedAdapters",
    "Permutations",
    "RegMeanSettings",
    "Specification",
    "StraightThroughSettings",
    "Surface",
    "Weights",
    "activation_matching",
    "adamerging",
    "analogy",
    "around",
    "average",
    "breadcrumbs",
    "checkpoint_specification",
    "dare",
    "dare_merge",
    "della",
    "donor_merge",
    "elected",
    "emr",
    "extract_lora",
    "finetuned_adapter",
    "fisher_adapters",
    "fisher_merge",
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
    "regmean",
    "regmean_adapters",
    "save_finetuned",
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
