"""Merges that read data: Fisher information, donors, regression means, learned coefficients."""
