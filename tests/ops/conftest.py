"""A place for an op to run at, without a model."""

from dataclasses import dataclass, field

import pytest
import torch.nn as nn
from torch import Tensor

from graftwork.ops import Route


@dataclass
class LonePlace:
    inner: nn.Module = field(default_factory=nn.Identity)
    route: Route = field(default_factory=Route)
    training: bool = False
    memory: dict[str, Tensor] = field(default_factory=dict)


@pytest.fixture
def make_place():
    return LonePlace
