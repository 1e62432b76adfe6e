"""An adapter and its folder, for every test of them."""

import pytest
from tiny import make_adapter, make_backbone

from graftwork.methods import LoRA


@pytest.fixture(scope="module")
def backbone():
    return make_backbone("bert")


@pytest.fixture
def adapter(backbone):
    return make_adapter(backbone, LoRA(rank=2, targets="query"), trained=True)


@pytest.fixture
def saved(adapter, tmp_path):
    adapter.save(tmp_path / "a")
    return tmp_path / "a"
