"""Model arithmetic: checkpoints and adapters as vectors that can be added, scaled, merged and aligned."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from graftwork.arithmetic.adapters.commonbasis import knots
    from graftwork.arithmetic.adapters.extracting import Extracted, ExtractedTensor, extract_lora
    from graftwork.arithmetic.adapters.finetuned import finetuned_adapter, save_finetuned
    from graftwork.arithmetic.adapters.merging import MergedAdapters, merge_adapters
    from graftwork.arithmetic.alignment.activations import activation_matching, recompute_batch_norm
    from graftwork.arithmetic.alignment.matching import merge_many, weight_matching
    from graftwork.arithmetic.alignment.permutations import Permutations, Specification
    from graftwork.arithmetic.alignment.settings import MatchingSettings
    from graftwork.arithmetic.alignment.specifications import (
        checkpoint_specification,
        sequential_specification,
        specification_of,
    )
    from graftwork.arithmetic.alignment.straightthrough import StraightThroughSettings, straight_through
    from graftwork.arithmetic.data.adaptersoups import AdapterSoup, soup_adapters
    from graftwork.arithmetic.data.donors import DonorMerge, donor_merge
    from graftwork.arithmetic.data.fisher import fisher_merge
    from graftwork.arithmetic.data.fishermerging import fisher_adapters
    from graftwork.arithmetic.data.learnedcoefficients import AdaMerged, adamerging
    from graftwork.arithmetic.data.regressionmeans import regmean, regmean_adapters
    from graftwork.arithmetic.data.settings import AdaMergingSettings, FisherSettings, RegMeanSettings
    from graftwork.arithmetic.landscapes.files import Line, Surface
    from graftwork.arithmetic.landscapes.landscape import around, line, plane
    from graftwork.arithmetic.landscapes.surveying import landscape
    from graftwork.arithmetic.merging.merging import merge
    from graftwork.arithmetic.merging.recipe import MergeRecipe
    from graftwork.arithmetic.merging.result import MergeResult
    from graftwork.arithmetic.operations.operations import (
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
    from graftwork.arithmetic.operations.soups import GreedySoup, greedy_soup
    from graftwork.arithmetic.operations.unifying import EMR, emr
    from graftwork.arithmetic.values.weights import Weights

_HOMES = {
    "AdaMerged": "data.learnedcoefficients",
    "AdaMergingSettings": "data.settings",
    "AdapterSoup": "data.adaptersoups",
    "DonorMerge": "data.donors",
    "EMR": "operations.unifying",
    "Extracted": "adapters.extracting",
    "ExtractedTensor": "adapters.extracting",
    "FisherSettings": "data.settings",
    "GreedySoup": "operations.soups",
    "Line": "landscapes.files",
    "MatchingSettings": "alignment.settings",
    "MergeRecipe": "merging.recipe",
    "MergeResult": "merging.result",
    "MergedAdapters": "adapters.merging",
    "Permutations": "alignment.permutations",
    "RegMeanSettings": "data.settings",
    "Specification": "alignment.permutations",
    "StraightThroughSettings": "alignment.straightthrough",
    "Surface": "landscapes.files",
    "Weights": "values.weights",
    "activation_matching": "alignment.activations",
    "adamerging": "data.learnedcoefficients",
    "analogy": "operations.operations",
    "around": "landscapes.landscape",
    "average": "operations.operations",
    "breadcrumbs": "operations.operations",
    "checkpoint_specification": "alignment.specifications",
    "dare": "operations.operations",
    "dare_merge": "operations.operations",
    "della": "operations.operations",
    "donor_merge": "data.donors",
    "elected": "operations.operations",
    "emr": "operations.unifying",
    "extract_lora": "adapters.extracting",
    "finetuned_adapter": "adapters.finetuned",
    "fisher_adapters": "data.fishermerging",
    "fisher_merge": "data.fisher",
    "greedy_soup": "operations.soups",
    "interpolate": "operations.operations",
    "iso_c": "operations.operations",
    "knots": "adapters.commonbasis",
    "landscape": "landscapes.surveying",
    "line": "landscapes.landscape",
    "merge": "merging.merging",
    "merge_adapters": "adapters.merging",
    "merge_many": "alignment.matching",
    "model_stock": "operations.operations",
    "plane": "landscapes.landscape",
    "recompute_batch_norm": "alignment.activations",
    "regmean": "data.regressionmeans",
    "regmean_adapters": "data.regressionmeans",
    "save_finetuned": "adapters.finetuned",
    "sce": "operations.operations",
    "sequential_specification": "alignment.specifications",
    "slerp": "operations.operations",
    "soup_adapters": "data.adaptersoups",
    "specification_of": "alignment.specifications",
    "straight_through": "alignment.straightthrough",
    "task_arithmetic": "operations.operations",
    "ties": "operations.operations",
    "tsv_m": "operations.operations",
    "weight_matching": "alignment.matching",
}
"""Loaded when they are first used: what a merge would do is told from headers, before torch is imported. No module is
called as one of them, whose place it would take."""

__all__ = [
    "EMR",
    "AdaMerged",
    "AdaMergingSettings",
    "AdapterSoup",
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
    "soup_adapters",
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
