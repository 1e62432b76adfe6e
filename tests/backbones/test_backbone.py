"""Loading: from folders of every condition, to the same model each time or a clear error."""

import json
import os
import shutil

import pytest
import torch
from closeness import PASS, close
from safetensors.torch import load_file, save_file
from tiny import VOCABULARY, bits, make_backbone, make_batch, make_model, make_tokenizer, randomised, save_model
from transformers import AddedToken, AutoModel, BertConfig, BertForSequenceClassification, YosoConfig, YosoModel
from transformers.utils import logging

from graftwork.backbones import Backbone, checkpoints, loading
from graftwork.backbones.fingerprint import cached_fingerprint, fingerprint_of
from graftwork.backbones.quiet import quiet_transformers
from graftwork.errors import BackboneError

WEIGHTS = "model.safetensors"


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("GRAFTWORK_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "fingerprints"


@pytest.fixture
def folder(tmp_path):
    return save_model(tmp_path / "tiny", make_model("bert"))


def load(folder, dtype="float32", **options):
    return Backbone.load(str(folder), dtype=dtype, device="cpu", **options)


def edit_weights(folder, change):
    tensors = load_file(folder / WEIGHTS)
    change(tensors)
    save_file({name: t.clone() for name, t in tensors.items()}, folder / WEIGHTS, metadata={"format": "pt"})


def edit_config(folder, **values):
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text(encoding="utf-8")) | values), encoding="utf-8")


def listing(folder):
    return {f.name: (f.stat().st_size, f.stat().st_mtime_ns) for f in folder.rglob("*")}


def test_loads_what_was_saved(folder):
    before = listing(folder)
    loaded = load(folder)
    assert bits(loaded.model) == bits(make_model("bert"))
    assert (loaded.name, loaded.pooling, loaded.family.name) == (str(folder), "mean", "bert-like")
    assert loaded.require_tokenizer()("the good film")["input_ids"] == [2, 5, 17, 7, 3]
    assert not any(p.requires_grad for p in loaded.model.parameters())
    assert not any(module.training for module in loaded.model.modules())
    assert listing(folder) == before


def test_computes_what_transformers_computes(folder):
    batch = make_batch(7, 4)
    reference = AutoModel.from_pretrained(folder, attn_implementation="sdpa").eval()
    with torch.no_grad():
        assert torch.equal(load(folder).model(**batch).last_hidden_state, reference(**batch).last_hidden_state)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16", "float64"])
def test_dtype_is_as_asked_for_also_from_the_cache(folder, dtype):
    expected = bits(make_model("bert").to(getattr(torch, dtype)))
    for _ in range(2):
        loaded = load(folder, dtype)
        assert loaded.dtype == getattr(torch, dtype)
        assert bits(loaded.model) == expected


def test_a_headed_checkpoint_loads_as_its_base(tmp_path):
    config = make_model("bert").config
    model = randomised(BertForSequenceClassification(config))
    save_model(tmp_path / "headed", model)
    save_model(tmp_path / "base", model.bert)
    headed, base = load(tmp_path / "headed"), load(tmp_path / "base")
    assert bits(headed.model) == bits(base.model) == bits(model.bert)
    assert headed.fingerprint == base.fingerprint


def test_a_missing_pooler_is_dropped_the_same_way_twice(folder, cache):
    edit_weights(folder, lambda tensors: [tensors.pop(f"pooler.dense.{name}") for name in ("weight", "bias")])
    batch = make_batch(7, 4)
    first, second = load(folder), load(folder)
    shutil.rmtree(cache)
    third = load(folder)
    assert first.fingerprint == second.fingerprint == third.fingerprint
    with torch.no_grad():
        outputs = [loaded.model(**batch).last_hidden_state for loaded in (first, second, third)]
        expected = make_model("bert")(**batch).last_hidden_state
    for loaded, output in zip((first, second, third), outputs, strict=True):
        assert loaded.pooling == "mean"
        assert "pooler" not in loaded.sites
        assert torch.equal(output, outputs[0])
        # another kernel may run in the reference model
        close(output, expected, PASS)


