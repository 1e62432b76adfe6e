"""What comes of several adapters: what a fusion attends to, and a student of teachers."""

from graftwork.combine.attention import PartWeights, part_weights
from graftwork.combine.distilling import distill

__all__ = ["PartWeights", "distill", "part_weights"]
