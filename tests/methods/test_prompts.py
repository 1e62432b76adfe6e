"""Prompt tuning and P-tuning: where their vectors stand, what makes them, and how they start."""

from dataclasses import replace

import pytest
import torch
import torch.nn as nn
from closeness import PASS, close
from tiny import (
    VOCABULARY,
    WIDTH,
    batch_for,
    inputs_for,
    make_adapter,
    make_backbone,
    make_head,
    make_model,
    make_tokenizer,
)
from training.kinds import make_tokenizer as words_and_ends

from graftwork.adapters import Adapter, TaskIdentity
from graftwork.backbones import Backbone
from graftwork.errors import BackboneError, MethodError, RecipeError, SiteError
from graftwork.heads import LanguageHead
from graftwork.methods import LoRA, PromptTuning, PTuning
from graftwork.model import AdaptedModel
from graftwork.training import TrainingSettings

L = 3
PROMPT = PromptTuning(num_virtual_tokens=L, init="uniform")
LANGUAGE = LanguageHead(shifted=True)
ENCODERS = ("bert", "roberta", "electra", "distilbert", "albert", "mpnet", "modernbert", "deberta-v2")


def with_prompt(backbone, prompt, ids, mask=None, **inputs) -> dict:
    """What the backbone alone is given: [P; E(x)]."""
    embedded = backbone.model.get_input_embeddings()(ids)
    mask = torch.ones_like(ids) if mask is None else mask
    return {
        "inputs_embeds": torch.cat([prompt.expand(len(ids), -1, -1), embedded], dim=1),
        "attention_mask": torch.cat([torch.ones(len(ids), L, dtype=torch.long), mask], dim=1),
        **inputs,
    }


def states(model, batch, **options) -> tuple:
    with torch.no_grad():
        return model(**batch, output_hidden_states=True, **options).hidden_states


@pytest.mark.parametrize("kind", ENCODERS)
def test_a_prompt_is_embeddings_before_the_text(kind):
    """For each layer, and without the prompt's own rows."""
    backbone = make_backbone(kind, dtype=torch.float64)
    batch = batch_for(backbone, 7, 4)
    model = AdaptedModel(backbone, {"a": make_adapter(backbone, PROMPT, trained=True)})
    found = states(model, batch)
    prompt = model.adapter("a").tensors["input.prompt"].double()
    assert prompt.shape == (L, backbone.sites["input"].in_features)
    model.detach()
    expected = states(backbone.model, with_prompt(backbone, prompt, batch["input_ids"], batch["attention_mask"]))
    real = batch["attention_mask"].bool()
    for one, other in zip(found, expected, strict=True):
        close(one[real], other[:, L:][real], PASS)


@pytest.mark.parametrize("kind", ["bert", "roberta", "xlm-roberta", "electra", "llama", "gpt2"])
def test_padding_before_a_text_changes_nothing(kind):
    backbone = make_backbone(kind, dtype=torch.float64)
    batch = inputs_for(backbone.model, 5)
    pad = backbone.config.pad_token_id or 0
    model = AdaptedModel(backbone, {"a": make_adapter(backbone, PROMPT, trained=True)})
    alone = states(model, batch)
    ids = torch.cat([torch.full((1, 2), pad), batch["input_ids"]], dim=1)
    mask = torch.tensor([[0, 0, 1, 1, 1, 1, 1]])
    # Models that do not count tokens by themselves are told positions, as for a text without a prompt.
    told = {} if "roberta" in kind else {"position_ids": (mask.cumsum(1) - 1).clamp(min=0)}
    padded = states(model, {"input_ids": ids, "attention_mask": mask, **told})
    for one, other in zip(padded, alone, strict=True):
        close(one[:, 2:], other, PASS)


@pytest.mark.parametrize("kind", ["bert", "albert"])
def test_the_pooling_layer_reads_the_first_real_token(kind):
    backbone = make_backbone(kind, dtype=torch.float64)
    batch = batch_for(backbone, 7, 7)
    model = AdaptedModel(backbone, {"a": make_adapter(backbone, PROMPT, trained=True, pooling="pooler")})
    with torch.no_grad():
        found = model(**batch).logits
        tensors = model.adapter("a").tensors
        model.detach()
        output = backbone.model(**with_prompt(backbone, tensors["input.prompt"].double(), batch["input_ids"]))
        pooler = backbone.modules[backbone.sites["pooler"].path]
        pooled = torch.tanh(pooler(output.last_hidden_state[:, L]))
    expected = pooled.float() @ tensors["head.classifier.weight"].T + tensors["head.classifier.bias"]
    close(found, expected, PASS)