@pytest.mark.parametrize("lost", ["encoder.layer.1.output.dense.weight", "embeddings.word_embeddings.weight"])
def test_other_missing_weights_are_refused(folder, lost):
    edit_weights(folder, lambda tensors: [tensors.pop(name) for name in (lost, "pooler.dense.weight")])
    with pytest.raises(BackboneError) as caught:
        load(folder)
    assert "lacks weights" in caught.value.problem
    assert lost in caught.value.problem
    assert caught.value.change == "--backbone"


def test_weights_of_another_shape_are_refused(folder):
    edit_config(folder, vocab_size=90)
    with pytest.raises(BackboneError, match="backbone"):
        load(folder)


@pytest.mark.parametrize(
    ("name", "dtype", "message"),
    [
        ("./nowhere", "float32", "is not a folder"),
        ("/no/such/folder", "float32", "is not a folder"),
        ("a/b/c", "float32", "is not a folder"),
        ("no-such-model-anywhere", "float32", "cannot be loaded"),
        ("minilm", "float23", "unknown dtype 'float23'\n  expected: auto, float32, bfloat16, float16, float64"),
    ],
)
def test_bad_names_are_refused(name, dtype, message):
    with pytest.raises(BackboneError, match=message):
        load(name, dtype)


def test_a_folder_without_a_configuration_is_refused(folder):
    (folder / "config.json").unlink()
    for make in (load, lambda f: Backbone.outline(str(f))):
        with pytest.raises(BackboneError, match=r"has no config\.json"):
            make(folder)


def test_a_file_is_no_folder(folder):
    with pytest.raises(BackboneError, match="is not a folder"):
        load(folder / "config.json")


def test_damaged_files_are_refused(folder):
    (folder / WEIGHTS).write_bytes((folder / WEIGHTS).read_bytes()[:200])
    with pytest.raises(BackboneError, match="cannot be loaded"):
        load(folder)


def test_a_configuration_that_is_not_json_is_refused(folder):
    (folder / "config.json").write_text("{", encoding="utf-8")
    with pytest.raises(BackboneError, match="cannot be loaded"):
        load(folder)
    with pytest.raises(BackboneError, match="cannot be read"):
        Backbone.outline(str(folder))


def test_a_missing_package_is_named_with_the_command_that_installs_it(monkeypatch):
    monkeypatch.setitem(checkpoints.EMBEDDED, "absent", ("no_such_package_at_all", "model", "demo"))
    with pytest.raises(BackboneError) as caught:
        load("absent")
    assert "'no_such_package_at_all', which is not installed" in caught.value.problem
    assert caught.value.expected == 'pip install "graftwork[demo]"'


def test_outline_needs_only_the_configuration(folder):
    whole = load(folder)
    for file in folder.iterdir():
        if file.name != "config.json":
            file.unlink()
    outline = Backbone.outline(str(folder))
    assert outline.device.type == "meta"
    assert outline.tokenizer is None
    assert dict(outline.sites) == dict(whole.sites)
    assert outline.num_parameters == whole.num_parameters
    with pytest.raises(BackboneError, match="has no tokenizer"):
        outline.require_tokenizer()
    with pytest.raises(BackboneError, match="has no weights"):
        outline.fingerprint  # noqa: B018


# -- fingerprints --------------------------------------------------------------------------------------------------


def test_fingerprint_depends_on_neither_dtype_nor_folder_nor_attention(folder, tmp_path, cache):
    found = {load(folder, dtype).fingerprint for dtype in ("float32", "bfloat16", "float64")}
    shutil.rmtree(cache)
    found |= {load(folder, dtype).fingerprint for dtype in ("bfloat16", "float32")}
    folder.rename(tmp_path / "renamed")
    found.add(load(tmp_path / "renamed").fingerprint)
    found.add(make_backbone("bert").fingerprint)
    found.add(fingerprint_of(AutoModel.from_pretrained(tmp_path / "renamed", attn_implementation="eager")))
    assert len(found) == 1
    assert all(len(f) == 64 and int(f, 16) for f in found)


