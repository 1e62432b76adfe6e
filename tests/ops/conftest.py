"""A place for an op to run at, without a model."""

from dataclasses import dataclass, field

import pytest
import torch.nn as nn
from torch import Tensor


@dataclass
class LonePlace:
    module: nn.Module = field(default_factory=nn.Identity)
    training: bool = False
    memory: dict[str, Tensor] = field(default_factory=dict)


@pytest.fixture
def make_place():
    return LonePlace
