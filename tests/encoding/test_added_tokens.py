"""Tokens of an adapter's own: which they are, their rows beyond the table, and everything else as it was."""

from dataclasses import replace

import pytest
import torch
from encoding.test_tokens import TOKENIZERS, make_words
from tiny import SAMPLES, VOCABULARY, bits, make_backbone, make_head, make_model
from transformers import DynamicCache

from graftwork import AdaptedModel, Adapter, Backbone, LoRA
from graftwork.adapters import TaskIdentity
from graftwork.adapters.added import ADDED
from graftwork.backbones.tokenizers import pieces, with_tokens
from graftwork.encoding import GenerationEncoder, LikelihoodEncoder
from graftwork.errors import AdapterError, BackboneError, DataError, RecipeError
from graftwork.kinds.heads import head_for
from graftwork.methods import FullFineTuning, HeadOnly, PromptTuning

ROWS = 100
"""Of the tiny backbones' tables; their tokenizers have fewer tokens."""

TOKENS = ("filmic", "wooden", "xyz7")
EXACT = {"rtol": 0, "atol": 1e-11}
"""Float64 through two layers of width 32: rounding stays below 1e-13; a wrong term is of order 0.1."""


def adapter_with(backbone, tokens, method=None, *, seed=0, kind="classification", **fields) -> Adapter:
    """Of which nothing is as initialised."""
    method = method or LoRA(rank=2)
    given = {} if kind == "generation" else {"dropout": 0.0, **method.head_fields}
    head = head_for(kind, backbone, num_labels=3, pooling=backbone.pooling, **given)
    labels = None if kind == "generation" else ("a", "b", "c")
    task = TaskIdentity(name="t", kind=kind, labels=labels, added_tokens=tokens, **fields)
    adapter = Adapter.create(backbone, method, head, task, seed=seed)
    generator = torch.Generator().manual_seed(seed + 1)
    moved = {
        n: t if n in adapter.fixed else t + torch.randn(t.shape, generator=generator) * 0.1
        for n, t in adapter.tensors.items()
    }
    return replace(adapter, tensors=moved)


# -- the tokenizer ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("room", [0, 1, 40])
@pytest.mark.parametrize("kind", TOKENIZERS)
def test_ids_begin_where_the_table_ends_and_other_texts_are_as_they_were(kind, room):
    tokenizer = TOKENIZERS[kind]()
    rows = max(tokenizer.get_vocab().values()) + 1 + room
    size, texts = len(tokenizer), ["the film was very good", "", "bad"]
    before = pieces(tokenizer, texts, special=True)
    longer = with_tokens(tokenizer, TOKENS, rows)
    assert pieces(longer, TOKENS) == [[rows], [rows + 1], [rows + 2]]
    assert pieces(longer, texts, special=True) == before
    [found] = pieces(longer, ["the wooden film"])
    assert [i for i in found if i >= rows] == [rows + 1]
    assert longer.convert_tokens_to_ids(list(TOKENS)) == [rows, rows + 1, rows + 2]
    # The given one is as it was, and the other one is made once.
    assert len(tokenizer) == size
    assert pieces(tokenizer, texts, special=True) == before
    assert with_tokens(tokenizer, TOKENS, rows) is longer
    assert longer.pad_token_id == tokenizer.pad_token_id


@pytest.mark.parametrize(
    ("tokens", "why"),
    [
        (("new", "film"), "token 'film' is already in the tokenizer"),
        (("Film",), "token 'Film' is already in the tokenizer"),
        (("new", ""), "token 2 is empty"),
        ((" ",), "token 1 is empty"),
        (("new ",), "token 'new ' begins or ends with white space"),
        (("new", "newer", "new"), "token 'new' is given twice"),
        (("new", "NEW"), "token 'NEW' is the same for the tokenizer as 'new'"),
        (("[CLS]",), "is already in the tokenizer"),
    ],
)
def test_tokens_that_cannot_be_added(tokens, why):
    backbone = make_backbone("bert", tokenizer=True)
    with pytest.raises(RecipeError) as caught:
        adapter_with(backbone, tokens)
    assert why in caught.value.problem
    assert caught.value.change == "--add-tokens"


def test_backbones_that_take_none():
    with pytest.raises(BackboneError, match="has no tokenizer"):
        adapter_with(make_backbone("bert"), TOKENS)
    backbone = make_backbone("vit")
    task = TaskIdentity(name="t", added_tokens=TOKENS)
    with pytest.raises(AdapterError, match="takes no tokens, so none can be added"):
        Adapter.create(backbone, HeadOnly(), make_head(pooling="first"), task)


