"""Pretrained Hugging Face models, frozen, and the names of the places in them where something can act."""

from graftwork.backbones.backbone import Backbone
from graftwork.backbones.checkpoint_tensors import CheckpointTensor
from graftwork.backbones.pooling import Pooling, PoolingSource
from graftwork.backbones.sites import Site, SiteKind, Sites
from graftwork.backbones.weights import Location, Weights

__all__ = [
    "Backbone",
    "CheckpointTensor",
    "Location",
    "Pooling",
    "PoolingSource",
    "Site",
    "SiteKind",
    "Sites",
    "Weights",
]