def test_segments_and_positions_move_with_the_text():
    backbone = make_backbone("bert", dtype=torch.float64)
    ids = batch_for(backbone, 6, 6)["input_ids"]
    segments = torch.tensor([[0, 0, 0, 1, 1, 1]] * 2)
    positions = torch.tensor([[4, 5, 6, 7, 8, 9]] * 2)
    model = AdaptedModel(backbone, {"a": make_adapter(backbone, PROMPT, trained=True)})
    found = states(model, {"input_ids": ids, "token_type_ids": segments, "position_ids": positions})
    prompt = model.adapter("a").tensors["input.prompt"].double()
    model.detach()
    inputs = with_prompt(
        backbone,
        prompt,
        ids,
        token_type_ids=torch.cat([torch.zeros(2, L, dtype=torch.long), segments], dim=1),
        position_ids=torch.cat([torch.arange(L).expand(2, -1), positions + L], dim=1),
    )
    for one, other in zip(found, states(backbone.model, inputs), strict=True):
        close(one, other[:, L:], PASS)


def test_embeddings_take_the_place_of_tokens():
    backbone = make_backbone("bert", dtype=torch.float64)
    ids = batch_for(backbone, 6, 6)["input_ids"]
    model = AdaptedModel(backbone, {"a": make_adapter(backbone, PROMPT, trained=True)})
    embedded = backbone.model.get_input_embeddings()(ids)
    for one, other in zip(states(model, {"input_ids": ids}), states(model, {"inputs_embeds": embedded}), strict=True):
        close(one, other, PASS)


# -- P-tuning --------------------------------------------------------------------------------------------------------


def test_the_lstm_is_torchs():
    backbone = make_backbone("electra")
    method = PTuning(num_virtual_tokens=L, encoder_hidden_size=5)
    tensors = make_adapter(backbone, method, trained=True).tensors
    made = method.prepare(tensors, method.sites(backbone.sites), training=False)["input.prompt"]
    lstm = nn.LSTM(16, 5, num_layers=2, bidirectional=True, batch_first=True)
    names = {"weight_ih": "input", "weight_hh": "hidden", "bias_ih": "input_bias", "bias_hh": "hidden_bias"}
    with torch.no_grad():
        for layer in range(2):
            for ending, way in (("", "forwards"), ("_reverse", "backwards")):
                for theirs, ours in names.items():
                    getattr(lstm, f"{theirs}_l{layer}{ending}").copy_(tensors[f"input.lstm.{layer}.{way}.{ours}"])
        x = lstm(tensors["input.embedding"][None])[0][0]
        x = torch.relu(x @ tensors["input.inner"].T + tensors["input.inner_bias"])
        expected = x @ tensors["input.outer"].T + tensors["input.outer_bias"]
    assert made.shape == (L, 16)
    close(made, expected)


def test_the_mlp_by_hand():
    backbone = make_backbone("bert")
    method = PTuning(num_virtual_tokens=L, encoder="mlp", encoder_hidden_size=7)
    tensors = make_adapter(backbone, method, trained=True).tensors
    x = tensors["input.embedding"]
    for name, last in (("first", False), ("inner", False), ("outer", True)):
        x = x @ tensors[f"input.{name}"].T + tensors[f"input.{name}_bias"]
        x = x if last else x.clamp(min=0)
    made = method.prepare(tensors, method.sites(backbone.sites), training=False)["input.prompt"]
    close(made, x)


