"""Adapters: what was trained, in memory and on disk, and its head."""

from graftwork.adapters.adapter import Adapter, BackboneIdentity, TaskIdentity
from graftwork.adapters.folder import read_adapter, write_adapter
from graftwork.adapters.head import Head
from graftwork.adapters.resident import Resident

__all__ = ["Adapter", "BackboneIdentity", "Head", "Resident", "TaskIdentity", "read_adapter", "write_adapter"]
