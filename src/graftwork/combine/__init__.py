"""What comes of several adapters: what a fusion attends to."""

from graftwork.combine.attention import PartWeights, part_weights

__all__ = ["PartWeights", "part_weights"]
