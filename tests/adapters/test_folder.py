"""An adapter's folder: exactly its files, the same bytes each time, and strict to read."""

import json
import os
import re
import stat
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny import SAMPLES, make_adapter, make_backbone

from graftwork.adapters import Adapter, BackboneIdentity, folder, read_adapter, write_adapter
from graftwork.errors import AdapterError, OutputError
from graftwork.methods import LoRA, VeRA
from graftwork.model import AdaptedModel

FILES = {"adapter.json", "adapter.safetensors", "README.md"}


def names(path) -> set[str]:
    return {file.name for file in path.iterdir()}


def contents(path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in path.iterdir()}


def same(one: Adapter, other: Adapter) -> bool:
    fields = ("method", "head", "task", "backbone", "metrics", "seed", "recipe", "versions")
    return (
        all(getattr(one, name) == getattr(other, name) for name in fields)
        and one.tensors.keys() == other.tensors.keys()
        and all(torch.equal(tensor, other.tensors[name]) for name, tensor in one.tensors.items())
    )


@pytest.mark.parametrize("name", SAMPLES)
def test_everything_survives(name, backbone, tmp_path):
    adapter = replace(
        make_adapter(backbone, SAMPLES[name], trained=True, seed=7),
        metrics={"validation": {"accuracy": 0.1 + 0.2, "f1": 1 / 3}, "test": {"accuracy": 1.0}},
        recipe={"train": {"learning_rate": 3e-4, "seed": 7}, "method": "ü", "list": [1, None, True]},
        versions={"graftwork": "0.0.1"},
    )
    adapter.save(tmp_path / "a")
    assert same(Adapter.load(tmp_path / "a"), adapter)
    assert same(Adapter.load(str(tmp_path / "a")), adapter)
    assert names(tmp_path / "a") == FILES | {"recipe.yaml"}


def test_a_folder_holds_exactly_its_files(saved, tmp_path):
    assert names(saved) == FILES
    assert names(tmp_path) == {"a"}
    assert set(json.loads((saved / "adapter.json").read_text(encoding="utf-8"))) == {
        *("schema_version", "method", "sites", "tensors", "fixed", "head", "task", "backbone"),
        *("metrics", "baseline", "rows", "seed", "versions", "checksums"),
    }
    assert set(load_file(saved / "adapter.safetensors")) == {
        *(f"layers.{i}.attention.query.{matrix}" for i in range(2) for matrix in "AB"),
        *("head.classifier.weight", "head.classifier.bias"),
    }


def test_a_regression_adapter_and_one_without_scores_survive(backbone, tmp_path):
    adapter = make_adapter(backbone, LoRA(rank=2), kind="regression")
    adapter.save(tmp_path / "a")
    loaded = Adapter.load(tmp_path / "a")
    assert same(loaded, adapter)
    assert loaded.task.labels is None
    assert loaded.recipe == {}


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_score_that_is_no_number_survives(adapter, tmp_path, value):
    """The correlation of constant predictions is undefined: such an adapter must not become unreadable."""
    replace(adapter, metrics={"test": {"pearson": value}}).save(tmp_path / "a")
    assert repr(Adapter.load(tmp_path / "a").metrics["test"]["pearson"]) == repr(value)


def test_the_same_adapter_gives_the_same_bytes(adapter, saved, tmp_path):
    adapter.save(tmp_path / "b")
    assert contents(tmp_path / "b") == contents(saved)
    Adapter.load(saved).save(tmp_path / "c")
    assert contents(tmp_path / "c") == contents(saved)
    backwards = replace(adapter, tensors=dict(reversed(adapter.tensors.items())))
    backwards.save(tmp_path / "d")
    assert contents(tmp_path / "d") == contents(saved)