@pytest.mark.parametrize("encoder", ["lstm", "mlp"])
def test_a_kept_table_is_prompt_tuning_that_says_the_same(encoder, tmp_path):
    backbone = make_backbone("bert")
    batch = batch_for(backbone, 7, 4)
    method = PTuning(num_virtual_tokens=L, encoder=encoder, keep="table")
    adapter = make_adapter(backbone, method, trained=True)
    ended, tensors = method.finish(adapter.tensors, method.sites(backbone.sites))
    assert ended == PROMPT
    assert set(tensors) == {"input.prompt", "head.classifier.weight", "head.classifier.bias"}
    table = replace(adapter, method=ended, tensors=tensors)
    table.save(tmp_path / "a")
    logits = []
    for one in (adapter, Adapter.load(tmp_path / "a")):
        with torch.no_grad():
            model = AdaptedModel(backbone, {"a": one})
            logits.append(model(**batch).logits)
        model.detach()
    assert torch.equal(*logits)
    same = method.model_copy(update={"keep": "network"})
    assert same.finish(adapter.tensors, same.sites(backbone.sites)) == (same, dict(adapter.tensors))


# -- how prompts start -------------------------------------------------------------------------------------------------


def start(method, *, labels=("good", "very bad"), tokenizer=True, seed=0):
    backbone = make_backbone("bert", tokenizer=tokenizer)
    task = TaskIdentity(name="t", labels=labels)
    head = make_head() if labels is None else make_head(num_outputs=len(labels))
    adapter = Adapter.create(backbone, method, head, task, seed=seed)
    return adapter.tensors["input.prompt"], backbone.model.get_input_embeddings().weight


def rows_of(prompt, table) -> list[int]:
    """Of which tokens the vectors are the embeddings."""
    return [int((table == vector).all(dim=1).nonzero()) for vector in prompt]


def test_from_vocabulary():
    prompt, table = start(PromptTuning(num_virtual_tokens=10))
    rows = rows_of(prompt, table)
    # Words of two letters or more, none twice.
    words = {i for word, i in VOCABULARY.items() if word.isalpha() and len(word) > 1}
    assert set(rows) <= words
    assert len(set(rows)) == 10
    again, _ = start(PromptTuning(num_virtual_tokens=10))
    other, _ = start(PromptTuning(num_virtual_tokens=10), seed=1)
    assert torch.equal(prompt, again)
    assert not torch.equal(prompt, other)
    many, _ = start(PromptTuning(num_virtual_tokens=40))
    assert set(rows_of(many, table)) == words


@pytest.mark.parametrize("scaled", [False, True])
@pytest.mark.parametrize("kind", ["bart", "mbart", "pegasus"])
def test_words_are_what_enters_the_first_stack(kind, scaled):
    """Where a backbone scales its embeddings, too, by √d."""
    backbone = make_backbone(kind, scale_embedding=scaled)
    method = PromptTuning(num_virtual_tokens=3)
    name = method.sites(backbone.sites)[0].name
    prompt = make_adapter(backbone, method, pooling="mean").tensors[f"{name}.prompt"]
    table = backbone.model.get_input_embeddings().weight
    factor = WIDTH**0.5 if scaled else 1.0
    for vector in prompt:
        assert torch.isclose(table * factor, vector, atol=1e-6).all(dim=1).any()


def test_from_vocabulary_without_a_tokenizer():
    prompt, table = start(PromptTuning(num_virtual_tokens=40), tokenizer=False)
    rows = rows_of(prompt, table)
    assert len(set(rows)) == 40
    assert 0 not in rows  # padding


def test_from_labels():
    prompt, table = start(PromptTuning(num_virtual_tokens=5, init="labels"))
    assert torch.equal(prompt[0], table[VOCABULARY["good"]])
    close(prompt[1], (table[VOCABULARY["very"]] + table[VOCABULARY["bad"]]) / 2)
    assert len(set(rows_of(prompt[2:], table))) == 3


def test_from_text():
    prompt, table = start(PromptTuning(num_virtual_tokens=5, init="text", text="a good film"))
    assert rows_of(prompt, table) == [VOCABULARY[word] for word in ["a", "good", "film", "a", "good"]]
    prompt, table = start(PromptTuning(num_virtual_tokens=2, init="text", text="a good film"))
    assert rows_of(prompt, table) == [VOCABULARY["a"], VOCABULARY["good"]]


def test_uniform():
    prompt, _ = start(PromptTuning(num_virtual_tokens=40, init="uniform"))
    assert 0.45 < prompt.abs().max() <= 0.5


