"""Rows of one batch with adapters of their own: they say what they say alone."""

import copy
import random
import threading

import pytest
import torch
from closeness import HALF, PASS, close
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from matrix import MATRIX, OPS, REPRESENTATIVES, adapter_of, backbone_of, inputs_of, refuses
from tiny import CONFIGS, SAMPLES, inputs_for, make_adapter, make_backbone

from graftwork.errors import AdapterError
from graftwork.heads import LanguageHead
from graftwork.methods import (
    AdaMix,
    BitFit,
    Compacter,
    FullFineTuning,
    Houlsby,
    LayerNormTuning,
    LoRA,
    PrefixTuning,
    PromptTuning,
)
from graftwork.model import AdaptedModel

LENGTHS = (9, 4, 7, 5, 9, 3, 8, 6)


def models_of(kind, names, dtype):
    backbone = backbone_of(kind, dtype=dtype)
    adapters = {name: adapter_of(backbone, SAMPLES[name], trained=True, seed=i) for i, name in enumerate(names)}
    return AdaptedModel(backbone, adapters)


def rows_of(batch, *places):
    return {name: tensor[list(places)] for name, tensor in batch.items()}


@torch.no_grad()
def check_rows(model, names):
    """A batch whose rows have these adapters, against each adapter alone: products of other sizes sum in another order,
    and heads in float32.
    """
    heads = {name: model.residents[name].adapter.head for name in names if name is not None}
    batch = inputs_of(model.backbone, next(iter(heads.values())), *LENGTHS[: len(names)])
    if any(head.reads in ("tokens", "layers") for head in heads.values()):
        batch.pop("decoder_input_ids", None)
    found = model(**batch, adapters=names)
    alone = {name: model(**batch, adapters=name).logits for name in heads}
    half = model.backbone.dtype == torch.bfloat16
    settings = {"units": HALF, "precision": torch.bfloat16} if half else {"units": PASS, "precision": torch.float32}
    for row, name in enumerate(names):
        if name is None:
            assert found.rows[row] is None
        else:
            # One row's logits may nearly cancel.
            close(found.rows[row], alone[name][row], **settings, scale=float(alone[name].abs().max()))


# Every method


@pytest.mark.parametrize(
    ("kind", "dtype"),
    [
        *((kind, torch.float64) for kind in REPRESENTATIVES),
        *((kind, torch.float32) for kind in ("bert", "llama", "t5")),
        *((kind, torch.bfloat16) for kind in ("bert", "llama", "t5")),
    ],
    ids=str,
)
def test_every_method_beside_another_and_the_backbone_alone(kind, dtype):
    names = [name for name, other in MATRIX if other == kind]
    model = models_of(kind, names, dtype)
    for place, name in enumerate(names):
        check_rows(model, [name, None, names[place - 1]])


@pytest.mark.parametrize("kind", CONFIGS)
def test_all_ops_in_one_batch_on_every_model_type(kind):
    names = [name for name in OPS if not refuses(name, kind)]
    model = models_of(kind, names, torch.float64)
    order = random.Random(0).sample([*names, None], len(names) + 1)[: len(LENGTHS)]
    check_rows(model, order)


# Random banks and batches

SIZES = {
    "lora-2": LoRA(rank=2),
    "lora-2-again": LoRA(rank=2),
    "lora-7": LoRA(rank=7, targets=("layers.1.ffn.*",)),
    "lora-2-qv": LoRA(rank=2, targets=("query", "value")),
    "lora-2-kv": LoRA(rank=2, targets=("key", "value")),
    "lora-4-qv": LoRA(rank=4, targets=("query", "value")),
    "houlsby-3": Houlsby(bottleneck=3),
    "houlsby-8": Houlsby(bottleneck=8, activation="relu"),
    "houlsby-8-gelu": Houlsby(bottleneck=8),
    "prompt-1": PromptTuning(num_virtual_tokens=1, init="uniform"),
    "prompt-5": PromptTuning(num_virtual_tokens=5, init="uniform"),
    "prefix-2": PrefixTuning(num_virtual_tokens=2, reparametrise=False),
    "prefix-6": PrefixTuning(num_virtual_tokens=6, reparametrise=False),
    "norms": LayerNormTuning(),
    "bitfit": BitFit(),
    "compacter": Compacter(bottleneck=4, phm_dim=2),
    "adamix": AdaMix(bottleneck=2),
    "full": FullFineTuning(top_layers=1),
}