def test_fingerprint_changes_with_one_bit_of_one_weight(folder):
    before = load(folder).fingerprint

    def flip(tensors):
        tensors["encoder.layer.1.output.dense.weight"].view(torch.int32)[3, 5] ^= 1

    edit_weights(folder, flip)
    assert load(folder).fingerprint != before


@pytest.mark.parametrize(
    ("key", "value"), [("layer_norm_eps", 1e-5), ("num_attention_heads", 2), ("hidden_act", "relu")]
)
def test_fingerprint_changes_with_what_decides_the_outputs(folder, key, value):
    before = load(folder).fingerprint
    edit_config(folder, **{key: value})
    assert load(folder).fingerprint != before


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("hidden_dropout_prob", 0.3),
        ("id2label", {"0": "x", "1": "y", "2": "z"}),
        ("architectures", ["BertForMaskedLM"]),
    ],
)
def test_fingerprint_does_not_change_with_what_does_not(folder, key, value):
    before = load(folder).fingerprint
    edit_config(folder, **{key: value})
    assert load(folder).fingerprint == before


def test_fingerprint_does_not_change_when_a_class_gains_a_setting_at_its_default():
    class NewerConfig(BertConfig):
        brand_new_setting: int = 0

    model = make_model("bert")
    before = fingerprint_of(model)
    config = NewerConfig(**model.config.to_dict())
    assert config.brand_new_setting == 0
    model.config = config
    assert fingerprint_of(model) == before


def test_fingerprint_is_remembered_until_a_file_changes(folder, cache, monkeypatch):
    computed = []

    def counted(model):
        computed.append(fingerprint_of(model))
        return computed[-1]

    monkeypatch.setattr(loading, "fingerprint_of", counted)
    first = load(folder).fingerprint
    assert load(folder).fingerprint == first
    assert computed == [first]
    assert [file.read_text(encoding="ascii").split(" ")[0] for file in cache.iterdir()] == [first]

    os.utime(folder / WEIGHTS, ns=(0, 0))
    assert load(folder).fingerprint == first
    assert len(computed) == 2

    edit_weights(folder, lambda tensors: tensors["pooler.dense.bias"].add_(1))
    changed = load(folder).fingerprint
    assert changed != first
    assert computed == [first, first, changed]


@pytest.mark.parametrize(
    "content",
    [
        *(b"zzz", b"", b" ", b"0" * 63, b"0" * 63 + b"g", b"A" * 64, b"0" * 65, b"\xff" * 64),
        *(b"a" * 64, b"a" * 64 + b"\n", b"a" * 64 + b" " + b"b" * 64 + b"\n"),
    ],
)
def test_what_was_not_written_is_not_believed(folder, cache, content):
    first = load(folder).fingerprint
    [file] = cache.iterdir()
    written = file.read_bytes()
    file.write_bytes(content)
    assert load(folder).fingerprint == first
    assert [file.read_bytes() for file in cache.iterdir()] == [written]


def test_each_bit_of_a_remembered_fingerprint_counts(folder, cache):
    first = load(folder).fingerprint
    [file] = cache.iterdir()
    written = file.read_bytes()
    for place in range(len(written)):
        file.write_bytes(written[:place] + bytes([written[place] ^ 1]) + written[place + 1 :])
        assert cached_fingerprint(str(folder)) is None
    for cut in range(len(written)):
        file.write_bytes(written[:cut])
        assert cached_fingerprint(str(folder)) is None
    file.write_bytes(written)
    assert cached_fingerprint(str(folder)) == first


def test_another_backbones_fingerprint_is_not_believed(folder, cache):
    first = load(folder).fingerprint
    [file] = cache.iterdir()
    of_first = file.read_bytes()
    edit_weights(folder, lambda tensors: tensors["pooler.dense.bias"].add_(1))
    changed = load(folder).fingerprint
    [other] = {*cache.iterdir()} - {file}
    other.write_bytes(of_first)
    assert load(folder).fingerprint == changed != first