@pytest.mark.parametrize("mask", [0o022, 0o077])
def test_permissions_follow_the_umask(adapter, tmp_path, mask):
    before = os.umask(mask)
    try:
        write_adapter(replace(adapter, recipe={"a": 1}), tmp_path / "a", beside={"log.txt": "x"})
        assert os.umask(mask) == mask
    finally:
        os.umask(before)
    assert names(tmp_path / "a") == FILES | {"recipe.yaml", "log.txt"}
    assert {stat.S_IMODE(file.stat().st_mode) for file in (tmp_path / "a").iterdir()} == {0o666 & ~mask}
    assert stat.S_IMODE((tmp_path / "a").stat().st_mode) == 0o777 & ~mask


def test_missing_parents_are_made(adapter, tmp_path):
    adapter.save(tmp_path / "x" / "y" / "a")
    assert names(tmp_path / "x" / "y") == {"a"}


def test_an_existing_output_is_refused_and_left_alone(adapter, backbone, saved, tmp_path):
    before = contents(saved)
    with pytest.raises(OutputError, match=r"exists already\n.*\n  change: --output, or --overwrite"):
        make_adapter(backbone, LoRA(rank=3)).save(saved)
    assert contents(saved) == before
    (tmp_path / "file").touch()
    for overwrite in (False, True):
        with pytest.raises(OutputError, match=r"exists already\n.*\n  change: --output$"):
            adapter.save(tmp_path / "file", overwrite=overwrite)
    assert names(tmp_path) == {"a", "file"}


def test_overwriting_replaces_the_whole_folder(backbone, saved, tmp_path):
    (saved / "left-over.txt").touch()
    other = make_adapter(backbone, LoRA(rank=3))
    other.save(saved, overwrite=True)
    assert names(saved) == FILES
    assert same(Adapter.load(saved), other)
    assert names(tmp_path) == {"a"}


# -- what is refused -----------------------------------------------------------------------------------------------


def edit(path, **values):
    file = path / "adapter.json"
    file.write_text(json.dumps(json.loads(file.read_text(encoding="utf-8")) | values), encoding="utf-8")


def edit_tensors(path, change):
    tensors = load_file(path / "adapter.safetensors")
    change(tensors)
    save_file(tensors, path / "adapter.safetensors")


def seal(path):
    """Give edited files the checksums that they would have been written with."""
    content = json.loads((path / "adapter.json").read_text(encoding="utf-8"))
    edit(path, checksums=folder._checksums(content, load_file(path / "adapter.safetensors")))


def cut(path):
    file = path / "adapter.safetensors"
    file.write_bytes(file.read_bytes()[:-8])


