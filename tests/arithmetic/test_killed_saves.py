"""Killed at each step of a write, what is saved is the old output or the new one, whole; or none, where there was none:
merged adapters, fully fine-tuned models that are merged as such, and weights.
"""

import shutil

import pytest
import torch
from arithmetic.killing import killed_before
from arithmetic.models import random_tensors, save_tensors
from tiny import make_adapter, make_backbone
from training.workbench import one_thread

from graftwork import Adapter, LoRA
from graftwork.arithmetic import Weights, merge_adapters
from graftwork.arithmetic.merging import folders

__all__ = ["one_thread"]


def contents(path):
    """The bytes of a file, or of all files of a folder by their places."""
    if not path.is_dir():
        return {"": path.read_bytes()} if path.exists() else {}
    return {str(own.relative_to(path)): own.read_bytes() for own in sorted(path.rglob("*")) if own.is_file()}


def killed_at_each_step(save, tmp_path, *, old, name="out"):
    """Save over and over, killed one step later each time, and look at what stands there after each.

    Args:
        save: saves the first or the second thing at a path: `save(path, 0)`, which is there before, `save(path, 1)`.
        old: whether something is there before.

    Returns:
        How often it was killed.
    """
    for number in (0, 1):
        save(tmp_path / f"{number}" / name, number)
    before, after = (contents(tmp_path / f"{number}" / name) for number in (0, 1))
    assert before != after
    where = tmp_path / "where"
    where.mkdir()
    start = before if old else {}
    seen = []

    def put_old():
        if (where / name).is_dir():
            shutil.rmtree(where / name)
        (where / name).unlink(missing_ok=True)
        if old:
            kept = tmp_path / "0" / name
            shutil.copytree(kept, where / name) if kept.is_dir() else shutil.copyfile(kept, where / name)

    put_old()
    for step in range(1, 1000):
        if not killed_before(step, lambda: save(where / name, 1)):
            break
        found = contents(where / name)
        assert found in (start, after), step
        seen.append(found == after)
        if seen[-1]:
            put_old()
    assert [path.name for path in where.iterdir()] == [name]  # nothing of the killed ones is left
    assert contents(where / name) == after
    assert not seen[0]
    assert any(seen)
    return len(seen)


@pytest.fixture(scope="module")
def own_backbone():
    return make_backbone()


@pytest.mark.parametrize("old", [False, True], ids=["new", "old"])
@pytest.mark.parametrize("heads", ["keep", "average"])
def test_merged_adapters(own_backbone, tmp_path, old, heads):
    """A folder with an adapter for each head and one file for what they share, and a single adapter's."""
    made = [
        merge_adapters(
            {
                n: make_adapter(own_backbone, LoRA(rank=2), trained=True, seed=i)
                for i, n in zip(seeds, "ab", strict=True)
            },
            own_backbone,
            heads=heads,
        )
        for seeds in ((0, 1), (2, 3))
    ]
    assert len(made[0].adapters) == (2 if heads == "keep" else 1)

    def save(path, number):
        made[number].save(path, overwrite=path.exists())

    assert killed_at_each_step(save, tmp_path, old=old) > (15 if heads == "keep" else 10)
    out = tmp_path / "where" / "out"
    for folder, adapter in zip(
        [out / name for name in "ab"] if heads == "keep" else [out], made[1].adapters.values(), strict=True
    ):
        assert Adapter.load(folder).digest == adapter.digest


@pytest.mark.parametrize("was", [1, 3], ids=["one before", "several before"])
def test_an_output_of_another_kind_is_replaced_whole(own_backbone, tmp_path, was):
    """One adapter in the place of several, and several in the place of one."""
    own = {n: make_adapter(own_backbone, LoRA(rank=2), trained=True, seed=i) for i, n in enumerate("abc")}
    single, several = (merge_adapters(own, own_backbone, heads=mode) for mode in ("average", "keep"))
    made = [single, several] if was == 1 else [several, single]

    def save(path, number):
        made[number].save(path, overwrite=path.exists())

    assert killed_at_each_step(save, tmp_path, old=True) > 10


@pytest.mark.parametrize(("heads", "old"), [("keep", True), ("average", False)])
def test_merged_models(own_backbone, tmp_path, monkeypatch, heads, old):
    """A folder for each head, and a single one as the folder itself; what a model's folder holds is two small files
    here, since all of it lies in the new folder before that is renamed."""
    own = {n: make_adapter(own_backbone, LoRA(rank=2), trained=True, seed=i) for i, n in enumerate("abc")}
    pairs = [{name: own[name] for name in names} for names in ("ab", "ac")]
    made = [merge_adapters(pair, own_backbone, heads=heads) for pair in pairs]

    def written(adapter, backbone, like, folder):
        folder.mkdir()
        (folder / "config.json").write_text(like.name)
        save_tensors(folder / "model.safetensors", dict(adapter.tensors))

    monkeypatch.setattr(folders, "save_finetuned", written)

    def save(path, number):
        path.parent.mkdir(exist_ok=True)
        like = [tmp_path / name for name in pairs[number]]
        folders._save_models(made[number], pairs[number], like, own_backbone, path, overwrite=path.exists())

    assert killed_at_each_step(save, tmp_path, old=old) > 8
    out = tmp_path / "where" / "out"
    assert (out / "c" / "config.json").read_text() == "c" if heads == "keep" else not (out / "a").exists()


@pytest.mark.parametrize("old", [False, True], ids=["new", "old"])
@pytest.mark.parametrize("name", ["out", "out.safetensors"])
def test_weights(tmp_path, old, name):
    """A model's folder, and a file of a difference."""
    for i in range(2):
        (tmp_path / f"model-{i}").mkdir()
        save_tensors(tmp_path / f"model-{i}" / "model.safetensors", random_tensors(i))
        (tmp_path / f"model-{i}" / "config.json").write_text('{"model_type": "bert"}')
    own = [Weights.open(tmp_path / f"model-{i}") for i in range(2)]

    def save(path, number):
        ((own[0] + own[1]) * (0.5 + 1.5 * number)).save(path, overwrite=path.exists())

    assert killed_at_each_step(save, tmp_path, old=old, name=name) > 2
    found = Weights.open(tmp_path / "where" / name)
    for key, tensor in random_tensors(0).items():
        assert torch.equal(found[key], 2 * (tensor + random_tensors(1)[key]))
