"""From texts to tokens with tokenizers of every kind: pairs are parted, no row is empty, lengths are kept to."""

import pytest
import torch
from tiny import make_adapter, make_backbone, make_model
from tiny import make_tokenizer as make_bert_tokenizer
from tokenizers import Tokenizer, pre_tokenizers
from tokenizers.models import BPE, WordLevel
from tokenizers.processors import TemplateProcessing
from transformers import ByT5Tokenizer, PreTrainedTokenizerFast

from graftwork import AdaptedModel, Backbone, LoRA
from graftwork.adapters import TaskIdentity
from graftwork.backbones.tokenizers import ends, separates_pairs
from graftwork.encoding import (
    ChoiceEncoder,
    GenerationEncoder,
    LikelihoodEncoder,
    TagEncoder,
    TextEncoder,
    pair_separator,
)
from graftwork.encoding.tokens import tokenized
from graftwork.errors import RecipeError

WORDS = ["<pad>", "</s>", "<unk>", "<s>", "the", "film", "was", "good", "bad", "very"]
SPECIAL = {"pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>", "bos_token": "<s>"}
TEMPLATES = {
    "nothing": None,
    "begins": ("<s> $A", "<s> $A <s> $B"),
    "ends": ("$A </s>", "$A </s> $B </s>"),
    "ends once": ("$A </s>", "$A $B </s>"),
    "both once": ("<s> $A </s>", "<s> $A $B </s>"),
}


def make_words(template: str, **special) -> PreTrainedTokenizerFast:
    """Words at white space, with the tokens around a text, and a pair, of a template."""
    tokenizer = Tokenizer(WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    if TEMPLATES[template]:
        single, pair = TEMPLATES[template]
        added = [(token, WORDS.index(token)) for token in ("<s>", "</s>") if token in single]
        tokenizer.post_processor = TemplateProcessing(single=single, pair=pair, special_tokens=added)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **{**SPECIAL, **special})


def make_bytes(**special) -> PreTrainedTokenizerFast:
    """Bytes, as GPT-2's and Qwen's tokenizers begin, and nothing besides."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(BPE({"<|endoftext|>": 0, **{c: i + 1 for i, c in enumerate(alphabet)}}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special)


TOKENIZERS = {
    **{name: lambda name=name: make_words(name) for name in TEMPLATES},
    "bytes": lambda: make_bytes(eos_token="<|endoftext|>"),
    "bytes alone": make_bytes,
    "bert": make_bert_tokenizer,
    "byt5": lambda: ByT5Tokenizer(extra_ids=0),
}
PARTED = {"begins", "ends", "bert", "byt5"}
"""Those that put something between the texts of a pair."""


@pytest.fixture(params=TOKENIZERS)
def kind(request) -> str:
    return request.param


def backbone_with(tokenizer, kind: str = "gpt2", **options) -> Backbone:
    return Backbone(make_model(kind, vocab_size=400, **options), tokenizer, name=f"tiny-{kind}")


# -- pairs -----------------------------------------------------------------------------------------------------------


def test_who_parts_pairs_is_found_out(kind):
    tokenizer = TOKENIZERS[kind]()
    assert separates_pairs(tokenizer) == (kind in PARTED)
    assert (pair_separator(tokenizer) is None) == (kind in PARTED)


def test_the_separator_is_a_token_that_no_text_has():
    assert pair_separator(make_words("nothing")) == "</s>"
    assert pair_separator(make_words("nothing", sep_token="<s>")) == "<s>"
    assert pair_separator(make_bytes()) == "\n"
    assert pair_separator(TOKENIZERS["bytes"]()) == "<|endoftext|>"


def test_pairs_that_are_parted_elsewhere_are_other_rows(kind):
    tokenizer = TOKENIZERS[kind]()
    between = pair_separator(tokenizer)
    pairs = [("the film was", " good"), ("the film", " was good"), ("", "the film was good"), ("the film was good", "")]
    rows = tokenized(tokenizer, *zip(*pairs, strict=True), 64, separator=between)
    assert len({tuple(row["input_ids"]) for row in rows}) == len(pairs)
    for row in rows:
        assert {len(values) for values in row.values()} == {len(row["input_ids"])}
        assert set(row) == {name for name in tokenizer.model_input_names if name in row}


@pytest.mark.parametrize("kind", ["nothing", "ends once", "both once"])
def test_a_parted_pair_has_the_tokens_that_begin_and_end_it(kind):
    tokenizer = make_words(kind)
    [row] = tokenized(tokenizer, ["the film"], ["was good"], 64, separator="</s>")
    before, after = ends(tokenizer)
    expected = [*before, WORDS.index("the"), WORDS.index("film"), 1, WORDS.index("was"), WORDS.index("good"), *after]
    assert row["input_ids"] == expected
    assert row["attention_mask"] == [1] * len(expected)


@pytest.mark.parametrize("lengths", [(2, 9), (9, 2), (6, 6), (7, 6), (1, 1), (0, 9), (9, 0)])
@pytest.mark.parametrize("longest", [3, 4, 7, 8])
@pytest.mark.parametrize("side", ["right", "left"])
def test_parted_pairs_are_cut_as_transformers_cuts_pairs(lengths, longest, side):
    """Less the separator's place, which is never cut."""
    tokenizer = make_words("nothing", truncation_side=side)
    first, second = (" ".join(["the", "film", "was", "very", "bad", "good", "the", "film", "was"][:n]) for n in lengths)
    [row] = tokenized(tokenizer, [first], [second], longest, separator="</s>")
    expected = tokenizer(first, second, truncation=True, max_length=longest - 1)
    ids, whole = row["input_ids"], expected["input_ids"]
    assert len(ids) <= longest
    at = ids.index(1)
    assert ids[:at] + ids[at + 1 :] == whole
    assert at == sum(part == 0 for part in expected.sequence_ids())


