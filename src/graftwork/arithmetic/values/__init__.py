"""Weights: the tensors of a model or of a difference of models, as values that are read when they are asked for."""
