"""Fixtures of the tests of training."""

from training.kinds import backbones, kinds_data
from training.short import run, task, whole
from training.workbench import backbone, backbone_folder, data, one_thread, other_backbone_folder

__all__ = [
    "backbone",
    "backbone_folder",
    "backbones",
    "data",
    "kinds_data",
    "one_thread",
    "other_backbone_folder",
    "run",
    "task",
    "whole",
]
