"""Files of states keep within their bounds, and say when they are not what was written."""

import os

import pytest
import torch
from safetensors.torch import save_file
from training.workbench import names_in

from graftwork.training.statefiles import DamagedError, StateFiles, _checksum, size_of


def pieces(value):
    return torch.tensor([0, 2, 5]), 4, torch.float32, iter([torch.full((5, 4), value)])


def test_what_was_not_used_for_longest_makes_room(tmp_path):
    size = size_of(*pieces(0.0)[:3])
    files = StateFiles(tmp_path, 3 * size)
    for age, key in enumerate("abc"):
        files.write(key, *pieces(float(age)))
        os.utime(tmp_path / f"{key}.safetensors", (1_000 + age,) * 2)
    assert (tmp_path / "a.safetensors").stat().st_size == size
    assert files.read("a") is not None
    files.write("d", *pieces(3.0))
    assert names_in(tmp_path) == ["a.safetensors", "c.safetensors", "d.safetensors"]
    bounds, states = files.read("d")
    assert bounds.tolist() == [0, 2, 5]
    assert states.eq(3.0).all()
    assert files.read("b") is None


def test_a_file_of_other_bounds_is_damaged(tmp_path):
    bounds, width, dtype, _ = pieces(0.0)
    files = StateFiles(tmp_path, 10_000)
    with pytest.raises(OSError, match="not what is read back"):
        files.write("a", bounds, width, dtype, iter([torch.zeros(4, 4)]))
    states = torch.zeros(4, 4)
    checksum = {"crc32": _checksum(bounds, states)}
    save_file({"bounds": bounds, "states": states}, tmp_path / "a.safetensors", metadata=checksum)
    with pytest.raises(DamagedError):
        files.read("a")
    assert names_in(tmp_path) == []
