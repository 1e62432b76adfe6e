"""Merges by name or recipe: the table of methods, what a merge will do, and what its result scores."""
