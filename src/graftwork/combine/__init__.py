"""What comes of several adapters: fusions shown, students of teachers, a pool of few adapters, generated adapters."""

from graftwork.combine.attention import PartWeights, part_weights
from graftwork.combine.distilling import distill
from graftwork.combine.generating import Generated, generate_adapter
from graftwork.combine.pool import Pool
from graftwork.combine.poolfile import PoolSettings, Step

__all__ = ["Generated", "PartWeights", "Pool", "PoolSettings", "Step", "distill", "generate_adapter", "part_weights"]
