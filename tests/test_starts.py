"""Passes that begin with cached states say what whole ones do, without what comes before."""

from contextlib import contextmanager

import pytest
import torch
from closeness import close
from tiny import CONFIGS, GENERATORS, make_adapter, make_backbone, make_batch
from transformers.models.bert.modeling_bert import BertLayer

from graftwork import AdaptedModel, FeatureExtraction, HeadOnly, LoRA
from graftwork.errors import BackboneError
from graftwork.heads import LanguageHead
from graftwork.passes.starts import HeadStart, LayerStart

UPPER = LoRA(rank=3, targets="layers.1.*")
TEXTS = [kind for kind in CONFIGS if kind not in ("vit", "deit", "dinov2", "resnet")]
TWO_STACKS = ("t5", "mt5", "bart", "mbart", "pegasus")
ONE_STACK = [kind for kind in TEXTS if kind not in (*TWO_STACKS, "albert")]


@contextmanager
def begun(backbone, start, adapter, *, trainable=False):
    model = AdaptedModel(backbone)
    try:
        model.add("t", adapter, trainable=trainable)
        with model.beginning(start):
            yield model
    finally:
        model.detach()


@contextmanager
def counted(module):
    """How often a module is called inside."""
    calls = []
    hook = module.register_forward_hook(lambda *_: calls.append(1))
    try:
        yield calls
    finally:
        hook.remove()


def lowest_layer(backbone):
    return backbone.model.get_submodule(backbone.sites["layers.0.attention.output"].path)


def batch_of(backbone, *lengths):
    batch = make_batch(*lengths, pad=backbone.config.pad_token_id or 0)
    return {**batch, "labels": torch.arange(len(lengths)) % 3}


def gradients(model):
    return {name: p.grad.clone() for name, p in model.residents["t"].parameters_by_name.by_name().items()}


def step(model, batch, **cached):
    model.zero_grad()
    output = model(**batch, **cached)
    output.loss.backward()
    return output, gradients(model)


@pytest.mark.parametrize("kind", ONE_STACK)
def test_a_pass_begins_at_a_layer(kind):
    backbone = make_backbone(kind)
    adapter = make_adapter(backbone, UPPER, trained=True, pooling="mean")
    batch = batch_of(backbone, 9, 4, 7)
    inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}
    before = dict(backbone.model.named_modules())
    with begun(backbone, LayerStart(backbone, 1), adapter, trainable=True) as model:
        whole, expected = step(model, batch)
        with torch.no_grad():
            cached = model.states_to_cache("t", **inputs)
        with counted(lowest_layer(backbone)) as calls:
            output, found = step(model, batch, cached_states=cached)
        assert not calls
        torch.testing.assert_close(output.logits, whole.logits, rtol=0, atol=0)
        for name, gradient in expected.items():
            torch.testing.assert_close(found[name], gradient, rtol=0, atol=0)
        # What is cached of padding is of no account.
        padding = batch["attention_mask"] == 0
        again, _ = step(model, batch, cached_states=cached.masked_fill(padding[..., None], 0.0))
        close(again.logits, whole.logits)
    assert dict(backbone.model.named_modules()) == before


@pytest.mark.parametrize("kind", [kind for kind in GENERATORS if kind not in TWO_STACKS])
def test_a_language_models_pass_begins_at_a_layer(kind):
    backbone = make_backbone(kind, head=True)
    adapter = make_adapter(backbone, UPPER, trained=True, head=LanguageHead(shifted=True))
    batch = make_batch(9, 4, 7)
    labels = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
    with begun(backbone, LayerStart(backbone, 1), adapter) as model:
        whole = model(**batch, labels=labels)
        output = model(**batch, labels=labels, cached_states=model.states_to_cache("t", **batch))
        torch.testing.assert_close(output.logits, whole.logits, rtol=0, atol=0)
        assert output.loss == whole.loss


@pytest.mark.parametrize("kind", ONE_STACK)
def test_a_pass_begins_behind_the_last_layer(kind):
    backbone = make_backbone(kind)
    adapter = make_adapter(backbone, HeadOnly(), pooling="mean")
    batch = make_batch(9, 4)
    with begun(backbone, LayerStart(backbone, 2), adapter) as model:
        whole = model(**batch).logits
        torch.testing.assert_close(
            model(**batch, cached_states=model.states_to_cache("t", **batch)).logits, whole, rtol=0, atol=0
        )


