"""Arithmetic over named tensors: alignment by permutation, and the loss between results."""

from graftwork.arithmetic.activations import activation_matching, recompute_batch_norm
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
    "Line",
    "MatchingSettings",
    "Permutations",
    "Specification",
    "StraightThroughSettings",
    "Surface",
    "activation_matching",
    "around",
    "checkpoint_specification",
    "landscape",
    "line",
    "merge_many",
    "plane",
    "recompute_batch_norm",
    "sequential_specification",
    "specification_of",
    "straight_through",
    "weight_matching",
]
