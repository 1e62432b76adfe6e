"""Model arithmetic: checkpoints and adapters as vectors that can be added, scaled, merged and aligned."""

from graftwork.arithmetic.adaptermerging import MergedAdapters, merge_adapters
from graftwork.arithmetic.extracting import Extracted, ExtractedTensor, extract_lora
from graftwork.arithmetic.finetuned import finetuned_adapter
from graftwork.arithmetic.knots import knots

__all__ = [
    "Extracted",
    "ExtractedTensor",
    "MergedAdapters",
    "extract_lora",
    "finetuned_adapter",
    "knots",
    "merge_adapters",
]
