"""A run with the prefix cache learns what one without it does, and computes what it keeps once."""

import logging
import os
import shutil
import time
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from closeness import close
from tiny import make_adapter
from training.workbench import FAST, KilledError, at_step, contents, killed

from graftwork import (
    AdaptedModel,
    Backbone,
    FeatureExtraction,
    FullFineTuning,
    HeadOnly,
    Houlsby,
    LoRA,
    PromptTuning,
    Task,
    tune,
)
from graftwork.errors import BackboneError, RecipeError
from graftwork.heads import PooledHead
from graftwork.passes.starts import HeadStart
from graftwork.training.prefix_cache import key_of
from graftwork.training.statefiles import STALE, StateFiles

UPPER = LoRA(rank=4, targets="layers.1.*")
OFF = {"backbone_dropout": "off"}
METHODS = {
    "lora": (UPPER, {}),
    "houlsby": (Houlsby(bottleneck=4, skip_layers=1), {}),
    "full": (FullFineTuning(top_layers=1), {**OFF, "learning_rate": 1e-3}),
    "head": (HeadOnly(), {}),
    "features": (FeatureExtraction(), {}),
}
"""Methods below which something is frozen, and the settings that they need besides."""

KINDS = {
    "tags": ("bert", {"kind": "token-classification", "text": "words", "label": "tags"}),
    "choices": ("bert", {"kind": "multiple-choice", "text": "question", "choices": "choices"}),
    "likelihood": ("gpt2", {"kind": "multiple-choice", "text": "question", "choices": "choices"}),
    "generation": ("gpt2", {"kind": "generation", "text": "source", "label": "target", "metrics": ["loss"]}),
}


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """A cache of the test's own; gives the folder of what is kept."""
    monkeypatch.setenv("GRAFTWORK_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "states"


@pytest.fixture
def task(data):
    return Task(name="classes", text="text", data=str(data["classes"]))


@pytest.fixture
def run(backbone, task):
    """Tune the upper layer, or as is asked for."""

    def run(method=UPPER, *, task=task, backbone=backbone, output=None, resume=False, prefix_cache="on", **changes):
        # The baseline has passes of its own.
        settings = {**FAST, "prefix_cache": prefix_cache, "baseline": "off", **changes}
        return tune(backbone, task=task, method=method, output=output, resume=resume, **settings)

    return run


@contextmanager
def counted(backbone, path):
    """How often the module at a path of the backbone is called inside."""
    calls = []
    hook = backbone.model.get_submodule(path).register_forward_hook(lambda *_: calls.append(1))
    try:
        yield calls
    finally:
        hook.remove()


def kept_in(folder):
    return sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []


def check_same(one, other):
    """Equal but for what a few steps make of the rounding of other batches."""
    assert one.tensors.keys() == other.tensors.keys()
    # Some tensors are moved by rounding only, such as a bias that all choices share.
    largest = max(float(tensor.abs().max()) for tensor in other.tensors.values())
    for name, tensor in other.tensors.items():
        close(one.tensors[name], tensor, scale=largest, what=name)


# With and without


@pytest.mark.parametrize("case", METHODS)
def test_the_same_is_learned(run, cache, case):
    method, settings = METHODS[case]
    # Of Adam a gradient that is 0 but for rounding would make a whole step.
    settings = {"optim": "sgd", **settings, "learning_rate": 0.1}
    with_, without = run(method, **settings), run(method, prefix_cache="off", **settings)
    assert len(kept_in(cache)) == 1
    check_same(with_, without)
    assert with_.metrics["validation"] == pytest.approx(without.metrics["validation"], rel=1e-5)


@pytest.mark.parametrize("case", KINDS)
def test_every_kind_of_text(run, cache, backbones, kinds_data, case):
    name, fields = KINDS[case]
    backbone = Backbone.load(str(backbones[name]), dtype="float32", device="cpu")
    task = Task.parse({"name": case, "data": str(kinds_data[case]), "validation_fraction": 0.2, **fields}, origin="it")
    settings = {"task": task, "backbone": backbone, "optim": "sgd", "learning_rate": 0.1}
    with_, without = run(**settings), run(**settings, prefix_cache="off")
    assert len(kept_in(cache)) == 1
    check_same(with_, without)


def test_what_is_computed_in_bfloat16_is_kept_in_it(run, cache, backbone_folder):
    backbone = Backbone.load(str(backbone_folder), dtype="bfloat16", device="cpu")
    run(backbone=backbone)
    [name] = kept_in(cache)
    _, states = StateFiles(cache, 0).read(name.removesuffix(".safetensors"))
    assert (states.dtype, states.shape[1]) == (torch.bfloat16, backbone.hidden_size)
    run(HeadOnly(), backbone=backbone)
    assert len(kept_in(cache)) == 2


@pytest.mark.parametrize("method", [HeadOnly(), UPPER], ids=lambda method: method.name)
def test_what_one_precision_keeps_is_not_read_in_another(run, cache, backbone_folder, method):
    """A vector of a text is float32 whatever the backbone computes in."""
    precisions = {
        name: Backbone.load(str(backbone_folder), dtype=name, device="cpu") for name in ("float32", "bfloat16")
    }
    alone = {}
    for name, backbone in precisions.items():
        shutil.rmtree(cache, ignore_errors=True)
        alone[name] = contents_of(run(method, backbone=backbone))
    found = {name: contents_of(run(method, backbone=backbone)) for name, backbone in precisions.items()}
    assert found == alone
    assert found["float32"] != found["bfloat16"]
    assert len(kept_in(cache)) == 2


def a_weight(backbone):
    return next(backbone.model.parameters())


DECIDING = {
    "the attention function": lambda backbone, patch: patch.setattr(
        backbone.config, "_attn_implementation_internal", "eager"
    ),
    "the libraries": lambda backbone, patch: patch.setattr(
        "graftwork.training.prefix_cache.library_versions", lambda: {"torch": "0"}
    ),
    "the processor's instructions": lambda backbone, patch: patch.setattr(
        torch.backends.cpu, "get_cpu_capability", lambda: "NONE"
    ),
    "threads": lambda backbone, patch: patch.setattr(torch, "get_num_threads", lambda: 77),
    "limits": lambda backbone, patch: patch.setenv("ONEDNN_MAX_CPU_ISA", "SSE41"),
    "products": lambda backbone, patch: patch.setattr(torch, "get_float32_matmul_precision", lambda: "medium"),
    "one weight's precision": lambda backbone, patch: patch.setattr(
        a_weight(backbone), "data", a_weight(backbone).data.half()
    ),
    "one number": lambda backbone, patch: patch.setattr(a_weight(backbone), "data", a_weight(backbone).data + 1),
}


@pytest.mark.parametrize("what", DECIDING)
def test_whatever_decides_the_states_is_in_the_key(backbone, what, monkeypatch):
    start = HeadStart(backbone, PooledHead(kind="classification", num_outputs=2, pooling="first"))
    before = key_of(backbone, start, torch.float32, "texts")
    assert key_of(backbone, start, torch.float32, "texts") == before
    DECIDING[what](backbone, monkeypatch)
    assert key_of(backbone, start, torch.float32, "texts") != before


# Once


def test_lower_layers_are_run_once_for_each_text(run, backbone):
    lower, upper = "encoder.layer.0.output.dense", "encoder.layer.1.output.dense"
    with counted(backbone, lower) as plain, counted(backbone, upper) as above:
        run(prefix_cache="off")
    assert len(plain) == len(above)
    with counted(backbone, lower) as filling, counted(backbone, upper):
        run()
    with counted(backbone, lower) as filled, counted(backbone, upper) as above:
        run(seed=3)
    assert len(above) > 2 * len(filled)
    assert len(filled) < len(filling) < len(plain)
    # The proof takes two, the size is told from one, and the finished adapter is scored without the cache.
    assert len(filled) == 2 + 1 + 1


@pytest.mark.parametrize("method", [HeadOnly(), FeatureExtraction()])
def test_a_head_is_trained_from_the_cache_alone(run, backbone, method):
    run(method)
    with counted(backbone, "encoder.layer.0.output.dense") as calls:
        run(method, seed=3, num_train_epochs=5, learning_rate=0.02)
    # The size is told from one pass, and the finished adapter is scored without the cache.
    assert len(calls) == 1 + 1


def test_other_methods_share_what_is_kept(run, cache):
    run()
    run(Houlsby(bottleneck=4, skip_layers=1), seed=2)
    assert len(kept_in(cache)) == 1
    run(HeadOnly())
    assert len(kept_in(cache)) == 2


def test_another_backbone_has_its_own(run, cache, other_backbone_folder):
    run()
    run(backbone=Backbone.load(str(other_backbone_folder), dtype="float32", device="cpu"))
    assert len(kept_in(cache)) == 2


def test_the_backbone_is_as_it_was(run, backbone):
    before = dict(backbone.model.named_modules())
    run()
    assert dict(backbone.model.named_modules()) == before


# Killed and damaged


def test_a_killed_run_resumes_to_the_same_bytes(run, tmp_path):
    settings = {"eval_strategy": "steps", "eval_steps": 5, "max_steps": 16}
    run(output=tmp_path / "whole", **settings)
    with killed(at_step(8)):
        run(output=tmp_path / "a", **settings)
    run(output=tmp_path / "a", resume=True, **settings)
    assert contents(tmp_path / "a") == contents(tmp_path / "whole")


def test_what_a_killed_run_was_writing_is_written_anew(run, cache, tmp_path, monkeypatch):
    plain = os.replace

    def killed(source, target):
        if Path(target).parent != cache:
            return plain(source, target)
        shutil.copytree(cache, tmp_path / "then")
        raise KilledError

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", killed)
        with pytest.raises(KilledError):
            run()
    shutil.rmtree(cache)
    (tmp_path / "then").rename(cache)
    [half] = cache.iterdir()
    assert half.suffix == ".partial"
    whole = run()
    # It could be another run's, which is writing still.
    assert half.exists()
    assert len(kept_in(cache)) == 2
    os.utime(half, (time.time() - STALE - 1,) * 2)
    run(HeadOnly())
    assert not half.exists()
    assert contents_of(whole) == contents_of(run())


def contents_of(adapter):
    return {name: tensor.tolist() for name, tensor in adapter.tensors.items()}


def cut(data):
    return data[: len(data) // 2]


def change(data):
    return data[:-1] + bytes([data[-1] ^ 1])


def empty(data):
    return b""


@pytest.mark.parametrize("damage", [cut, change, empty])
def test_a_damaged_file_is_made_anew(run, cache, caplog, damage):
    expected = contents_of(run())
    [file] = cache.iterdir()
    whole = file.read_bytes()
    file.write_bytes(damage(whole))
    assert contents_of(run()) == expected
    assert "damaged" in caplog.text
    assert file.read_bytes() == whole


@pytest.mark.parametrize("removed", ["as it is written", "before it has its name", "before it is read again"])
def test_the_folder_can_be_deleted_at_any_time(run, cache, monkeypatch, removed):
    expected = contents_of(run(prefix_cache="off"))
    deleted = []

    def delete(plain, when=lambda *_: True):
        def deleting(*args, **kwargs):
            if not deleted and cache.exists() and when(*args):
                deleted.append(kept_in(cache))
                shutil.rmtree(cache)
            return plain(*args, **kwargs)

        return deleting

    if removed == "as it is written":
        monkeypatch.setattr(os, "fsync", delete(os.fsync))
    elif removed == "before it has its name":
        monkeypatch.setattr(
            os, "replace", delete(os.replace, lambda source, target: str(target).startswith(str(cache)))
        )
    else:
        run()
        monkeypatch.setattr(os, "utime", delete(os.utime))
    learned = contents_of(run())
    assert len(deleted[0]) == 1
    assert learned.keys() == expected.keys()
    assert all(torch.allclose(torch.tensor(learned[n]), torch.tensor(expected[n]), atol=1e-5) for n in learned)


# Bounds


def test_too_many_states_for_the_room(run, cache, caplog):
    with pytest.raises(RecipeError, match="there is room for 1e-06 GB"):
        run(prefix_cache_gb=1e-6)
    adapter = run(prefix_cache="auto", prefix_cache_gb=1e-6)
    assert "--train.prefix_cache_gb" in caplog.text
    assert kept_in(cache) == []
    assert contents_of(adapter) == contents_of(run(prefix_cache="off"))


def test_a_folder_that_cannot_be_written(run, tmp_path, caplog, monkeypatch):
    monkeypatch.setenv("GRAFTWORK_CACHE", str(tmp_path / "file"))
    Path(tmp_path / "file").write_text("")
    with pytest.raises(RecipeError, match="cannot be written"):
        run()
    run(prefix_cache="auto")
    assert "cannot be written" in caplog.text


# What it is not for


@pytest.mark.parametrize("settings", [{"num_train_epochs": 1}, {"max_steps": 20}])
def test_a_short_run_fills_nothing_by_itself(run, cache, settings):
    run(prefix_cache="auto", **settings)
    assert kept_in(cache) == []
    run(**settings)
    assert len(kept_in(cache)) == 1


@pytest.mark.parametrize("settings", [{}, {"tokens_per_batch": 10_000, "max_steps": 3}])
def test_two_epochs_are_enough(run, cache, settings):
    run(prefix_cache="auto", **settings)
    assert len(kept_in(cache)) == 1


@pytest.mark.parametrize(
    ("method", "settings", "why"),
    [
        (LoRA(rank=4), {}, "acts at layers.0"),
        (PromptTuning(num_virtual_tokens=2, init="uniform"), {}, "acts at input"),
        (FullFineTuning(), OFF, "acts at embeddings"),
        (FullFineTuning(top_layers=1), {}, "dropout is kept"),
        (UPPER, {"backbone_dropout": "keep"}, "dropout is kept"),
    ],
)
def test_where_nothing_can_be_kept(run, cache, caplog, method, settings, why):
    with pytest.raises(RecipeError, match=why) as raised:
        run(method, **settings)
    assert raised.value.change == "--train.prefix_cache"
    with caplog.at_level(logging.WARNING, "graftwork"):
        run(method, prefix_cache="auto", **settings)
    assert "cache" not in caplog.text
    assert kept_in(cache) == []


@pytest.mark.parametrize(
    ("case", "name", "method", "why"),
    [
        ("images", "vit", LoRA(rank=4, targets="layers.1.*"), "images"),
        ("generation-t5", "t5", LoRA(rank=4, targets="decoder.layers.1.*"), "encoder-decoder"),
    ],
)
def test_kinds_of_which_nothing_can_be_kept(run, backbones, kinds_data, case, name, method, why):
    backbone = Backbone.load(str(backbones[name]), dtype="float32", device="cpu")
    fields = {"kind": "image-classification"} if case == "images" else KINDS["generation"][1]
    task = Task.parse({"name": "it", "data": str(kinds_data[case]), "validation_fraction": 0.2, **fields}, origin="it")
    with pytest.raises(RecipeError, match=why):
        run(method, task=task, backbone=backbone)


def test_an_encoder_decoders_head_is_trained_from_the_cache(run, cache, backbones, data):
    backbone = Backbone.load(str(backbones["t5"]), dtype="float32", device="cpu")
    run(HeadOnly(), backbone=backbone)
    with counted(backbone, "encoder.block.0.layer.0") as calls:
        run(HeadOnly(), backbone=backbone, seed=1)
    assert len(calls) == 1 + 1


# Only a clean backbone


@pytest.mark.parametrize("merged", [False, True])
@pytest.mark.parametrize("method", [HeadOnly(), UPPER], ids=["head", "upper"])
def test_a_backbone_in_use_is_not_tuned_and_fills_no_cache(run, backbone, cache, method, merged):
    model = AdaptedModel(backbone, {"a": make_adapter(backbone, LoRA(rank=2), trained=True)})
    if merged:
        model.merge("a")
    with pytest.raises(BackboneError, match="in use by another AdaptedModel"):
        run(method)
    model.detach()
    assert not cache.exists()
    run(method)
    assert len(list(cache.iterdir())) == 1
