"""What comes of several adapters: a student of teachers, and a pool of fixed size for tasks that arrive in turn."""

from graftwork.combine.distilling import distill
from graftwork.combine.pool import Pool
from graftwork.combine.poolfile import PoolSettings, Step

__all__ = ["Pool", "PoolSettings", "Step", "distill"]
