"""An adapter for a training loop of one's own: what `Adapter.new` makes, and what it refuses."""

import json

import pytest
import torch
from tiny import VOCABULARY, make_backbone, make_model
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from graftwork import AdaptedModel, Adapter, Backbone, evaluate
from graftwork.errors import AdapterError

TWO = ["bad", "good"]


def backbone_that_parts_nothing(**options):
    """One whose tokenizer puts nothing between the texts of a pair."""
    split = Tokenizer(models.WordLevel(dict(VOCABULARY), unk_token="[UNK]"))
    split.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=split, unk_token="[UNK]", pad_token="[PAD]", eos_token="[SEP]", model_max_length=40
    )
    return Backbone(make_model("gpt2", **options), tokenizer, name="tiny-gpt2")


def test_pairs_and_choices_are_parted_where_the_tokenizer_parts_nothing():
    backbone = backbone_that_parts_nothing()
    pairs = Adapter.new(backbone, "lora", labels=TWO, pairs=True)
    choices = Adapter.new(backbone, "lora", kind="multiple-choice")
    assert pairs.task.pair_separator == choices.task.pair_separator == "[SEP]"
    assert Adapter.new(backbone, "lora", labels=TWO).task.pair_separator is None
    model = AdaptedModel(backbone, {"pairs": pairs, "choices": choices})
    one, other = model.logits([("the film was", "good"), ("the film", "was good")], "pairs")
    assert not torch.equal(one, other)
    one, other = model.logits([("the film was", TWO), ("the film", ["was bad", "was good"])], "choices")
    assert not torch.equal(one, other)


def test_a_tokenizer_that_parts_pairs_and_no_tokenizer_need_no_separator():
    for tokenizer in (True, False):
        backbone = make_backbone("bert", tokenizer=tokenizer)
        assert Adapter.new(backbone, "lora", labels=TWO, pairs=True).task.pair_separator is None


@pytest.mark.parametrize(
    ("kind", "arguments", "message"),
    [
        ("bert", {"labels": [0, 1]}, r"labels contain 0, which is not a text.*change: labels"),
        ("bert", {"labels": "bad"}, r"labels are one text, 'bad'.*change: labels"),
        ("bert", {"labels": ["a", "b", "a"]}, r"labels contain 'a' more than once.*change: labels"),
        ("bert", {"kind": "multiple-choice", "labels": ["a"]}, r"was given 1 labels.*change: labels"),
        ("bert", {"labels": TWO, "pooling": "bogus"}, r"unknown pooling 'bogus'.*pooler.*change: pooling"),
        ("bert", {"labels": TWO, "max_length": 0}, r"max_length is 0.*change: max_length"),
        ("bert", {"labels": TWO, "max_length": True}, r"max_length is True.*change: max_length"),
        ("bert", {"labels": TWO, "max_length": "9"}, r"max_length is '9'.*change: max_length"),
        ("bert", {"labels": TWO, "name": ""}, r"name is ''.*change: name"),
        ("bert", {"labels": TWO, "separator": "|"}, r"separator '|'.*generation.*change: separator"),
        ("bert", {"kind": "token-classification", "labels": TWO, "pairs": True}, r"does not take pairs.*change: pairs"),
        ("bert", {"kind": "image-classification", "labels": TWO}, r"whose inputs are text.*change: kind"),
        ("vit", {"labels": TWO}, r"whose inputs are images.*image-classification.*change: kind"),
        ("vit", {"kind": "regression"}, r"whose inputs are images.*change: kind"),
    ],
)
def test_what_a_new_adapter_refuses(kind, arguments, message):
    with pytest.raises(AdapterError, match=f"(?s){message}"):
        Adapter.new(make_backbone(kind), "lora", **arguments)


def test_labels_are_any_texts_in_order():
    adapter = Adapter.new(make_backbone("bert"), "lora", labels=dict.fromkeys(TWO))
    assert adapter.task.labels == ("bad", "good")


@pytest.mark.parametrize(
    ("kind", "rows"),
    [
        ("generation", [{"text": "the film", "label": "good"}, {"text": "a man", "label": "bad"}]),
        ("multiple-choice", [{"text": "the film", "choices": ["good", "bad"], "label": 0}] * 2),
    ],
)
def test_new_adapters_of_a_language_model_are_scored(kind, rows, tmp_path):
    """Its tokenizer makes no token from a line break, so that a separator has to be given."""
    backbone = make_backbone("gpt2", head=True, tokenizer=True)
    adapter = Adapter.new(backbone, "lora", kind=kind, separator="is", max_length=16)
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    options = {"max_new_tokens": 4} if kind == "generation" else {}
    assert evaluate(adapter, backbone=backbone, data=str(tmp_path / "rows.jsonl"), **options)
