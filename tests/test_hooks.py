"""Hooks of a user on the backbone's modules stay at their place while adapters come and go."""

import copy
import io
from contextlib import nullcontext

import pytest
import torch
from tiny import WIDTH, batch_for, make_adapter, make_backbone

from graftwork.methods import FullFineTuning, LayerNormTuning, LoRA
from graftwork.model import AdaptedModel
from graftwork.passes.starts import LayerStart

QUERY = "encoder.layer.0.attention.self.query"
METHODS = {"lora": LoRA(rank=2), "full": FullFineTuning(), "norms": LayerNormTuning(), "merged": LoRA(rank=2)}


class Seen:
    """Hooks on one module, and how often each was called since one last asked."""

    def __init__(self):
        self.calls = []

    def put_on(self, module):
        self.handles = [
            module.register_forward_pre_hook(lambda *_, **__: self.calls.append("pre"), with_kwargs=True),
            module.register_forward_hook(lambda *_: self.calls.append("forward"), always_call=True),
            module.register_full_backward_pre_hook(lambda *_: self.calls.append("backward pre")),
            module.register_full_backward_hook(lambda *_: self.calls.append("backward")),
        ]

    def take_off(self):
        for handle in self.handles:
            handle.remove()

    def __call__(self, model, batch):
        """Which were called in one pass and its backward."""
        self.calls.clear()
        with torch.enable_grad():
            embedded = torch.randn(*batch["input_ids"].shape, WIDTH, requires_grad=True)
            model(inputs_embeds=embedded, attention_mask=batch["attention_mask"])[0].sum().backward()
        return sorted(self.calls)


ALL = ["backward", "backward pre", "forward", "pre"]


def bare(model):
    return model.get_submodule(QUERY)


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("off", ["on it", "detached"])
def test_hooks_are_called_once_until_they_are_taken_off(name, when, off):
    backbone = make_backbone("bert")
    batch, seen, others = batch_for(backbone, 5, 4), Seen(), Seen()
    others.put_on(bare(backbone.model))
    if when == "before":
        seen.put_on(bare(backbone.model))
    model = AdaptedModel(backbone, {"a": make_adapter(backbone, METHODS[name], trained=True)})
    if when == "after":
        seen.put_on(bare(backbone.model))
    if name == "merged":
        model.merge("a")
    assert seen(model, batch) == others(model, batch) == ALL
    if off == "on it":
        seen.take_off()
        assert seen(model, batch) == []
    model.detach()
    if off == "detached":
        assert seen(backbone.model, batch) == ALL
        seen.take_off()
    assert seen(backbone.model, batch) == []
    assert others(backbone.model, batch) == ALL
    AdaptedModel(backbone, {"a": make_adapter(backbone, METHODS[name])})
    assert others(backbone.model, batch) == ALL
    others.take_off()
    assert others(backbone.model, batch) == []


def test_a_hook_that_is_set_on_a_module_held_from_before_stays():
    backbone = make_backbone("bert")
    held, called = bare(backbone.model), []
    model = AdaptedModel(backbone, {"a": make_adapter(backbone, LoRA(rank=2))})
    handle = held.register_forward_hook(lambda *_: called.append(1))
    model.detach()
    batch = batch_for(backbone, 5, 4)
    backbone.model(**batch)
    assert called == [1]
    handle.remove()
    backbone.model(**batch)
    assert called == [1]


def test_a_hook_sees_what_the_model_computes_there():
    backbone = make_backbone("bert")
    seen = []
    bare(backbone.model).register_forward_hook(lambda module, args, output: seen.append(output))
    batch = batch_for(backbone, 5, 4)
    model = AdaptedModel(backbone, {"a": make_adapter(backbone, LoRA(rank=2), trained=True)})
    with torch.no_grad():
        model(**batch)
        model.merge("a")
        model(**batch)
        model.detach()
        backbone.model(**batch)
    adapted, merged, plain = seen
    torch.testing.assert_close(adapted, merged, rtol=1e-5, atol=1e-5)
    assert not torch.allclose(adapted, plain, rtol=1e-3, atol=1e-3)


def test_hooks_of_one_that_stands_before_another_stay():
    backbone = make_backbone("bert")
    layer = backbone.model.encoder.layer[0].attention.self
    called = []
    layer.query.register_forward_hook(lambda *_: called.append(1))
    batch = batch_for(backbone, 5, 4)
    start = LayerStart(backbone, 0)
    backbone.model.encoder.layer[0].register_forward_hook(lambda *_: called.append(2))
    start.attach()
    backbone.model.encoder.layer[0].register_forward_hook(lambda *_: called.append(3))
    model = AdaptedModel(backbone, {"a": make_adapter(backbone, LoRA(rank=2), trained=True)})
    for change in (nullcontext, start.detach, model.detach):
        change()
        called.clear()
        with torch.no_grad():
            backbone.model(**batch)
        assert called == [1, 2, 3]


def outside(model):
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


CALLED = []


def note(*_):
    CALLED.append(1)


@pytest.mark.parametrize("copied", [copy.deepcopy, outside])
def test_a_copy_has_the_hooks(copied):
    backbone = make_backbone("bert")
    batch = batch_for(backbone, 5, 4)
    bare(backbone.model).register_forward_hook(note)
    model = AdaptedModel(backbone, {"a": make_adapter(backbone, LoRA(rank=2))})
    found = copied(backbone.model)
    CALLED.clear()
    found(**batch)
    assert CALLED == [1]
    model(**batch)
    assert CALLED == [1, 1]