HEADS = {
    "mean": (HeadOnly(), "classification", {"pooling": "mean"}),
    "first": (HeadOnly(), "classification", {"pooling": "first"}),
    "last": (HeadOnly(), "regression", {"pooling": "last"}),
    "tags": (HeadOnly(), "token-classification", {}),
    "layers": (FeatureExtraction(dropout=0.0), "classification", {}),
    "layers-bilstm": (FeatureExtraction(model="bilstm", hidden_size=5, dropout=0.0), "token-classification", {}),
}


@pytest.mark.parametrize("case", HEADS)
@pytest.mark.parametrize("kind", TEXTS)
def test_a_pass_begins_at_the_head(kind, case):
    method, task, fields = HEADS[case]
    backbone = make_backbone(kind)
    adapter = make_adapter(backbone, method, trained=True, kind=task, **fields)
    batch = make_batch(9, 4, 7, pad=backbone.config.pad_token_id or 0)
    with begun(backbone, HeadStart(backbone, adapter.head), adapter) as model:
        whole = model(**batch).logits
        cached = model.states_to_cache("t", **batch)
        with counted(backbone.model) as calls:
            said = model(**batch, cached_states=cached).logits
        assert not calls
        real = batch["attention_mask"].bool() if task == "token-classification" else ...
        torch.testing.assert_close(said[real], whole[real], rtol=0, atol=0)


def test_the_pooling_layers_output_is_cached():
    backbone = make_backbone()
    adapter = make_adapter(backbone, HeadOnly(), pooling="pooler")
    batch = make_batch(9, 4)
    with begun(backbone, HeadStart(backbone, adapter.head), adapter) as model:
        cached = model.states_to_cache("t", **batch)
        assert cached.shape == (2, backbone.hidden_size)
        torch.testing.assert_close(model(**batch, cached_states=cached).logits, model(**batch).logits, rtol=0, atol=0)


def test_the_texts_of_a_pair_are_told_apart():
    backbone = make_backbone()
    method = FeatureExtraction(model="esim", hidden_size=5, dropout=0.0)
    adapter = make_adapter(backbone, method, trained=True)
    batch = {**make_batch(9, 6), "token_type_ids": (torch.arange(9) > 3).long().expand(2, -1)}
    with begun(backbone, HeadStart(backbone, adapter.head), adapter) as model:
        cached = model.states_to_cache("t", **batch)
        torch.testing.assert_close(model(**batch, cached_states=cached).logits, model(**batch).logits, rtol=0, atol=0)


class Telling(BertLayer):
    """A layer that tells the next one what it was given, beside what it gives."""

    told = 0.0

    def forward(self, states, *args, **kwargs):
        given = super().forward(states, *args, **kwargs) + Telling.told
        Telling.told = states.mean()
        return given


def test_a_backbone_whose_layers_hand_on_more_is_refused():
    backbone = make_backbone()
    for layer in backbone.model.encoder.layer:
        layer.__class__ = Telling
    before = dict(backbone.model.named_modules())
    adapter = make_adapter(backbone, UPPER)
    with (
        pytest.raises(BackboneError, match=r"need more of those below(.|\n)*--train\.prefix_cache off"),
        begun(backbone, LayerStart(backbone, 1), adapter),
    ):
        pass
    assert dict(backbone.model.named_modules()) == before


def test_layers_are_recomputed_above_the_start():
    backbone = make_backbone()
    adapter = make_adapter(backbone, UPPER, trained=True)
    batch = batch_of(backbone, 9, 4)
    with begun(backbone, LayerStart(backbone, 1), adapter, trainable=True) as model:
        model.train()
        with torch.no_grad():
            cached = model.states_to_cache("t", input_ids=batch["input_ids"], attention_mask=batch["attention_mask"])
        _, expected = step(model, batch, cached_states=cached)
        model.gradient_checkpointing_enable()
        with counted(lowest_layer(backbone)) as calls:
            _, found = step(model, batch, cached_states=cached)
        assert not calls
        for name, gradient in expected.items():
            close(found[name], gradient)