# -- their rows ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["bert", "electra", "bart", "gemma2"])
def test_a_row_starts_as_the_mean_of_the_tokens_that_it_takes_the_place_of(kind):
    backbone = make_backbone(kind, tokenizer=True)
    table = backbone.frozen(backbone.word_site)["weight"]
    task = TaskIdentity(name="t", added_tokens=("very good", "filmic", "good filmic", "wooden"))
    adapter = Adapter.create(backbone, LoRA(rank=2), make_head(pooling=backbone.pooling), task)
    very, good = VOCABULARY["very"], VOCABULARY["good"]
    rows = adapter.tensors[ADDED]
    torch.testing.assert_close(rows[0], (table[very] + table[good]) / 2)
    torch.testing.assert_close(rows[2], table[good])
    # Of the others nothing is known: they are drawn as rows lie, each by itself, and the same again.
    assert not torch.equal(rows[1], rows[3])
    for row in (rows[1], rows[3]):
        assert 0.4 < ((row - table.mean(dim=0)) / table.std(dim=0)).std() < 1.6
    again = Adapter.create(backbone, LoRA(rank=2), adapter.head, task)
    assert torch.equal(again.tensors[ADDED], rows)
    # Everything else starts as without them.
    plain = Adapter.create(backbone, LoRA(rank=2), adapter.head, TaskIdentity(name="t"))
    assert all(torch.equal(tensor, again.tensors[name]) for name, tensor in plain.tensors.items())
    assert adapter.num_parameters == plain.num_parameters + rows.numel()


def embedded_by_hand(backbone: Backbone, rows, ids) -> torch.nn.Module:
    """The output of the backbone with a table that has the rows."""
    inner = backbone.modules[backbone.word_site.path]
    longer = make_model(backbone.config.model_type, dtype=torch.float64)
    table = longer.get_submodule(backbone.word_site.path)
    table.weight = torch.nn.Parameter(torch.cat([inner.weight.detach(), rows.to(inner.weight)]))
    table.num_embeddings = len(table.weight)
    longer.set_attn_implementation("graftwork")  # eager's softmax is in float32
    return longer


@pytest.mark.parametrize(
    "kind", ["bert", "electra", "roberta", "albert", "modernbert", "gpt2", "llama", "gemma2", "gemma3_text"]
)
def test_they_are_rows_of_a_longer_table(kind):
    """Also where a backbone scales its embeddings."""
    backbone = make_backbone(kind, tokenizer=True, dtype=torch.float64)
    adapter = adapter_with(backbone, TOKENS, HeadOnly())
    model = AdaptedModel(backbone, {"a": adapter})
    ids = torch.tensor([[5, ROWS + 2, 7, ROWS, 17, 16], [ROWS + 1, 6, 7, 8, 9, ROWS + 1]])
    longer = embedded_by_hand(backbone, adapter.tensors[ADDED], ids).eval()
    with torch.no_grad(), model.graft.run(model.residents["a"].ops()):
        found = model.model(input_ids=ids)[0]
    with torch.no_grad():
        expected = longer(input_ids=ids)[0]
    torch.testing.assert_close(found, expected, **EXACT)


@pytest.mark.parametrize("kind", ["t5", "bart", "pegasus"])
def test_an_encoder_reads_them(kind):
    backbone = make_backbone(kind, tokenizer=True, dtype=torch.float64)
    adapter = adapter_with(backbone, TOKENS, HeadOnly())
    model = AdaptedModel(backbone, {"a": adapter})
    ids = torch.tensor([[5, ROWS + 2, 7, ROWS, 17, 16]])
    longer = embedded_by_hand(backbone, adapter.tensors[ADDED], ids).eval()
    inputs = {"input_ids": ids, "decoder_input_ids": torch.tensor([[5, 6]])}
    with torch.no_grad(), model.graft.run(model.residents["a"].ops()):
        found = model.model(**inputs)[0]
    with torch.no_grad():
        torch.testing.assert_close(found, longer(**inputs)[0], **EXACT)


METHODS = [
    "lora",
    "houlsby",
    "prefix-tuning",
    "prompt-tuning",
    "head-only",
    "feature-extraction",
    "union",
    "ia3",
    "vera",
]