def test_a_full_disk_is_no_error_and_leaves_nothing(folder, cache, monkeypatch):
    def fail(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("graftwork.backbones.fingerprint.os.replace", fail)
    assert load(folder).fingerprint == fingerprint_of(make_model("bert"))
    assert list(cache.iterdir()) == []


def test_a_folder_is_named_by_its_whole_path(folder, monkeypatch):
    """In another folder a relative one would be a hub id."""
    monkeypatch.chdir(folder.parent)
    assert load("tiny").name == load("./tiny").name == str(folder)


def test_a_cache_that_cannot_be_written_is_no_error(folder, tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("GRAFTWORK_CACHE", str(tmp_path / "file"))
    assert load(folder).fingerprint == fingerprint_of(make_model("bert"))


# -- quiet ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bars", [True, False])
def test_quiet_restores_also_after_an_exception(bars):
    before = logging.get_verbosity(), logging.is_progress_bar_enabled()
    try:
        logging.set_verbosity(logging.INFO)
        (logging.enable_progress_bar if bars else logging.disable_progress_bar)()
        with quiet_transformers():
            inside = logging.get_verbosity(), logging.is_progress_bar_enabled()
        assert inside == (logging.ERROR, False)
        assert (logging.get_verbosity(), logging.is_progress_bar_enabled()) == (logging.INFO, bars)
        with pytest.raises(ValueError, match="inside"), quiet_transformers():
            raise ValueError("inside")
        assert (logging.get_verbosity(), logging.is_progress_bar_enabled()) == (logging.INFO, bars)
    finally:
        logging.set_verbosity(before[0])
        (logging.enable_progress_bar if before[1] else logging.disable_progress_bar)()


# -- what cannot be a backbone ---------------------------------------------------------------------------------------


def test_a_model_with_a_task_head_is_refused():
    headed = BertForSequenceClassification(make_model("bert").config)
    with pytest.raises(BackboneError, match=r"BertForSequenceClassification has a task head.*\n.*base_model"):
        Backbone(headed)
    assert Backbone(headed.base_model).hidden_size == headed.config.hidden_size


def test_a_model_whose_attention_cannot_be_chosen_is_refused():
    model = YosoModel(YosoConfig(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16))
    with pytest.raises(BackboneError, match="YosoModel does not let its attention function be chosen"):
        Backbone(model)


def test_a_tokenizer_that_transformers_makes_up_is_none(folder):
    for file in folder.glob("*token*"):
        file.unlink()
    (folder / "vocab.txt").unlink(missing_ok=True)
    with pytest.raises(BackboneError, match="has no tokenizer"):
        load(folder).require_tokenizer()


def test_the_tokenizer_makes_only_inputs_that_the_model_takes():
    assert "token_type_ids" in make_backbone("bert", tokenizer=True).require_tokenizer()("a film")
    assert "token_type_ids" not in make_backbone("distilbert", tokenizer=True).require_tokenizer()("a film")


@pytest.mark.parametrize("device", ["tpu-9", "cuda:77"])
def test_a_device_that_is_not_there(folder, device):
    with pytest.raises(BackboneError, match=f"device '{device}' is not available"):
        Backbone.load(str(folder), device=device)


def test_outline_sees_whether_the_weights_have_a_pooler(folder):
    edit_weights(folder, lambda tensors: [tensors.pop(name) for name in list(tensors) if name.startswith("pooler.")])
    outline, loaded = Backbone.outline(str(folder)), load(folder)
    assert (outline.pooling, loaded.pooling) == ("mean", "mean")
    assert ("pooler" in outline.sites, "pooler" in loaded.sites) == (False, False)
    assert outline.num_parameters == loaded.num_parameters


@pytest.mark.parametrize(("kind", "longest"), [("bert", 48), ("roberta", 46), ("distilbert", 512)])
def test_the_longest_text_is_what_the_positions_suffice_for(kind, longest):
    backbone = make_backbone(kind)
    assert backbone.max_length == longest
    backbone.model(torch.full((1, longest), 7))
    with pytest.raises((RuntimeError, IndexError)):
        backbone.model(torch.full((1, longest + 1), 7))


def test_a_refused_model_is_left_as_it_was():
    model = YosoModel(YosoConfig(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16))
    with pytest.raises(BackboneError):
        Backbone(model.train())
    assert model.training
    assert all(p.requires_grad for p in model.parameters())


@pytest.mark.parametrize("content", [b"", b"not weights at all", b"\x80\x02}q\x00."])
def test_damaged_pickled_weights_are_refused(folder, content):
    (folder / WEIGHTS).unlink()
    (folder / "pytorch_model.bin").write_bytes(content)
    with pytest.raises(BackboneError, match="cannot be loaded"):
        load(folder)


# -- a tokenizer and its table ---------------------------------------------------------------------------------------


def backbone_of(rows: int, tokenizer) -> Backbone:
    return Backbone(make_model("bert", vocab_size=rows), tokenizer, name="tiny")


def test_a_tokenizer_longer_than_the_table_is_refused_with_both_sizes():
    model, tokenizer = make_model("bert", vocab_size=len(VOCABULARY) - 2).train(), make_tokenizer()
    with pytest.raises(BackboneError) as caught:
        Backbone(model, tokenizer, name="tiny")
    size = len(VOCABULARY)
    assert f"has {size} tokens and its embedding table {size - 2} rows" in caught.value.problem
    assert f"none for 'gripping' ({size - 2}), 'dull' ({size - 1})" in caught.value.problem
    assert "resize_token_embeddings" in caught.value.change
    assert model.training
    backbone_of(size, tokenizer)
    backbone_of(size + 40, tokenizer)


@pytest.mark.parametrize("kind", ["t5", "bart", "llama", "albert"])
def test_tables_of_every_family_are_looked_at(kind):
    with pytest.raises(BackboneError, match="has 21 tokens and its embedding table 20 rows"):
        Backbone(make_model(kind, vocab_size=20), make_tokenizer())


def test_added_tokens_count_where_a_text_can_spell_them():
    size = len(VOCABULARY)
    tokenizer = make_tokenizer()
    tokenizer.add_tokens(["plastic"])
    with pytest.raises(BackboneError, match=rf"none for 'plastic' \({size}\)"):
        backbone_of(size, tokenizer)
    tokenizer = make_tokenizer()
    tokenizer.add_special_tokens({"pad_token": "<filler>"})
    with pytest.raises(BackboneError, match="none for '<filler>'"):
        backbone_of(size, tokenizer)
    tokenizer = make_tokenizer()
    tokenizer.add_special_tokens({"additional_special_tokens": ["<unused>"]}, replace_extra_special_tokens=False)
    with pytest.raises(BackboneError, match="none for '<unused>'"):
        backbone_of(size, tokenizer)


def test_added_tokens_that_no_text_can_spell_are_no_fault():
    tokenizer = make_tokenizer()
    tokenizer.add_tokens([AddedToken("<unused>", special=True)])
    tokenizer.split_special_tokens = True
    assert len(tokenizer) == len(VOCABULARY) + 1
    backbone_of(len(VOCABULARY), tokenizer)


def test_a_folder_whose_tokenizer_is_longer_is_refused(folder):
    tokenizer = make_tokenizer()
    tokenizer.add_tokens([f"word{i}" for i in range(100)])
    tokenizer.save_pretrained(folder)
    with pytest.raises(BackboneError, match="has 121 tokens and its embedding table 100 rows") as caught:
        load(folder)
    assert "and others" in caught.value.problem


def test_an_outline_keeps_a_pooling_layer_that_has_no_weights(tmp_path):
    """Such a layer is not in the checkpoint, and is not missing there."""
    make_model("resnet").save_pretrained(tmp_path)
    outline = Backbone.outline(str(tmp_path))
    assert outline.model.pooler is not None
    assert "pooler" in outline.sites
