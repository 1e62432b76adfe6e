"""Pretrained Hugging Face models, frozen, and the names of the places in them where something can act."""

from graftwork.backbones.backbone import Backbone
from graftwork.backbones.checkpoints import Pooling
from graftwork.backbones.sites import Site, SiteKind, Sites

__all__ = ["Backbone", "Pooling", "Site", "SiteKind", "Sites"]
