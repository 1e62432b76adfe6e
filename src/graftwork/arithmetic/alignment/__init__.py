"""Git Re-Basin: which units of a network can be permuted, and how two networks are brought in one order."""
