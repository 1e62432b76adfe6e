"""How an input becomes one vector unless it is said: as the checkpoint declares, or else by the measured default."""

import json
import logging
from pathlib import Path

import pytest
from tiny import make_adapter, make_backbone, make_model, save_model
from transformers import AutoConfig, AutoModel

from graftwork.backbones import Backbone
from graftwork.backbones.pooling import MODES, OLD_KEYS, SOURCES
from graftwork.errors import BackboneError
from graftwork.methods import HeadOnly

OLD = dict.fromkeys(OLD_KEYS, False)


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("GRAFTWORK_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def folder(tmp_path):
    return save_model(tmp_path / "tiny", make_model("bert"))


def declare(folder, config, *, path="1_Pooling", modules=None):
    (folder / path).mkdir(parents=True, exist_ok=True)
    (folder / path / "config.json").write_text(json.dumps(config), encoding="utf-8")
    if modules is not None:
        (folder / "modules.json").write_text(json.dumps(modules), encoding="utf-8")


def both(folder):
    """The pooling and who chose it, by `load` and by `outline`."""
    loaded = Backbone.load(str(folder), dtype="float32", device="cpu")
    outline = Backbone.outline(str(folder))
    assert (loaded.pooling, loaded.pooling_source) == (outline.pooling, outline.pooling_source)
    return loaded.pooling, loaded.pooling_source


def test_minilm_declares_the_mean():
    assert both("minilm") == ("mean", "declared")


@pytest.mark.parametrize(
    ("config", "pooling"),
    [
        ({**OLD, "pooling_mode_mean_tokens": True}, "mean"),
        ({**OLD, "pooling_mode_cls_token": True}, "first"),
        ({**OLD, "pooling_mode_lasttoken": True}, "last"),
        (OLD, "mean"),  # as sentence-transformers reads it
        ({"word_embedding_dimension": 32}, "mean"),
        ({"embedding_dimension": 32, "pooling_mode": "mean", "include_prompt": True}, "mean"),
        ({"pooling_mode": "cls"}, "first"),
        ({"pooling_mode": "lasttoken"}, "last"),
        ({"pooling_mode": ["cls"]}, "first"),
        ({"pooling_mode": "cls", "pooling_mode_mean_tokens": True}, "first"),  # the old keys are dropped
    ],
)
def test_old_and_new_keys_are_followed(folder, config, pooling):
    declare(folder, config)
    assert both(folder) == (pooling, "declared")


def test_the_modes_are_those_of_sentence_transformers():
    reference = pytest.importorskip("sentence_transformers.sentence_transformer.modules.pooling")
    assert set(MODES) == set(reference.Pooling.POOLING_MODES)
    assert OLD_KEYS == reference._LEGACY_POOLING_MODE_KWARGS


@pytest.mark.parametrize(
    "config",
    [
        {**OLD, "pooling_mode_max_tokens": True},
        {**OLD, "pooling_mode_cls_token": True, "pooling_mode_mean_tokens": True},
        {"pooling_mode": "weightedmean"},
        {"pooling_mode": ["mean", "max"]},
        {"pooling_mode": "of a later version"},
    ],
)
def test_a_pooling_that_we_lack_is_told_and_the_default_is_taken(folder, config, caplog):
    declare(folder, config)
    assert both(folder) == ("mean", "default")
    [record] = [r for r in caplog.records if r.levelno == logging.WARNING]
    assert "1_Pooling/config.json" in record.getMessage()
    assert "mean, is used instead (--pooling)" in record.getMessage()


@pytest.mark.parametrize("relative", [True, False])
def test_a_model_of_the_callers_own_is_pooled_as_its_folder_declares(folder, relative, monkeypatch, caplog):
    monkeypatch.chdir(folder.parent)
    path = folder.name if relative else str(folder)
    assert Backbone(AutoModel.from_pretrained(path)).pooling_source == "default"
    declare(folder, {"pooling_mode": "cls"})
    backbone = Backbone(AutoModel.from_pretrained(path))
    assert (backbone.pooling, backbone.pooling_source) == ("first", "declared")
    assert not caplog.records
    declare(folder, {"pooling_mode": "max"})
    backbone = Backbone(AutoModel.from_pretrained(path))
    assert (backbone.pooling, backbone.pooling_source) == ("mean", "default")
    assert f"backbone '{folder}' declares pooling by max (1_Pooling/config.json)" in caplog.text
    (folder / "1_Pooling" / "config.json").write_text("{", encoding="utf-8")
    model = AutoModel.from_pretrained(path)
    with pytest.raises(BackboneError, match=r"1_Pooling/config\.json"):
        Backbone(model)
    assert model.training is False
    assert all(p.requires_grad for p in model.parameters())


def test_a_backbone_is_named_by_its_folders_whole_path(folder, tmp_path, monkeypatch):
    monkeypatch.chdir(folder.parent)
    whole = Path.cwd() / folder.name
    for backbone in (
        Backbone(AutoModel.from_pretrained(folder.name)),
        Backbone(AutoModel.from_pretrained(f"./{folder.name}")),
        Backbone(make_model("bert"), name=folder.name),
    ):
        assert backbone.name == str(whole)
    adapter = make_adapter(Backbone(AutoModel.from_pretrained(folder.name)), HeadOnly())
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    adapter.check(Backbone.load(adapter.backbone.name, dtype="float32", device="cpu"))
    assert Backbone(make_model("bert")).name == "BertModel"


def test_a_list_of_modules_says_where_the_declaration_stands(folder):
    kind = "sentence_transformers.models."
    modules = [
        {"idx": 0, "name": "0", "path": "", "type": f"{kind}Transformer"},
        {"idx": 1, "name": "1", "path": "2_Words/Pooling", "type": f"{kind}Pooling"},
        {"idx": 2, "name": "2", "path": "3_Normalize", "type": f"{kind}Normalize"},
    ]
    declare(folder, {"pooling_mode": "mean"})
    declare(folder, {"pooling_mode": "cls"}, path="2_Words/Pooling", modules=modules)
    assert both(folder) == ("first", "declared")
    # Modules that do no pooling declare none, whatever lies beside them.
    declare(folder, {"pooling_mode": "cls"}, modules=modules[:1])
    assert both(folder) == ("mean", "default")


def test_what_sentence_transformers_saves_is_read(folder):
    reference = pytest.importorskip("sentence_transformers.sentence_transformer.modules")
    pooling = reference.Pooling(32, pooling_mode="lasttoken")
    (folder / "1_Pooling").mkdir()
    pooling.save(str(folder / "1_Pooling"))
    assert both(folder) == ("last", "declared")


@pytest.mark.parametrize(
    ("file", "text"),
    [
        ("1_Pooling/config.json", "{"),
        ("1_Pooling/config.json", "[]"),
        ("1_Pooling/config.json", '{"pooling_mode": 3}'),
        ("1_Pooling/config.json", '{"pooling_mode": []}'),
        ("modules.json", '{"0": "Transformer"}'),
    ],
)
def test_a_damaged_declaration_is_refused(folder, file, text):
    (folder / "1_Pooling").mkdir()
    (folder / file).write_text(text, encoding="utf-8")
    for make in (lambda: Backbone.load(str(folder)), lambda: Backbone.outline(str(folder))):
        with pytest.raises(BackboneError, match=file):
            make()


@pytest.mark.parametrize(
    ("kind", "pooling"),
    [
        ("bert", "mean"),
        ("roberta", "mean"),
        ("distilbert", "mean"),
        ("albert", "mean"),
        ("gpt2", "last"),
        ("t5", "first"),
        ("vit", "pooler"),
        ("resnet", "pooler"),
    ],
)
def test_the_default_of_each_kind_of_backbone(kind, pooling):
    backbone = make_backbone(kind)
    assert (backbone.pooling, backbone.pooling_source) == (pooling, "default")


@pytest.mark.parametrize(("mode", "pooling"), [("cls", "first"), ("mean", "mean")])
def test_a_configurations_own_declaration_is_followed(tmp_path, mode, pooling):
    model = make_model("modernbert")
    model.config.classifier_pooling = mode
    folder = save_model(tmp_path / "modern", model)
    assert AutoConfig.from_pretrained(folder).classifier_pooling == mode
    assert both(folder) == (pooling, "declared")
    declare(folder, {"pooling_mode": "lasttoken"})
    assert both(folder) == ("last", "declared")


def test_what_is_given_goes_first(folder):
    declare(folder, {"pooling_mode": "cls"})
    for model in (make_model("bert"), AutoModel.from_pretrained(folder)):
        backbone = Backbone(model, pooling="pooler")
        assert (backbone.pooling, backbone.pooling_source) == ("pooler", "given")
    assert set(SOURCES) == {"declared", "default", "given"}