DAMAGES = {
    "no configuration": (lambda p: (p / "adapter.json").unlink(), r"is not an adapter folder: it has no adapter\.json"),
    "not JSON": (lambda p: (p / "adapter.json").write_text("{", encoding="utf-8"), "is not JSON"),
    "JSON but no object": (lambda p: (p / "adapter.json").write_text("[]", encoding="utf-8"), "is not an adapter's"),
    "not text": (lambda p: (p / "adapter.json").write_bytes(b"\xff\xfe"), "cannot be read"),
    "unknown key": (lambda p: edit(p, sedd=1), "unknown key 'sedd'"),
    "unknown key inside": (lambda p: edit(p, task={"name": "t", "lables": []}), r"unknown key 'task\.lables'"),
    "missing key": (lambda p: edit(p, head=None), "head(=None)?: there is no head of kind None"),
    "unknown method": (lambda p: edit(p, method={"name": "lorra"}), "method that this version .* 'lorra'"),
    "no method": (lambda p: edit(p, method={}), "method that this version does not have"),
    "unknown setting": (lambda p: edit(p, method={"name": "lora", "rnak": 2}), "unknown key 'rnak'"),
    "newer schema": (lambda p: edit(p, schema_version=4), r"schema version 4\n  expected: schema version 3"),
    "schema that is no number": (lambda p: edit(p, schema_version="x"), r"schema_version='x': expected 1, 2 or 3"),
    "no tensors": (lambda p: (p / "adapter.safetensors").unlink(), r"has no adapter\.safetensors"),
    "truncated": (cut, "is damaged"),
    "empty": (lambda p: (p / "adapter.safetensors").write_bytes(b""), "is damaged"),
    "other numbers": (
        lambda p: save_file({"x": torch.ones(2, dtype=torch.float8_e8m0fnu)}, p / "adapter.safetensors"),
        r"does not belong to adapter\.json",
    ),
    "foreign tensors": (
        lambda p: save_file({"base_model.lora_A.weight": torch.ones(2)}, p / "adapter.safetensors"),
        r"does not belong to adapter\.json: it lacks head\.classifier\.bias; .* and 2 more",
    ),
    "lost site": (
        lambda p: edit_tensors(p, lambda t: [t.pop(f"layers.1.attention.query.{m}") for m in "AB"]),
        r"it lacks layers\.1\.attention\.query\.A; lacks layers\.1\.attention\.query\.B",
    ),
    "damaged recipe": (lambda p: (p / "recipe.yaml").write_text("a: [1", encoding="utf-8"), r"recipe\.yaml"),
    "recipe that is no mapping": (lambda p: (p / "recipe.yaml").write_text("- 1", encoding="utf-8"), r"recipe\.yaml"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damage_is_one_clear_error(saved, damage):
    change, message = DAMAGES[damage]
    read_adapter(saved)
    change(saved)
    with pytest.raises(AdapterError, match=message) as caught:
        Adapter.load(saved)
    assert str(saved) in str(caught.value)


def test_a_missing_folder(tmp_path):
    with pytest.raises(AdapterError, match="does not exist"):
        Adapter.load(tmp_path / "nowhere")
    (tmp_path / "file").touch()
    with pytest.raises(AdapterError, match="file"):
        Adapter.load(tmp_path / "file")


MISFITS = {
    "missing key": (lambda t: t.pop("layers.0.attention.query.B"), "lacks layers.0.attention.query.B"),
    "missing head": (lambda t: t.pop("head.classifier.bias"), "lacks head.classifier.bias"),
    "extra key": (
        lambda t: t.update({"layers.0.attention.query.C": torch.ones(1)}),
        "has unknown layers.0.attention.query.C",
    ),
    "wrong shape": (
        lambda t: t.update({"layers.0.attention.query.A": torch.ones(3, 32)}),
        r"layers.0.attention.query.A is \(3, 32\) instead of \(2, 32\)",
    ),
    "wrong type": (
        lambda t: t.update({"layers.0.attention.query.A": torch.ones(2, 32, dtype=torch.int64)}),
        "layers.0.attention.query.A is .*int64",
    ),
    "wrong precision": (
        lambda t: t.update({"head.classifier.bias": torch.ones(3, dtype=torch.float16)}),
        "head.classifier.bias is .*float16",
    ),
}


@pytest.mark.parametrize("misfit", MISFITS)
def test_tensors_that_are_not_as_declared_never_reach_a_model(backbone, saved, misfit):
    change, message = MISFITS[misfit]
    edit_tensors(saved, change)
    seal(saved)
    with pytest.raises(AdapterError, match=message):
        AdaptedModel(backbone, {"a": Adapter.load(saved)})


def test_many_misfits_are_counted(backbone, adapter):
    wrong = replace(adapter, tensors={f"x.{i}": torch.ones(1) for i in range(4)})
    with pytest.raises(AdapterError, match=r"lacks head\.classifier\.bias; .* and 5 more"):
        wrong.check(backbone)


# -- identity ------------------------------------------------------------------------------------------------------


def test_another_backbones_weights_are_refused_unless_allowed(backbone, adapter):
    other = make_backbone("bert", seed=1)
    with pytest.raises(AdapterError) as caught:
        AdaptedModel(other, {"a": adapter})
    assert backbone.fingerprint[:12] in caught.value.problem
    assert other.fingerprint[:12] in caught.value.problem
    assert backbone.fingerprint != other.fingerprint
    assert "the same shape but other weights" in caught.value.problem
    assert "--allow-backbone-mismatch" in caught.value.change
    model = AdaptedModel(other, {"a": adapter}, allow_backbone_mismatch=True)
    assert model(torch.tensor([[2, 7, 3]])).logits.shape == (1, 3)


@pytest.mark.parametrize("allow", [False, True])
@pytest.mark.parametrize(
    ("options", "differs"),
    [
        ({"kind": "bert", "num_hidden_layers": 3}, "num_layers 3 instead of 2"),
        ({"kind": "bert", "hidden_size": 16}, "hidden_size 16 instead of 32"),
        ({"kind": "roberta"}, "model_type 'roberta' instead of 'bert'"),
    ],
)
def test_another_shape_is_never_allowed(adapter, options, differs, allow):
    with pytest.raises(AdapterError) as caught:
        AdaptedModel(make_backbone(**options), {"a": adapter}, allow_backbone_mismatch=allow)
    assert differs in caught.value.problem
    assert caught.value.change == "--backbone"


def test_identity_names_the_backbone(backbone):
    assert BackboneIdentity.of(backbone) == BackboneIdentity(
        name="tiny-bert", model_type="bert", hidden_size=32, num_layers=2, fingerprint=backbone.fingerprint
    )


# -- card ----------------------------------------------------------------------------------------------------------


def test_the_card_says_what_it_is(backbone, adapter, tmp_path):
    replace(adapter, metrics={"validation": {"accuracy": 0.91234}}, seed=5).save(tmp_path / "a")
    card = (tmp_path / "a" / "README.md").read_text(encoding="utf-8")
    front = card.split("---\n")[1]
    assert "library_name: graftwork\nbase_model: tiny-bert\n" in front
    assert "- lora\n" in front
    for part in (
        "| validation | accuracy | 0.9123 |",
        f"fingerprint `{backbone.fingerprint[:12]}`",
        "`lora` (Hu et al. 2021, arXiv:2106.09685): rank=2, alpha=16.0, rank_stabilised=false, dropout=0.0, ",
        'targets=["query"], b_rate=1.0, init=default\n',
        f"It holds {adapter.num_parameters:,} parameters",
        "- Output: a, b, c",
        "- Seed: 5",
    ):
        assert part in card
    adapter.save(tmp_path / "b")
    assert "## Scores" not in (tmp_path / "b" / "README.md").read_text(encoding="utf-8")


def test_sites_and_labels_that_do_not_belong_are_refused(backbone, saved):
    edit(saved, sites=["layers.0.attention.query", "nonsense"])
    seal(saved)
    with pytest.raises(AdapterError, match=r"acts at other sites \(layers\.1\.attention\.query, nonsense\)"):
        AdaptedModel(backbone, {"a": Adapter.load(saved)})
    adapter = make_adapter(backbone, LoRA(rank=2))
    named = replace(adapter, task=adapter.task.model_copy(update={"labels": ("x", "y", "z", "w")}))
    with pytest.raises(AdapterError, match="has 4 labels for 3 outputs"):
        named.check(backbone)


def test_what_is_trained_is_as_the_method_says(backbone):
    lora, vera = make_adapter(backbone, LoRA(rank=2)), make_adapter(backbone, VeRA(rank=2))
    name, frozen = next(name for name in lora.tensors if not name.startswith("head.")), min(vera.fixed)
    with pytest.raises(AdapterError, match=f"marks {re.escape(name)} as fixed, which the method trains"):
        replace(lora, fixed=(name,)).check(backbone)
    with pytest.raises(AdapterError, match=f"marks {re.escape(frozen)} as trained, which the method keeps fixed"):
        replace(vera, fixed=()).check(backbone)
