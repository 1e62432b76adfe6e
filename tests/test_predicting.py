"""From inputs of every kind to what a backbone takes, and from outputs to predictions."""

import json
import random

import numpy as np
import pytest
from PIL import Image
from seqeval.metrics.sequence_labeling import get_entities
from tiny import make_adapter, make_backbone
from training.kinds import backbones

from graftwork import AdaptedModel, Adapter, Backbone
from graftwork.adapters import TaskIdentity
from graftwork.encoding.images import open_image
from graftwork.errors import AdapterError, DataError
from graftwork.heads import LikelihoodHead
from graftwork.kinds.prediction import Prediction
from graftwork.kinds.token_classification import spans_of
from graftwork.methods import LoRA

__all__ = ["backbones"]


@pytest.fixture
def tagger():
    backbone = make_backbone("bert", tokenizer=True)
    return AdaptedModel(backbone, {"a": make_adapter(backbone, LoRA(rank=2), kind="token-classification")})


# Spans


def test_spans_are_those_of_seqeval():
    source = random.Random(0)
    tags = ["O", "B-X", "I-X", "E-X", "S-X", "B-Y", "I-Y", "E-Y", "S-Y"]
    for _ in range(2000):
        said = [source.choice(tags) for _ in range(source.randint(1, 7))]
        found = [(span.type, span.start, span.end - 1) for span in spans_of(said, said)]
        assert found == get_entities(said), said


def test_a_span_holds_its_words():
    (span,) = spans_of(["in", "New", "York", "."], ["O", "B-LOC", "I-LOC", "O"])
    assert (span.type, span.start, span.end, span.text) == ("LOC", 1, 3, "New York")


def test_a_prediction_is_plain_json():
    words, tags = ("in", "Rome"), ("O", "B-LOC")
    found = Prediction(words=words, tags=tags, spans=spans_of(words, tags)).as_dict()
    assert json.loads(json.dumps(found)) == {
        "words": ["in", "Rome"],
        "tags": ["O", "B-LOC"],
        "spans": [{"type": "LOC", "start": 1, "end": 2, "text": "Rome"}],
    }


# Words


def test_a_text_is_split_at_white_space(tagger):
    text, words = tagger.predict(["the  good\tfilm", ["the", "good", "film"]])
    assert text == words
    assert text.words == ("the", "good", "film")
    assert text.spans is None, "a, b and c mark no spans"


@pytest.mark.parametrize("wrong", [" ", [], ["a", " "], ["a", 3], 7])
def test_what_has_no_words_is_refused(tagger, wrong):
    with pytest.raises(DataError, match=r"input 2 (is|has no words)"):
        tagger.encoder("a").encode(["the film", wrong])


def test_pieces_are_those_of_running_text(tagger):
    # Where a tokenizer tells words by itself, it finds the same first pieces.
    words = ["the", "woman", "was", "not", "verygood", ",", "gripping"]
    row, tokenizer = tagger.encoder("a").encode([words])[0], tagger.backbone.tokenizer
    encoded = tokenizer(words, is_split_into_words=True)
    assert row["input_ids"] == encoded["input_ids"]
    assert row["places"] == [encoded.word_ids().index(i) for i in range(len(words))]


# Kinds


def test_an_adapter_saved_before_kinds_were_kept_is_of_its_heads(tagger):
    backbone, method = tagger.backbone, LoRA(rank=2)
    for kind in ("classification", "regression", "token-classification"):
        assert make_adapter(backbone, method, kind=kind).kind == kind
    likelihood = make_adapter(make_backbone("gpt2", head=True), method, head=LikelihoodHead(shifted=True))
    assert likelihood.kind == "multiple-choice"
    assert TaskIdentity.model_validate({"name": "t", "pairs": False, "labels": None, "max_length": 128}).kind is None


def test_each_kind_has_its_own_call(tagger):
    with pytest.raises(AdapterError, match="one row of logits"):
        tagger.logits(["the film"], "a")
    with pytest.raises(AdapterError, match="does not generate"):
        tagger.texts(["the film"], "a")
    backbone = make_backbone("bert", tokenizer=True)
    model = AdaptedModel(backbone, {"a": make_adapter(backbone, LoRA(rank=2))})
    with pytest.raises(AdapterError, match="tags no words"):
        model.tags(["the film"], "a")


