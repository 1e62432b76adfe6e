"""`graftwork merge rebasin`: models whose units are in another order are merged as if they were not."""

import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny import make_config, randomised
from transformers import AutoModelForSequenceClassification

from graftwork.arithmetic.alignment.specifications import checkpoint_specification
from graftwork.backbones import Backbone


def classifier(folder, seed, kind="bert"):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        config = make_config(kind, num_labels=3, pad_token_id=0)
        randomised(AutoModelForSequenceClassification.from_config(config), seed=seed).save_pretrained(folder)
    return folder


def tensors(folder):
    return load_file(folder / "model.safetensors")


def shuffled(folder, to, seed):
    """A model of the same function, with its units in another order."""
    shutil.copytree(folder, to)
    own = tensors(folder)
    shapes = {name: tuple(tensor.shape) for name, tensor in own.items()}
    moved = checkpoint_specification(Backbone.outline(str(folder)), shapes).random(seed).apply(own)
    kept = {name: tensor.contiguous() for name, tensor in moved.items()}
    save_file(kept, to / "model.safetensors", metadata={"format": "pt"})
    return to


@pytest.mark.parametrize("kind", ["bert", "gpt2", "llama"])
def test_shuffled_copies_of_a_model_are_merged_into_it(graftwork, tmp_path, kind):
    own = classifier(tmp_path / "own", 0, kind)
    others = [shuffled(own, tmp_path / f"other-{seed}", seed) for seed in (1, 2, 3)]
    for count in (1, 3):
        out = tmp_path / f"out-{count}"
        ran = graftwork("merge", "rebasin", own, *others[:count], "--output", out)
        assert ran.status == 0, ran.err
        assert f"of '{others[0]}' are moved" in ran.err
        # The mean of equals is computed in float32.
        found = tensors(out)
        assert all((found[name] - tensor).abs().max() <= 1e-6 for name, tensor in tensors(own).items())


def test_a_head_that_is_kept_fits_the_body(graftwork, tmp_path):
    own = classifier(tmp_path / "own", 0)
    other = shuffled(own, tmp_path / "other", 1)
    out = tmp_path / "out"
    assert graftwork("merge", "rebasin", own, other, "--heads", "keep", "--output", out, "--quiet").status == 0
    ids = torch.tensor([[5, 6, 7, 8]])
    models = [AutoModelForSequenceClassification.from_pretrained(folder).eval() for folder in (own, out)]
    with torch.no_grad():
        before, after = (model(input_ids=ids).logits for model in models)
    assert (after - before).abs().max() <= 1e-5 * before.abs().max()


def test_groups_can_be_fixed_by_command(graftwork, tmp_path):
    own, other = (classifier(tmp_path / name, seed) for seed, name in enumerate("ab"))
    arguments = ["merge", "rebasin", own, other, "--quiet"]
    for name in ("residual", "residual,pooler"):
        ran = graftwork(*arguments, "--method.fixed", name, "--output", tmp_path / name)
        assert (ran.status, ran.err) == (0, "")
    assert tensors(tmp_path / "residual")["classifier.weight"].shape == (3, 32)
    wrong = graftwork(*arguments, "--method.fixed", "layers", "--output", tmp_path / "no")
    assert wrong.status == 2
    assert "'layers' is no group of units" in wrong.err


def test_adapters_are_refused(graftwork, tuned, tmp_path):
    ran = graftwork("merge", "rebasin", tuned / "lora", tuned / "more", "--output", tmp_path / "out", "--quiet")
    assert ran.status == 2
    assert "rebasin" in ran.err
    assert not (tmp_path / "out").exists()
