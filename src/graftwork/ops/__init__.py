"""What runs at a site: a short closed list of ops, each written once over the primitives of `routing`."""

from graftwork.ops.added import Added
from graftwork.ops.bias import Bias
from graftwork.ops.bottleneck import Bottleneck
from graftwork.ops.dense import Dense
from graftwork.ops.fused import Fused, PartGates
from graftwork.ops.gated import Gated
from graftwork.ops.grid import Grid
from graftwork.ops.keyvalue import KeyValue
from graftwork.ops.lowrank import LowRank
from graftwork.ops.norm import Norm
from graftwork.ops.op import Forward, Op, Ops, Place
from graftwork.ops.prompt import Prompt, PromptedEncoder
from graftwork.ops.remember import Remember
from graftwork.ops.routing import Route
from graftwork.ops.scale import Scale
from graftwork.ops.shared import Shared
from graftwork.ops.sharedlowrank import SharedLowRank
from graftwork.ops.unitnorms import UnitNorms

__all__ = [
    "Added",
    "Bias",
    "Bottleneck",
    "Dense",
    "Forward",
    "Fused",
    "Gated",
    "Grid",
    "KeyValue",
    "LowRank",
    "Norm",
    "Op",
    "Ops",
    "PartGates",
    "Place",
    "Prompt",
    "PromptedEncoder",
    "Remember",
    "Route",
    "Scale",
    "Shared",
    "SharedLowRank",
    "UnitNorms",
]
