"""What comes of several adapters: an adapter that a hypernetwork generates."""

from graftwork.combine.generating import Generated, generate_adapter

__all__ = ["Generated", "generate_adapter"]
