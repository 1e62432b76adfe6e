"""Model arithmetic: checkpoints and adapters as vectors that can be added, scaled, merged and aligned."""

from graftwork.arithmetic.adaptermerging import MergedAdapters, merge_adapters
from graftwork.arithmetic.knots import knots

__all__ = ["MergedAdapters", "knots", "merge_adapters"]