@pytest.mark.parametrize("kind", ["bert", "gpt2"])
def test_rows_of_one_batch_have_each_their_adapters_tokens(kind):
    """Of every method and of none, with other tokens, other numbers of them, and none."""
    backbone = make_backbone(kind, tokenizer=True, dtype=torch.float64)
    tokens = [("filmic",), ("wooden", "xyz7", "filmic"), (), ("dreary", "wooden")]
    adapters = {name: adapter_with(backbone, tokens[i % 4], SAMPLES[name], seed=i) for i, name in enumerate(METHODS)}
    model = AdaptedModel(backbone, adapters)
    texts = ["the filmic film", "a wooden xyz7 man", "xyz7 very filmic", "wooden dreary book", "the film"]
    asked = [(text, name) for name in METHODS for text in texts]
    order = torch.randperm(len(asked), generator=torch.Generator().manual_seed(0)).tolist()
    together = model.predict([asked[i][0] for i in order], [asked[i][1] for i in order])
    for i, one in zip(order, together, strict=True):
        [alone] = model.predict([asked[i][0]], asked[i][1])
        # Logits are in float32.
        assert one.scores == pytest.approx(alone.scores, abs=1e-5)


def test_an_adapter_without_them_and_the_backbone_are_as_they_were():
    backbone = make_backbone("bert", tokenizer=True)
    before, text = bits(backbone.model), ["the filmic film was good"]
    plain = adapter_with(backbone, ())
    model = AdaptedModel(backbone, {"a": plain})
    [alone] = model.predict(text)
    model.add("b", adapter_with(backbone, TOKENS, seed=3))
    beside, _ = model.predict(text * 2, ["a", "b"])
    assert beside.scores == pytest.approx(alone.scores, abs=1e-6)
    assert model.predict(text, "a") == [alone]
    model.detach()
    assert bits(backbone.model) == before
    assert len(backbone.tokenizer) == len(VOCABULARY)


def test_gradients_reach_the_rows_that_a_batch_has_and_nothing_of_the_table():
    backbone = make_backbone("bert", tokenizer=True)
    model = AdaptedModel(backbone)
    for i, name in enumerate("ab"):
        model.add(name, adapter_with(backbone, TOKENS, HeadOnly(), seed=i), trainable=True)
    model.train()
    encoder = model.encoder("a")
    batch = encoder.collate(encoder.encode(["the wooden film", "xyz7 good", "filmic"], [0, 1, 2]))
    model(**batch, adapters=["a", "b", "a"]).loss.backward()
    tensors = {name: model.residents[name].tensors()[ADDED] for name in "ab"}
    assert (tensors["a"].grad.abs().sum(dim=1) > 0).tolist() == [True, True, False]
    assert (tensors["b"].grad.abs().sum(dim=1) > 0).tolist() == [False, False, True]
    assert all(p.grad is None for p in backbone.model.parameters())


@pytest.mark.parametrize("rows", [("a",), ("a", "b"), ("b", "a", "b")])
def test_a_token_that_the_adapter_has_not_is_out_of_range(rows):
    backbone = make_backbone("bert", tokenizer=True)
    adapters = {
        "a": adapter_with(backbone, ("filmic",)),
        "b": adapter_with(backbone, TOKENS),
        "c": adapter_with(backbone, ()),
    }
    model = AdaptedModel(backbone, adapters)
    ids = torch.full((len(rows), 3), 5)
    ids[rows.index("a"), 1] = ROWS + 1
    with pytest.raises(IndexError):
        model(ids, adapters=list(rows))
    with pytest.raises(IndexError):
        model(torch.tensor([[5, ROWS], [5, ROWS]]), adapters=["c", "b"])


@pytest.mark.parametrize("method", ["lora", "head-only", "full-fine-tuning", "prompt-tuning"])
def test_saved_and_read_again(method, tmp_path):
    backbone = make_backbone("bert", tokenizer=True)
    adapter = adapter_with(backbone, TOKENS, SAMPLES[method])
    text = ["the filmic film", "xyz7 wooden"]
    adapter.save(tmp_path / "a")
    read = Adapter.load(tmp_path / "a")
    assert read.task.added_tokens == TOKENS
    assert torch.equal(read.tensors[ADDED], adapter.tensors[ADDED])
    model = AdaptedModel(backbone, {"a": adapter})
    before = model.predict(text)
    model.replace("a", read)
    assert model.predict(text) == before
    model.detach()
    lacking = replace(read, tensors={n: t for n, t in read.tensors.items() if n != ADDED})
    with pytest.raises(AdapterError, match=f"lacks {ADDED}"):
        AdaptedModel(backbone, {"a": lacking})


