"""Adapters as points: their units can be permuted, with those of their heads, without a change of what they predict."""

from dataclasses import replace

import pytest
import torch
from closeness import PASS, close
from tiny import inputs_for, make_adapter, make_backbone

from graftwork import AdaptedModel, Adapter, Backbone, FullFineTuning, evaluate
from graftwork.arithmetic.landscapes.points import Points
from graftwork.errors import AdapterError
from graftwork.heads import LanguageHead


def test_a_permuted_adapter_predicts_the_same_and_is_aligned_to_the_last_bit(tuned):
    adapter = Adapter.load(tuned / "a")
    backbone = Backbone.load(adapter.backbone.name, dtype="float32")
    for fields in ({}, {"extra_layer": True}, {"pooling": "pooler"}):
        head = adapter.head.model_copy(update=fields)
        own = with_head(adapter, head, backbone)
        space = Points([own], backbone, ["a"])
        weights = space.weights(own)
        specification = space.specification()
        moved = specification.random(seed=2).apply(weights)
        assert any(not torch.equal(moved[name], weights[name]) for name in weights if name.startswith("head."))
        other = space.adapter(moved)
        first, second = (evaluate(one, backbone=backbone) for one in (own, other))
        assert first == pytest.approx(second)
        assert all(torch.equal(tensor, weights[name]) for name, tensor in space.aligned(weights, moved).items())


def with_head(adapter, head, backbone):
    """The adapter with another head, and random tensors for what it has not."""
    generator = torch.Generator().manual_seed(0)
    created = Adapter.create(backbone, adapter.method, head, adapter.task)
    tensors = {
        name: adapter.tensors.get(name, torch.randn(tensor.shape, generator=generator) * 0.1)
        for name, tensor in created.tensors.items()
    }
    return replace(adapter, head=head, sites=created.sites, tensors=tensors)


def test_adapters_that_lack_weights_cannot_be_aligned(tuned):
    backbone = Backbone.load(Adapter.load(tuned / "a").backbone.name, dtype="float32")
    top = Adapter.new(backbone, FullFineTuning(top_layers=1), labels=("a", "b"))
    with pytest.raises(AdapterError, match=r"would have to be permuted, and they do not have it"):
        Points([top, top], backbone, ["a", "b"]).specification()


KINDS = {
    "bert": "classification",
    "roberta": "regression",
    "electra": "classification",
    "distilbert": "classification",
    "gpt2": "classification",
    "llama": "classification",
    "t5": "classification",
    "deberta-v2": "token-classification",
    "vit": "image-classification",
}


def logits_of(adapter, backbone, **inputs):
    model = AdaptedModel(backbone, {"t": adapter})
    try:
        with torch.no_grad():
            return model(**inputs).logits
    finally:
        model.detach()


def same_logits_when_permuted(backbone, adapter):
    adapter.check(backbone)
    inputs = inputs_for(backbone.model, 7, 4)
    inputs.pop("decoder_input_ids", None)
    if adapter.kind == "generation" and backbone.is_encoder_decoder:
        inputs["labels"] = torch.tensor([[5, 6, 7], [8, 9, 10]])
    space = Points([adapter], backbone, ["t"])
    moved = space.specification().random(seed=3).apply(space.weights(adapter))
    before, after = (logits_of(own, backbone, **inputs) for own in (adapter, space.adapter(moved)))
    # Differences to the frozen weights are rounded anew where weights change their places.
    close(after, before, 16 * PASS, what=backbone.name)


@pytest.mark.parametrize("kind", KINDS)
def test_a_permuted_adapter_of_any_family_computes_the_same(kind):
    backbone = make_backbone(kind)
    adapter = make_adapter(backbone, FullFineTuning(), kind=KINDS[kind], trained=True, num_labels=3)
    same_logits_when_permuted(backbone, adapter)


@pytest.mark.parametrize("kind", ["gpt2", "llama", "t5"])
def test_a_permuted_adapter_that_generates_computes_the_same(kind):
    backbone = make_backbone(kind, head=True)
    head = LanguageHead(shifted=not backbone.is_encoder_decoder)
    adapter = make_adapter(backbone, FullFineTuning(), head=head, kind="generation", trained=True)
    same_logits_when_permuted(backbone, adapter)


def test_units_of_networks_with_batch_norms_are_moved_without_their_statistics():
    """Which are the backbone's own, and are computed anew at each point; see test_landscape."""
    backbone = make_backbone("resnet")
    own = make_adapter(backbone, FullFineTuning(), kind="image-classification", trained=True)
    space = Points([own], backbone, ["a"])
    weights = space.weights(own)
    moved = space.specification().random(seed=2).apply(weights)
    assert any(not torch.equal(moved[name], weights[name]) for name in weights)
    assert not any("running_mean" in name for name in moved)
    assert all(torch.equal(tensor, weights[name]) for name, tensor in space.aligned(weights, moved).items())


def test_tensors_that_are_not_known_cannot_be_moved():
    backbone = make_backbone("bert")
    adapter = make_adapter(backbone, FullFineTuning(), kind="token-classification")
    space = Points([adapter], backbone, ["t"])
    assert space.specification().segments["head.classifier.bias"] == ()
    space.adapters = [replace(adapter, tensors={**adapter.tensors, "head.other.weight": torch.ones(2, 2)})]
    with pytest.raises(AdapterError, match=r"not known how 'head\.other\.weight' is permuted"):
        space.specification()
