"""Model arithmetic: checkpoints and adapters as vectors that can be added, scaled, merged and aligned."""

from graftwork.arithmetic.activations import activation_matching, recompute_batch_norm
from graftwork.arithmetic.adaptermerging import MergedAdapters, merge_adapters
from graftwork.arithmetic.extracting import Extracted, ExtractedTensor, extract_lora
from graftwork.arithmetic.finetuned import finetuned_adapter
from graftwork.arithmetic.knots import knots
from graftwork.arithmetic.landscape_files import Line, Surface
from graftwork.arithmetic.landscapes import around, line, plane
from graftwork.arithmetic.matching import MatchingSettings, merge_many, weight_matching
from graftwork.arithmetic.permutations import Permutations, Specification
from graftwork.arithmetic.specifications import (
    checkpoint_specification,
    sequential_specification,
    specification_of,
)
from graftwork.arithmetic.straightthrough import StraightThroughSettings, straight_through
from graftwork.arithmetic.surveying import landscape

__all__ = [
    "Extracted",
    "ExtractedTensor",
    "Line",
    "MatchingSettings",
    "MergedAdapters",
    "Permutations",
    "Specification",
    "StraightThroughSettings",
    "Surface",
    "activation_matching",
    "around",
    "checkpoint_specification",
    "extract_lora",
    "finetuned_adapter",
    "knots",
    "landscape",
    "line",
    "merge_adapters",
    "merge_many",
    "plane",
    "recompute_batch_norm",
    "sequential_specification",
    "specification_of",
    "straight_through",
    "weight_matching",
]
