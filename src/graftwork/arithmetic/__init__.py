"""Model arithmetic: weights of checkpoints as values, merges of models and of adapters, and what they score."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from graftwork.arithmetic.adaptermerging import MergedAdapters, merge_adapters
    from graftwork.arithmetic.commonbasis import knots
    from graftwork.arithmetic.datasettings import AdaMergingSettings, FisherSettings, RegMeanSettings
    from graftwork.arithmetic.donors import DonorMerge, donor_merge
    from graftwork.arithmetic.extracting import Extracted, ExtractedTensor, extract_lora
    from graftwork.arithmetic.finetuned import finetuned_adapter, save_finetuned
    from graftwork.arithmetic.fisher import fisher_merge
    from graftwork.arithmetic.fishermerging import fisher_adapters
    from graftwork.arithmetic.learnedcoefficients import AdaMerged, adamerging
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
    from graftwork.arithmetic.regressionmeans import regmean, regmean_adapters
    from graftwork.arithmetic.soups import GreedySoup, greedy_soup
    from graftwork.arithmetic.unifying import EMR, emr
    from graftwork.arithmetic.weights import Weights

_HOMES = {
    "AdaMerged": "learnedcoefficients",
    "adamerging": "learnedcoefficients",
    "AdaMergingSettings": "datasettings",
    "analogy": "operations",
    "average": "operations",
    "breadcrumbs": "operations",
    "dare": "operations",
    "dare_merge": "operations",
    "della": "operations",
    "donor_merge": "donors",
    "DonorMerge": "donors",
    "elected": "operations",
    "EMR": "unifying",
    "emr": "unifying",
    "extract_lora": "extracting",
    "Extracted": "extracting",
    "ExtractedTensor": "extracting",
    "finetuned_adapter": "finetuned",
    "fisher_adapters": "fishermerging",
    "fisher_merge": "fisher",
    "FisherSettings": "datasettings",
    "greedy_soup": "soups",
    "GreedySoup": "soups",
    "interpolate": "operations",
    "iso_c": "operations",
    "knots": "commonbasis",
    "merge": "merging",
    "merge_adapters": "adaptermerging",
    "MergedAdapters": "adaptermerging",
    "MergeRecipe": "mergerecipe",
    "MergeResult": "merging",
    "model_stock": "operations",
    "regmean": "regressionmeans",
    "regmean_adapters": "regressionmeans",
    "RegMeanSettings": "datasettings",
    "save_finetuned": "finetuned",
    "sce": "operations",
    "slerp": "operations",
    "task_arithmetic": "operations",
    "ties": "operations",
    "tsv_m": "operations",
    "Weights": "weights",
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
    "MergeRecipe",
    "MergeResult",
    "MergedAdapters",
    "RegMeanSettings",
    "Weights",
    "adamerging",
    "analogy",
    "average",
    "breadcrumbs",
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
    "merge",
    "merge_adapters",
    "model_stock",
    "regmean",
    "regmean_adapters",
    "save_finetuned",
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