def test_a_length_without_room_for_what_is_added_is_refused(kind):
    tokenizer = TOKENIZERS[kind]()
    between = pair_separator(tokenizer)
    with pytest.raises(RecipeError, match="the tokenizer adds") as caught:
        tokenized(tokenizer, ["good"], ["bad"], 0, separator=between)
    assert caught.value.change == "--train.max_length"


def test_an_adapter_from_before_has_its_pairs_as_they_were():
    backbone = backbone_with(make_words("nothing"))
    rows = TextEncoder(backbone, TaskIdentity(name="t", pairs=True)).encode([("the film", "was good")])
    assert rows[0]["input_ids"] == [WORDS.index(word) for word in ["the", "film", "was", "good"]]


def test_choices_are_parted_from_their_question():
    backbone = backbone_with(make_words("nothing"))
    task = TaskIdentity(name="t", pair_separator="</s>")
    [row] = ChoiceEncoder(backbone, task).encode([("the film", ["was good", "bad"])])
    film = [WORDS.index("the"), WORDS.index("film"), 1]
    assert row["input_ids"] == [[*film, WORDS.index("was"), WORDS.index("good")], [*film, WORDS.index("bad")]]


# -- nothing is empty ------------------------------------------------------------------------------------------------

EMPTY = ["", " ", "\n"]


def test_an_empty_text_is_one_token_that_is_seen(kind):
    tokenizer = TOKENIZERS[kind]()
    for rows in (tokenized(tokenizer, ["", "good"], None, 64), tokenized(tokenizer, ["", "good"], ["", "bad"], 64)):
        for row in rows:
            assert row["input_ids"]
            assert row["attention_mask"] == [1] * len(row["input_ids"])
            assert all(isinstance(i, int) for i in row["input_ids"])
    [empty] = tokenized(make_words("nothing"), [""], None, 64)
    assert empty["input_ids"] == [WORDS.index("<s>")]


def make_encoded(kind: str, backbone: Backbone, **task) -> list:
    """Each kind of input, as empty as it can be."""
    identity = TaskIdentity(name="t", pair_separator=pair_separator(backbone.tokenizer), **task)
    encoders = [
        (TextEncoder, EMPTY),
        (ChoiceEncoder, [("", ["", "good"]), ("", ["", ""])]),
        (GenerationEncoder, EMPTY),
        (LikelihoodEncoder, [("", ["", "good"]), ("", ["", ""])]),
    ]
    if backbone.tokenizer.is_fast:
        encoders.append((TagEncoder, [["\u200b"], ["good", "\u200b"]]))
    paired = TaskIdentity(name="t", pairs=True, pair_separator=identity.pair_separator)
    found = [(encoder(backbone, identity), inputs) for encoder, inputs in encoders]
    return [*found, (TextEncoder(backbone, paired), [("", ""), ("", "good")])]


@pytest.mark.parametrize("separator", ["\n", ""])
@pytest.mark.parametrize("family", ["gpt2", "t5"])
def test_no_row_of_any_kind_of_input_is_empty(kind, family, separator):
    if kind == "bert" and separator:
        separator = "was"  # its words have no line break
    if kind in TEMPLATES and separator:
        separator = "</s>"
    backbone = backbone_with(TOKENIZERS[kind](), family, head=True)
    if backbone.tokenizer.eos_token is None and backbone.tokenizer.sep_token is None:
        pytest.skip("without a token that ends texts nothing is generated")
    for encoder, inputs in make_encoded(kind, backbone, separator=separator):
        rows = encoder.encode(inputs)
        assert encoder.lengths(rows) == [max(1, length) for length in encoder.lengths(rows)]
        batch = encoder.collate(rows)
        seen = batch["attention_mask"].sum(dim=-1)
        assert int(seen.min()) >= 1
        assert batch["input_ids"].dtype == torch.long
        if "targets" in batch:
            assert int((batch["targets"] != -100).sum(dim=-1).min()) >= 1


@pytest.mark.parametrize("family", ["gpt2", "bert", "llama"])
def test_an_empty_text_has_a_finite_prediction_alone_and_beside_others(family):
    backbone = backbone_with(make_words("nothing"), family)
    model = AdaptedModel(backbone, {"a": make_adapter(backbone, LoRA(rank=2), trained=True)})
    [alone] = model.predict([""])
    [beside, _] = model.predict(["", "the film was very good"])
    assert 0 < alone.score <= 1
    # Float32 through two layers.
    assert abs(alone.score - beside.score) < 1e-5
    assert alone.label == beside.label


def test_a_score_that_is_no_number_is_refused():
    backbone = make_backbone("bert", tokenizer=True)
    for kind in ("classification", "regression", "token-classification", "multiple-choice"):
        adapter = make_adapter(backbone, LoRA(rank=2), kind=kind)
        # Finite tensors, as no others are taken, whose products are not.
        weight = adapter.tensors["head.classifier.weight"]
        weight.copy_(3e38 * (-1.0) ** torch.arange(weight.shape[1]))
        model = AdaptedModel(backbone, {"a": adapter})
        with pytest.raises(Exception, match=r"a score is (nan|-?inf), not a finite number"):
            model.predict([("a", ["good", "bad"])] if kind == "multiple-choice" else ["a good film"])
        model.detach()


def test_a_choice_that_is_none_is_no_fault():
    backbone = make_backbone("bert", tokenizer=True)
    model = AdaptedModel(backbone, {"a": make_adapter(backbone, LoRA(rank=2), kind="multiple-choice")})
    found = model.predict([("a", ["good", "bad"]), ("a", ["good", "bad", "dull"])])
    assert [len(one.scores) for one in found] == [2, 3]
