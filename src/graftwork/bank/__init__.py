"""The bank: adapters in memory, as passes use them. Versions, what is trained, and a budget of bytes."""

from graftwork.bank.bank import Bank
from graftwork.bank.bypassed import Bypassed
from graftwork.bank.lease import Lease, Memory, Merged
from graftwork.bank.resident import Resident
from graftwork.bank.trained import Trained
from graftwork.bank.version import Version

__all__ = ["Bank", "Bypassed", "Lease", "Memory", "Merged", "Resident", "Trained", "Version"]
