"""Adapters: what was trained, and its folder on disk."""

from graftwork.adapters.adapter import Adapter
from graftwork.adapters.folder import write_adapter
from graftwork.adapters.identity import BackboneIdentity
from graftwork.encoding.identity import TaskIdentity

__all__ = ["Adapter", "BackboneIdentity", "TaskIdentity", "read_adapter", "write_adapter"]

read_adapter = Adapter.load
"""The same as `Adapter.load`."""
