"""The numbers of trained parameters that the papers print, from configurations alone."""

import pytest
from transformers import BertConfig, RobertaConfig

from graftwork.backbones import Backbone
from graftwork.training.planning import count


@pytest.fixture(scope="module")
def bert(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bert-base")
    BertConfig().save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def roberta(tmp_path_factory):
    folder = tmp_path_factory.mktemp("roberta-base")
    RobertaConfig(vocab_size=50265, max_position_embeddings=514, type_vocab_size=1).save_pretrained(folder)
    return str(folder)


def test_houlsby_on_bert_base(bert):
    """Houlsby et al. 2019, section 2.1: 2L(2md + m + d) + 2d(2L + 1) + head."""
    found = count(bert, "houlsby", {"bottleneck": 64})
    assert found["trained"] == {
        "adapter": 2_379_264,
        "norms": 38_400,
        "head": 1_538,
        "total": 2_419_202,
        "without_classifier": 2_419_202 - 1_538,
    }
    assert found["backbone"] == 109_482_240
    assert found["percent"] == pytest.approx(100 * 2_419_202 / 109_482_240, rel=1e-12)


@pytest.mark.parametrize(
    ("settings", "adapter"),
    [({"share_positions": True}, 1_189_632), ({"share_positions": True, "share_layers": 3}, 396_544)],
)
def test_shared_houlsby_on_bert_base(bert, settings, adapter):
    assert count(bert, "houlsby", settings)["trained"]["adapter"] == adapter
    without = count(bert, "houlsby", {**settings, "norms": "none"})["trained"]
    assert (without["without_classifier"], without["norms"]) == (adapter, 0)


def test_not_shared_houlsby_on_bert_base(bert):
    found = count(bert, "houlsby", {"norms": "layers", "extra_classifier": True})["trained"]
    assert found["without_classifier"] == 3_006_720
    assert found["norms"] == 36_864
    assert found["head"] == 590_592 + 1_538


def test_lora_on_roberta_base(roberta):
    found = count(roberta, "lora", {"rank": 8, "targets": "query,value"})["trained"]
    assert (found["adapter"], found["norms"]) == (294_912, 0)


def test_full_fine_tuning_is_the_whole_backbone_or_all_but_its_pooler(bert):
    whole = count(bert, "full-fine-tuning", pooling="pooler")
    assert Backbone.outline(bert).pooling == "mean"
    assert whole["trained"]["adapter"] + whole["trained"]["norms"] == whole["backbone"] == 109_482_240
    assert whole["trained"]["norms"] == 38_400
    pooler = 768 * 768 + 768
    for pooling in ("first", "mean"):
        less = count(bert, "full-fine-tuning", pooling=pooling)["trained"]
        assert less["adapter"] + less["norms"] == 109_482_240 - pooler


def test_head_only(bert):
    assert count(bert, "head-only", num_labels=3)["trained"] == {
        "adapter": 0,
        "norms": 0,
        "head": 3 * 769,
        "total": 3 * 769,
        "without_classifier": 0,
    }
    assert count(bert, "head-only", num_labels=1)["trained"]["head"] == 769


@pytest.mark.parametrize(
    ("method", "settings", "trained"),
    [
        ("pfeiffer", {}, 894_528),
        ("pfeiffer", {"skip_layers": 5}, 521_808),
        ("parallel", {}, 1_189_632),
        ("adamix", {}, 2_223_360),
        ("lora", {}, 1_327_104),
        ("dora", {}, 1_327_104 + 82_944),
        ("vera", {}, 101_376),
        ("p-tuning", {}, 8_286_720),
        ("p-tuning", {"encoder": "mlp"}, 1_787_136),
        ("prefix-tuning", {}, 9_864_704),
        ("p-tuning-v2", {}, 737_280),
        # A prefix with l 30; a parallel bottleneck with m 512.
        ("mam", {}, 9_872_384 + 9_452_544),
        # LoRA at queries and values, a prefix with l 10, Pfeiffer's bottleneck; and gates: at each layer d + 1 for two
        # linear maps and a norm, 1 for an attention.
        ("unipelt", {}, 294_912 + 9_857_024 + 894_528 + 12 * (3 * 769 + 1)),
    ],
)
def test_counts_of_the_documents_on_bert_base(bert, method, settings, trained):
    assert count(bert, method, settings)["trained"]["without_classifier"] == trained