@pytest.mark.parametrize(
    "wrong", ["text", ("q",), ("q", "choice"), ("q", ["one"]), ("q", ["one", 2]), {"text": "q"}, {"q": 1, "c": 2}, 3]
)
def test_what_is_no_question_is_refused(wrong):
    backbone = make_backbone("bert", tokenizer=True)
    model = AdaptedModel(backbone, {"a": make_adapter(backbone, LoRA(rank=2), kind="multiple-choice")})
    with pytest.raises(DataError, match=r"input 1 is(.|\n)*question"):
        model.encoder("a").encode([wrong])


# Tokenizers


def test_a_missing_padding_token_is_the_one_that_ends_texts(backbones):
    from training.kinds import make_tokenizer

    model = Backbone.load(str(backbones["gpt2"]), dtype="float32").model
    tokenizer = make_tokenizer(ends=False)
    tokenizer.pad_token = None
    tokenizer.padding_side = "left"
    backbone = Backbone(model, tokenizer)
    assert backbone.tokenizer.pad_token == "</s>"
    assert backbone.tokenizer.padding_side == "right"


# Images


@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA", "P", "1", "LA", "CMYK", "I;16"])
def test_every_mode_becomes_three_channels(mode):
    image = Image.fromarray(np.full((8, 8), 200 * 256, np.uint16)) if mode == "I;16" else Image.new(mode, (8, 8))
    opened = open_image(image, "RGB", place=0)
    assert (opened.mode, opened.size) == ("RGB", (8, 8))
    if mode == "I;16":
        assert opened.getpixel((0, 0)) == (200, 200, 200)


def test_a_photo_is_upright(tmp_path):
    image = Image.new("RGB", (4, 2))
    exif = image.getexif()
    exif[0x0112] = 6  # turned by a quarter
    image.save(tmp_path / "a.jpg", exif=exif)
    assert open_image(tmp_path / "a.jpg", "RGB", place=0).size == (2, 4)


@pytest.mark.parametrize("wrong", [3, None, Image.new("F", (2, 2))])
def test_what_is_no_image_is_refused(wrong):
    with pytest.raises(DataError, match="input 4 is"):
        open_image(wrong, "RGB", place=3)


def test_a_file_that_is_no_image_is_refused(tmp_path):
    (tmp_path / "a.png").write_text("text")
    with pytest.raises(DataError, match=r"a\.png' cannot be read"):
        open_image(str(tmp_path / "a.png"), "RGB", place=0)


# What is no finite number


@pytest.mark.parametrize(
    ("kind", "calls", "inputs"),
    [
        ("classification", ("predict", "logits"), ["the film", "a man"]),
        ("regression", ("predict", "logits"), ["the film", "a man"]),
        ("token-classification", ("predict", "tags"), ["the film", "a man"]),
        ("multiple-choice", ("predict", "logits"), [("the film", ["good", "bad"]), ("a man", ["is", "was", "rests"])]),
        ("generation", ("predict", "texts"), ["the film", "a man"]),
    ],
)
def test_numbers_that_are_not_finite_are_refused_by_every_call(kind, calls, inputs):
    generates = kind == "generation"
    backbone = make_backbone("gpt2" if generates else "bert", head=generates, tokenizer=True)
    labels = ["bad", "good"] if "classification" in kind else None
    options = {"separator": "is", "max_length": 8} if generates else {}
    adapter = Adapter.new(backbone, LoRA(rank=2), kind=kind, labels=labels, **options)
    limits = {"max_new_tokens": 3} if generates else {}
    model = AdaptedModel(backbone, {"a": adapter})
    for call in calls:
        getattr(model, call)(inputs, "a", **limits)
    for name, tensor in adapter.tensors.items():
        if generates or name.startswith("head."):
            tensor.fill_(3e38)
    model.replace("a", adapter)
    for call in calls:
        with pytest.raises(AdapterError, match="not a finite number"):
            getattr(model, call)(inputs, "a", **limits)
        if generates:
            with pytest.raises(AdapterError, match="not a finite number"):
                getattr(model, call)(inputs, "a", **limits, num_beams=2)
