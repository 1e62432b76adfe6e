"""Backbones whose layers accelerate keeps on the disk and brings for each pass."""

import pytest
import torch
from accelerate import dispatch_model
from tiny import make_adapter, make_backbone, make_model, make_tokenizer

from graftwork import AdaptedModel, Backbone
from graftwork.backbones.offloading import OffloadedParameters
from graftwork.errors import BackboneError
from graftwork.methods import BitFit, DoRA, FullFineTuning, Houlsby, LayerNormTuning, LoRA, VeRA, make_method

TEXTS = ["the good film", "a man"]
MAP = {"embeddings": "cpu", "encoder.layer.0": "cpu", "encoder.layer.1": "disk", "pooler": "cpu"}


def offloaded_backbone(folder, like):
    model = make_model("bert")
    backbone = Backbone(model, make_tokenizer(), fingerprint=like.fingerprint, name=like.name)
    dispatch_model(model, MAP, main_device="cpu", offload_dir=str(folder), force_hooks=True)
    return backbone


@pytest.mark.parametrize(
    "method",
    [LoRA(rank=2), DoRA(rank=2), VeRA(rank=2), BitFit(), Houlsby(bottleneck=2, norms="none"), make_method("pissa")],
)
def test_methods_that_leave_weights_alone_act_on_offloaded_layers(method, tmp_path):
    plain = make_backbone("bert", tokenizer=True)
    adapter = make_adapter(plain, method, trained=True)
    expected = AdaptedModel(plain, {"a": adapter}).logits(TEXTS, "a")
    backbone = offloaded_backbone(tmp_path, plain)
    model = AdaptedModel(backbone, {"a": adapter})
    torch.testing.assert_close(model.logits(TEXTS, "a"), expected, rtol=0, atol=1e-6)
    made = make_adapter(backbone, method).tensors
    assert all(torch.equal(made[name], tensor) for name, tensor in make_adapter(plain, method).tensors.items())


@pytest.mark.parametrize("trainable", [True, False])
@pytest.mark.parametrize("method", [FullFineTuning(), LayerNormTuning(), Houlsby(bottleneck=2)])
def test_methods_that_replace_weights_are_refused_on_offloaded_layers(method, trainable, tmp_path):
    plain = make_backbone("bert", tokenizer=True)
    model = AdaptedModel(offloaded_backbone(tmp_path, plain))
    message = r"module '\S+' of backbone 'tiny-bert' are offloaded(.|\n)*device_map"
    with pytest.raises(BackboneError, match=message):
        model.add("a", make_adapter(plain, method), trainable=trainable)
    assert not list(model.residents)


def test_offloaded_weights_are_read_when_they_are_asked_for(tmp_path):
    plain = make_backbone("bert", tokenizer=True)
    backbone = offloaded_backbone(tmp_path, plain)
    site = backbone.sites["layers.1.attention.query"]
    found = backbone.frozen(site)
    assert isinstance(found, OffloadedParameters)
    assert list(found) == ["weight", "bias"]
    assert torch.equal(found["weight"], plain.frozen(site)["weight"])
    assert backbone.modules[site.path].weight.is_meta
