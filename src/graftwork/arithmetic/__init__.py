"""Arithmetic over named tensors: alignment by permutation, and the loss between results."""
