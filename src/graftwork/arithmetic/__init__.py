"""Model arithmetic: checkpoints and adapters as vectors that can be added, scaled, merged and aligned."""

from graftwork.arithmetic.adamerging import AdaMerged, AdaMergingSettings, adamerging
from graftwork.arithmetic.adaptermerging import MergedAdapters, merge_adapters
from graftwork.arithmetic.donors import DonorMerge, donor_merge
from graftwork.arithmetic.extracting import Extracted, ExtractedTensor, extract_lora
from graftwork.arithmetic.finetuned import finetuned_adapter
from graftwork.arithmetic.fisher import fisher_merge
from graftwork.arithmetic.fishermerging import fisher_adapters
from graftwork.arithmetic.information import FisherSettings
from graftwork.arithmetic.knots import knots
from graftwork.arithmetic.regmean import regmean, regmean_adapters

__all__ = [
    "AdaMerged",
    "AdaMergingSettings",
    "DonorMerge",
    "Extracted",
    "ExtractedTensor",
    "FisherSettings",
    "MergedAdapters",
    "adamerging",
    "donor_merge",
    "extract_lora",
    "finetuned_adapter",
    "fisher_adapters",
    "fisher_merge",
    "knots",
    "merge_adapters",
    "regmean",
    "regmean_adapters",
]