def test_what_a_start_needs_and_is_not_there():
    with pytest.raises(BackboneError, match="has no tokenizer"):
        start(PromptTuning(init="labels"), tokenizer=False)
    with pytest.raises(BackboneError, match="has no tokenizer"):
        start(PromptTuning(init="text", text="good"), tokenizer=False)
    with pytest.raises(MethodError, match="the task has no labels"):
        start(PromptTuning(init="labels"), labels=None)
    with pytest.raises(MethodError, match="has no tokens"):
        start(PromptTuning(init="text", text=" "))
    for settings in ({"init": "text"}, {"text": "good"}):
        with pytest.raises(MethodError, match="init='text' needs text"):
            PromptTuning(**settings)


# -- what there is no room for -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", [PROMPT, PTuning()])
def test_images_take_no_prompt(method):
    backbone = make_backbone("vit")
    with pytest.raises(SiteError) as caught:
        method.sites(backbone.sites)
    assert method.name in caught.value.problem
    assert backbone.sites.refusals["stack"] in caught.value.problem


def test_prompts_take_positions_from_the_text():
    backbone = Backbone(make_model("bert"), make_tokenizer(), name="tiny")  # 48 positions
    method = PromptTuning(num_virtual_tokens=10)
    assert TrainingSettings().resolved(method, backbone).max_length == 38
    assert TrainingSettings(max_length=38).resolved(method, backbone).max_length == 38
    with pytest.raises(RecipeError, match="39 tokens beside 10 prompt tokens are too long") as caught:
        TrainingSettings(max_length=39).resolved(method, backbone)
    assert caught.value.expected == "at most 38"
    with pytest.raises(RecipeError, match="48 prompt tokens leave no positions") as caught:
        TrainingSettings().resolved(PromptTuning(num_virtual_tokens=48), backbone)
    assert caught.value.change == "--method.num_virtual_tokens"


@pytest.mark.parametrize("kind", ["classification", "token-classification", "multiple-choice"])
def test_predictions_leave_a_prompt_its_positions(kind):
    """Also of an adapter that was made by hand, whose texts are cut where positions end."""
    backbone = make_backbone("bert", tokenizer=True)  # 48 positions
    methods = {"a": PromptTuning(num_virtual_tokens=10, init="uniform"), "b": PTuning(num_virtual_tokens=5)}
    adapters = {name: make_adapter(backbone, method, kind=kind) for name, method in methods.items()}
    model = AdaptedModel(backbone, adapters)
    text = "a good film " * 40
    given = (text, [text, "good"]) if kind == "multiple-choice" else text
    for name, method in methods.items():
        encoder = model.encoder(name)
        assert encoder.max_length == 48 - method.num_virtual_tokens
        assert max(encoder.lengths(encoder.encode([given]))) == 48 - method.num_virtual_tokens
        assert len(model.predict([given], name)) == 1


def test_new_tokens_leave_a_prompt_its_positions():
    backbone = Backbone(make_model("gpt2", head=True), words_and_ends(ends=False), name="tiny")  # 48 positions
    task = TaskIdentity(name="t", kind="generation", max_length=20, max_target_length=8)
    adapters = {
        "a": Adapter.create(backbone, PROMPT.model_copy(update={"num_virtual_tokens": 10}), LANGUAGE, task),
        "b": Adapter.create(backbone, LoRA(rank=2), LANGUAGE, task),
    }
    model = AdaptedModel(backbone, adapters)
    long = "good bad " * 20
    assert len(model.predict([long], "a", max_new_tokens=18)) == 1
    with pytest.raises(RecipeError, match=r"19 new .* after a source of 20 and 10 prompt tokens") as caught:
        model.predict([long], "a", max_new_tokens=19)
    assert caught.value.expected == "at most 18"
    assert len(model.predict([long], "b", max_new_tokens=28)) == 1


def test_counts():
    backbone = make_backbone("bert")
    assert make_adapter(backbone, PROMPT).num_parameters - 3 * (WIDTH + 1) == L * WIDTH
    h, d = WIDTH // 2, WIDTH
    layer = 2 * (4 * h * (d + h) + 8 * h)  # both layers read d = 2h
    found = make_adapter(backbone, PTuning(num_virtual_tokens=L)).num_parameters - 3 * (WIDTH + 1)
    assert found == L * d + 2 * layer + 2 * (d * d + d)
