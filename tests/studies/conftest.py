"""Fixtures of the tests of studies."""

from comparing import values
from training.workbench import backbone_folder, data, one_thread

__all__ = ["backbone_folder", "data", "one_thread", "values"]
