"""Fixtures of the tests of studies: the program in this process, a tiny backbone's folder, data, a small study."""

from cli.conftest import graftwork
from comparing import values
from training.workbench import backbone, backbone_folder, data, one_thread, other_backbone_folder

__all__ = ["backbone", "backbone_folder", "data", "graftwork", "one_thread", "other_backbone_folder", "values"]
