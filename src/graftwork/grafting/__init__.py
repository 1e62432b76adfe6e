"""Grafting: changes to a backbone's modules. Site modules go in and out, weights are exchanged, layers recomputed."""

from graftwork.grafting.graft import Graft, Running
from graftwork.grafting.recomputing import Recomputing
from graftwork.grafting.site import SiteModule
from graftwork.grafting.wrapper import ModuleWrapper

__all__ = ["Graft", "ModuleWrapper", "Recomputing", "Running", "SiteModule"]
