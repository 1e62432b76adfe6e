"""Adapters: what was trained, in memory and on disk."""

from graftwork.adapters.adapter import Adapter
from graftwork.adapters.bank import Bank, Memory
from graftwork.adapters.folder import read_adapter, write_adapter
from graftwork.adapters.identity import BackboneIdentity, TaskIdentity
from graftwork.adapters.resident import Resident

__all__ = ["Adapter", "BackboneIdentity", "Bank", "Memory", "Resident", "TaskIdentity", "read_adapter", "write_adapter"]
