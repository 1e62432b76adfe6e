"""What runs at a site: a short closed list of ops, each written once over the primitives of `routing`."""

from graftwork.ops.bottleneck import Bottleneck
from graftwork.ops.dense import Dense
from graftwork.ops.graft import Graft
from graftwork.ops.keyvalue import KeyValue
from graftwork.ops.lowrank import LowRank
from graftwork.ops.norm import Norm
from graftwork.ops.op import Forward, Op
from graftwork.ops.routing import Route

__all__ = ["Bottleneck", "Dense", "Forward", "Graft", "KeyValue", "LowRank", "Norm", "Op", "Route"]