@pytest.fixture(scope="module")
def bank():
    backbone = make_backbone("bert")
    adapters = {
        name: make_adapter(backbone, method, trained=True, seed=i, num_labels=2 + i % 3)
        for i, (name, method) in enumerate(SIZES.items())
    }
    return AdaptedModel(backbone, adapters)


@settings(max_examples=100, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(names=st.lists(st.sampled_from([*SIZES, None]), min_size=1, max_size=8).filter(any))
def test_random_batches(bank, names):
    check_rows(bank, names)


# Heads of different kinds


def test_heads_of_different_kinds():
    backbone = make_backbone("bert", dtype=torch.float64)
    kinds = ("classification", "regression", "token-classification")
    adapters = {kind: make_adapter(backbone, LoRA(rank=2), kind=kind, trained=True) for kind in kinds}
    model = AdaptedModel(backbone, adapters)
    names = ["token-classification", None, "regression", "classification", "regression"]
    check_rows(model, names)
    batch = inputs_for(backbone.model, *LENGTHS[:5])
    labels = {
        "classification": torch.tensor([2]),
        "regression": torch.tensor([0.5, -1.0]),
        "token-classification": torch.randint(3, (1, 9)),
    }
    found = model(**batch, labels=labels, adapters=names)
    assert found.logits is None
    for name, own in labels.items():
        places = [row for row, other in enumerate(names) if other == name]
        alone = model(**rows_of(batch, *places), labels=own, adapters=name)
        close(found.losses[name], alone.loss, PASS)
    close(found.loss, sum(found.losses.values()))


def test_questions_with_choices_beside_single_texts():
    backbone = make_backbone("bert", dtype=torch.float64)
    kinds = ("multiple-choice", "classification")
    adapters = {kind: make_adapter(backbone, LoRA(rank=2), kind=kind, trained=True) for kind in kinds}
    model = AdaptedModel(backbone, adapters)
    flat = inputs_for(backbone.model, *LENGTHS[:6])
    batch = {name: tensor.view(3, 2, -1) for name, tensor in flat.items()}
    names = ["classification", "multiple-choice", "multiple-choice"]
    with torch.no_grad():
        found = model(**batch, adapters=names)
        close(found.rows[0], model(**rows_of(flat, 0), adapters="classification").logits[0], PASS)
        alone = model(**rows_of(batch, 1, 2), adapters="multiple-choice").logits
    assert found.rows[1].shape == (2,)
    close(torch.stack(found.rows[1:]), alone, PASS)


def test_rows_of_the_backbone_alone_are_the_backbones():
    backbone = make_backbone("bert", dtype=torch.float64)
    batch = inputs_for(backbone.model, 5, 5, 3)
    with torch.no_grad():
        expected = backbone.model(**batch, output_hidden_states=True)
        adapter = make_adapter(backbone, Houlsby(bottleneck=4), trained=True)
        model = AdaptedModel(backbone, {"a": adapter})
        found = model(**batch, adapters=[None, "a", None], output_hidden_states=True)
        nothing = model(**batch, adapters=[None, None, None])
    close(found.last_hidden_state[[0, 2]], expected.last_hidden_state[[0, 2]], PASS)
    assert (found.last_hidden_state[1] - expected.last_hidden_state[1]).abs().max() > 1e-3
    for own, other in zip(found.hidden_states, expected.hidden_states, strict=True):
        close(own[[0, 2]], other[[0, 2]], PASS)
    close(nothing.last_hidden_state, expected.last_hidden_state, 0)
    assert nothing.rows == (None, None, None)


# Gradients


def test_gradients_are_those_of_each_adapter_alone():
    """All in one pass, sizes, methods, heads and numbers of rows differing; float64."""
    backbone = make_backbone("bert", dtype=torch.float64)
    methods = {
        "lora": LoRA(rank=2),
        "lora-5": LoRA(rank=5),
        "lora-qv": LoRA(rank=2, targets=("query", "value")),
        "lora-kv": LoRA(rank=2, targets=("key", "value")),
        "houlsby": Houlsby(bottleneck=3),
        "prompt": SIZES["prompt-5"],
        "prefix": SIZES["prefix-2"],
        "norms": LayerNormTuning(),
        "full": SIZES["full"],
    }
    names = ["lora", "houlsby", "prompt", "lora-5", "houlsby", "prefix", "norms", "full", "lora-qv", "lora-kv"]
    batch = inputs_for(backbone.model, *LENGTHS, 5, 7)
    labels = torch.tensor([0, 2, 1, 1, 0, 2, 1, 0, 1, 2])

    def gradients(model, name):
        return {n: p.grad for n, p in model.residents[name].parameters_by_name.named_parameters()}

    model = AdaptedModel(backbone)
    for i, (name, method) in enumerate(methods.items()):
        model.add(name, make_adapter(backbone, method, trained=True, seed=i), trainable=True)
    model.train()
    model(**batch, labels=labels, adapters=names).loss.backward()
    together = {name: gradients(model, name) for name in methods}
    model.zero_grad()
    for name in methods:
        places = [row for row, other in enumerate(names) if other == name]
        model(**rows_of(batch, *places), labels=labels[places], adapters=name).loss.backward()
        alone = gradients(model, name)
        # That of a key's bias is rounding only.
        largest = max(float(g.abs().max()) for g in alone.values() if g is not None)
        for parameter, expected in alone.items():
            found = together[name][parameter]
            assert (found is None) == (expected is None), (name, parameter)
            if expected is not None:
                close(found, expected, scale=largest)


def test_trained_ones_with_dropout_at_rest():
    """What would drop its input in training shares a pass with what would not, or would drop another share."""
    backbone = make_backbone("bert", dtype=torch.float64)
    model = AdaptedModel(backbone, {"finished": make_adapter(backbone, LoRA(rank=2, dropout=0.1), trained=True)})
    for i, dropout in enumerate((0.0, 0.1, 0.3)):
        adapter = make_adapter(backbone, LoRA(rank=2, dropout=dropout), trained=True, seed=i + 1)
        model.add(f"{dropout}", adapter, trainable=True)
    model.eval()
    check_rows(model, ["0.1", "finished", "0.3", "0.0", "0.1", None])


# Generation

GREEDY = {"max_new_tokens": 5, "do_sample": False, "pad_token_id": 0, "eos_token_id": None}


@pytest.mark.parametrize("options", [{}, {"num_beams": 3}, {"use_cache": False}], ids=["greedy", "beams", "no cache"])
@pytest.mark.parametrize("kind", ["gpt2", "llama", "t5", "bart"])
def test_generated_tokens_are_those_of_each_adapter_alone(kind, options):
    backbone = make_backbone(kind, dtype=torch.float64, head=True)
    methods = ("lora-2", "prompt-1", "prompt-5", "prefix-6", "houlsby-3", "full")
    head = LanguageHead(shifted=not backbone.is_encoder_decoder)
    model = AdaptedModel(
        backbone, {n: make_adapter(backbone, SIZES[n], head=head, trained=True, seed=i) for i, n in enumerate(methods)}
    )
    ids = torch.randint(5, 100, (7, 6), generator=torch.Generator().manual_seed(0))
    mask = torch.ones_like(ids)
    cut = slice(4, 6) if backbone.is_encoder_decoder else slice(0, 2)
    mask[2:4, cut], ids[2:4, cut] = 0, backbone.config.pad_token_id or 0
    names = ["prompt-5", "lora-2", None, "prompt-1", "full", "prefix-6", "houlsby-3"]
    found = model.generate(ids, attention_mask=mask, adapters=names, **GREEDY, **options)
    for row, name in enumerate(names):
        one = {"input_ids": ids[row : row + 1], "attention_mask": mask[row : row + 1]}
        alone = model.generate(**one, adapters=name or [None], **GREEDY, **options)
        assert torch.equal(found[row, -5:], alone[0, -5:]), name


@pytest.mark.parametrize("form", ["tensor", "list", "configuration"])
@pytest.mark.parametrize("kind", ["t5", "bart"])
def test_rows_that_share_no_search_begin_with_tokens_of_their_own(kind, form):
    backbone = make_backbone(kind, dtype=torch.float64, head=True)
    methods = ("lora-2", "full", "prefix-6")
    head = LanguageHead(shifted=False)
    model = AdaptedModel(
        backbone, {n: make_adapter(backbone, SIZES[n], head=head, trained=True, seed=i) for i, n in enumerate(methods)}
    )
    ids = torch.randint(5, 100, (4, 6), generator=torch.Generator().manual_seed(0))
    names, starts = ["full", "lora-2", None, "prefix-6"], [7, 8, 9, 10]
    given = {"decoder_start_token_id": torch.tensor(starts) if form == "tensor" else starts}
    if form == "configuration":
        config = copy.deepcopy(backbone.model.generation_config)
        config.decoder_start_token_id = starts
        given = {"generation_config": config}
    found = model.generate(ids, adapters=names, **GREEDY, **given)
    assert found[:, 0].tolist() == starts
    for row, name in enumerate(names):
        alone = model.generate(
            ids[row : row + 1], adapters=name or [None], decoder_start_token_id=starts[row], **GREEDY
        )
        assert torch.equal(found[row], alone[0]), name
    if form == "configuration":
        assert config.decoder_start_token_id == starts


# Adding, replacing, removing


def test_an_exception_leaves_no_state():
    backbone = make_backbone("bert")
    model = AdaptedModel(backbone, {n: make_adapter(backbone, SIZES[n], trained=True) for n in ("lora-2", "houlsby-3")})
    batch, names = inputs_for(backbone.model, 5, 4), ["lora-2", "houlsby-3"]
    with torch.no_grad():
        before = model(**batch, adapters=names).rows
        with pytest.raises(IndexError):
            model(**{**batch, "input_ids": batch["input_ids"] + 10_000}, adapters=names)
        with pytest.raises(AdapterError, match="lora-3") as caught:
            model(**batch, adapters=["lora-2", "lora-3"])
        assert "lora-2" in str(caught.value)
        with pytest.raises(AdapterError, match="3 adapter names were given for 2 rows"):
            model(**batch, adapters=[*names, None])
        after = model(**batch, adapters=names).rows
    assert all(torch.equal(*pair) for pair in zip(before, after, strict=True))


def test_a_replaced_adapter_is_the_new_one():
    backbone = make_backbone("bert")
    old, new = (make_adapter(backbone, LoRA(rank=2), trained=True, seed=seed) for seed in (1, 2))
    model = AdaptedModel(backbone, {"a": old, "new": new})
    batch = inputs_for(backbone.model, 5, 4)
    with torch.no_grad():
        expected = model(**batch, adapters="new").logits
        model.replace("a", new)
        assert torch.equal(model(**batch, adapters="a").logits, expected)
    with pytest.raises(AdapterError, match="no adapter is named 'b'"):
        model.replace("b", new)
    model.merge("a")
    with pytest.raises(AdapterError, match="merged"):
        model.replace("a", old)


def test_adapters_come_and_go_while_passes_run():
    """Every answer is that of an adapter that was there under its name."""
    backbone = make_backbone("bert")
    versions = [make_adapter(backbone, LoRA(rank=2 + i), trained=True, seed=i) for i in range(3)]
    stays = make_adapter(backbone, Houlsby(bottleneck=3), trained=True)
    model = AdaptedModel(backbone, {"stays": stays, **{f"v{i}": v for i, v in enumerate(versions)}})
    batch = inputs_for(backbone.model, 5, 4)
    with torch.no_grad():
        known = [model(**batch, adapters=f"v{i}").logits[0] for i in range(3)]
        fixed = model(**batch, adapters="stays").logits[1]
    one = next(iter(model.memory().adapters.values()))
    model.add("changes", versions[0])
    model.residents.budget = 6 * one
    wrong, done = [], threading.Event()

    def ask():
        while not done.is_set():
            with torch.no_grad():
                found = model(**batch, adapters=["changes", "stays"]).rows
            near = min(float((found[0] - own).abs().max()) for own in known)
            if near > 1e-5 or float((found[1] - fixed).abs().max()) > 1e-5:
                wrong.append((near, found))

    threads = [threading.Thread(target=ask) for _ in range(2)]
    for thread in threads:
        thread.start()
    try:
        for i in range(30):
            model.replace("changes", versions[i % 3])
            model.add(f"other-{i}", versions[i % 3])
            if i % 2:
                model.remove(f"other-{i}")
    finally:
        done.set()
        for thread in threads:
            thread.join()
    assert not wrong
    assert model.memory().unloaded


# Memory


def test_past_its_budget_what_was_not_used_for_longest_is_put_away_and_comes_back(tmp_path):
    backbone = make_backbone("bert")
    adapters = {f"a{i}": make_adapter(backbone, LoRA(rank=4), trained=True, seed=i) for i in range(4)}
    batch = inputs_for(backbone.model, 5)
    free = AdaptedModel(backbone, adapters)
    with torch.no_grad():
        expected = {name: free(**batch, adapters=name).logits for name in adapters}
    one = free.memory().adapters["a0"]
    assert free.memory().total == 4 * one
    free.detach()
    model = AdaptedModel(backbone, budget=2 * one)
    model.add("a0", adapters["a0"], pinned=True)
    adapters["a1"].save(tmp_path / "a1")
    model.add("a1", tmp_path / "a1")
    for name in ("a2", "a3"):
        model.add(name, adapters[name])
    assert set(model.memory().adapters) == {"a0", "a3"}
    assert model.memory().unloaded == ("a1", "a2")
    with torch.no_grad():
        for name in ("a1", "a2", "a3", "a1", "a0"):
            assert torch.equal(model(**batch, adapters=name).logits, expected[name])
            assert model.memory().total <= 2 * one
            assert "a0" in model.memory().adapters
    assert all(torch.equal(t, model.adapter("a2").tensors[n]) for n, t in adapters["a2"].tensors.items())
    with pytest.raises(AdapterError, match="3 adapters of one pass"):
        model(**inputs_for(backbone.model, 5, 5, 5), adapters=["a1", "a2", "a3"])
    with pytest.raises(AdapterError, match="more than the budget"):
        model.add("large", make_adapter(backbone, LoRA(rank=30)))
    assert "large" not in model.residents


def test_a_thousand_adapters():
    backbone = make_backbone("bert")
    adapters = [make_adapter(backbone, LoRA(rank=2), trained=True, seed=i) for i in range(8)]
    model = AdaptedModel(backbone)
    for i in range(1000):
        model.add(f"a{i}", adapters[i % 8])
    numbers = sum(t.numel() for t in adapters[0].tensors.values())
    assert model.memory().total == 1000 * numbers * 4
    names = [f"a{i}" for i in (999, 0, 500, 17, 17, 123, 730, 8)]
    check_rows(model, names)
