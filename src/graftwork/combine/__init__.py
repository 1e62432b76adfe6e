"""What comes of several adapters: what a fusion attends to, a student of teachers, and a pool for tasks in turn."""

from graftwork.combine.attention import PartWeights, part_weights
from graftwork.combine.distilling import distill
from graftwork.combine.pool import Pool
from graftwork.combine.poolfile import PoolSettings, Step

__all__ = ["PartWeights", "Pool", "PoolSettings", "Step", "distill", "part_weights"]
