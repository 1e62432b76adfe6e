"""Pretrained Hugging Face models, frozen, and the names of the places in them where something can act."""

from graftwork.backbones.backbone import Backbone
from graftwork.backbones.pooling import Pooling, PoolingSource
from graftwork.backbones.sites import Site, SiteKind, Sites

__all__ = ["Backbone", "Pooling", "PoolingSource", "Site", "SiteKind", "Sites"]