def test_beside_fine_tuned_embeddings():
    """Rows of the table come from the trained one, the others from the adapter's own."""
    backbone = make_backbone("bert", tokenizer=True, dtype=torch.float64)
    adapter = adapter_with(backbone, TOKENS, FullFineTuning())
    model = AdaptedModel(backbone, {"a": adapter})
    with torch.no_grad(), model.graft.run(model.residents["a"].ops()):
        found = model.model.get_input_embeddings()(torch.tensor([[5, ROWS]]))
    table = backbone.modules["embeddings.word_embeddings"].weight + adapter.tensors["embeddings.word.weight"]
    # A difference is added in its own precision, float32.
    torch.testing.assert_close(found[0, 0], table[5], rtol=0, atol=1e-6)
    torch.testing.assert_close(found[0, 1], adapter.tensors[ADDED][0].double(), **EXACT)


def test_it_is_not_merged():
    backbone = make_backbone("bert", tokenizer=True)
    model = AdaptedModel(backbone, {"a": adapter_with(backbone, TOKENS)})
    with pytest.raises(AdapterError, match="the embedding table has no rows for added tokens"):
        model.merge("a")


# -- language models -------------------------------------------------------------------------------------------------


def language_model(kind: str) -> Backbone:
    template = "ends" if kind == "t5" else "nothing"
    return Backbone(make_model(kind, dtype=torch.float64, head=True), make_words(template), name="tiny")


@pytest.mark.parametrize("method", [LoRA(rank=2), PromptTuning(num_virtual_tokens=2, init="uniform")])
@pytest.mark.parametrize("kind", ["gpt2", "llama", "t5"])
def test_they_are_read_in_sources_and_never_generated(kind, method):
    backbone = language_model(kind)
    lengths = {"max_length": 12, "max_target_length": 8, "separator": "</s>"}
    adapters = {
        "a": adapter_with(backbone, TOKENS, method, kind="generation", **lengths),
        "b": adapter_with(backbone, ("dreary",), method, kind="generation", seed=1, **lengths),
    }
    model = AdaptedModel(backbone, adapters)
    encoder = model.encoder("a")
    rows = encoder.encode(["the wooden film", "xyz7 xyz7 good"])
    assert max(max(row["input_ids"]) for row in rows) == ROWS + 2
    options = {"max_new_tokens": 5, "do_sample": False, "pad_token_id": 0, "eos_token_id": None}
    batch = encoder.collate(rows)
    alone = model.generate(**batch, adapters="a", **options)
    assert int(alone[:, -5:].max()) < ROWS
    assert len(model.predict(["the wooden film"], "a")) == 1
    # Mixed, and with a cache of an earlier turn.
    other = model.encoder("b").collate(model.encoder("b").encode(["the dreary film", "good"]))
    together = model.generate(
        **{name: torch.cat([batch[name][:1], other[name][:1]]) for name in batch}, adapters=["a", "b"], **options
    )
    assert torch.equal(together[:1], alone[:1])
    if kind == "t5":
        return
    cache, seen = DynamicCache(), torch.ones(2, 5, dtype=torch.long)
    for past in (None, cache):
        given = {} if past is None else {"past_key_values": past}
        first = torch.tensor([[4, ROWS, 5, 6, 7], [5, 6, ROWS + 2, 8, 9]])
        if past is not None:
            model.generate(
                input_ids=first[:, :3],
                attention_mask=seen[:, :3],
                adapters="a",
                **{**options, **given, "max_new_tokens": 1},
            )
        found = model.generate(input_ids=first, attention_mask=seen, adapters="a", **options, **given)
        expected = found if past is None else expected
        assert torch.equal(found, expected)


def test_targets_with_them_are_refused_by_name():
    backbone = language_model("gpt2")
    for kind, encoder, inputs, labels in (
        ("generation", GenerationEncoder, ["the film"], ["a wooden one"]),
        ("multiple-choice", LikelihoodEncoder, [("the film", ["good", "a wooden one"])], None),
    ):
        task = TaskIdentity(name="t", kind=kind, added_tokens=TOKENS, separator="</s>")
        made = encoder(backbone, task)
        with pytest.raises(
            DataError, match="has the added token 'wooden': added tokens can be read but not generated"
        ) as caught:
            made.encode(inputs, labels)
        assert caught.value.change == "--add-tokens"


def test_generation_that_looks_back_at_them_is_refused():
    backbone = language_model("gpt2")
    backbone.model.generation_config.repetition_penalty = 1.2
    adapter = adapter_with(backbone, TOKENS, kind="generation", max_length=12, max_target_length=8, separator="</s>")
    model = AdaptedModel(backbone, {"a": adapter})
    with pytest.raises(RecipeError, match="generates with repetition_penalty, which looks up"):
        model.predict(["the wooden film"])
