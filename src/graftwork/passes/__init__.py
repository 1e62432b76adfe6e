"""One pass of the backbone: which rows share it, where it begins, and what heads get of it."""
