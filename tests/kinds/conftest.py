"""Fixtures of the tests of kinds of task."""

from cli.conftest import graftwork
from training.workbench import backbone, backbone_folder, one_thread

__all__ = ["backbone", "backbone_folder", "graftwork", "one_thread"]
