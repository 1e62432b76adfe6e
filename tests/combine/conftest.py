"""Fixtures of the tests of what comes of several adapters."""

from cli.conftest import graftwork
from training.workbench import backbone, backbone_folder, data, one_thread

__all__ = ["backbone", "backbone_folder", "data", "graftwork", "one_thread"]
