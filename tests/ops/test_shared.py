"""Tensors that many ops and adapters have in common: known by their contents, in memory once, and only while used."""

import gc
import threading

import pytest
import torch
from closeness import close
from tiny import inputs_for, make_adapter, make_backbone

from graftwork import AdaptedModel, VeRA
from graftwork.methods import METHODS
from graftwork.ops import Gated, Shared, SharedLowRank, shared, slabs

CPU = torch.device("cpu")


def numbers(seed=0):
    return torch.randn(3, 4, generator=torch.Generator().manual_seed(seed))


def vera(backbone, seed=0, **settings):
    return make_adapter(backbone, VeRA(rank=4, **settings), trained=True, seed=seed)


def test_equal_numbers_are_one_tensor_that_nobody_else_can_write_to():
    given = numbers()
    one, two = (Shared(t).pooled(torch.float32, CPU) for t in (given, given.clone()))
    assert one == two
    assert one.tensor is two.tensor is not given
    given.zero_()
    assert one.tensor.any()
    assert Shared(given) != one
    assert Shared(numbers()).pooled(torch.bfloat16, CPU).tensor is not one.tensor


def test_what_is_pooled_in_another_precision_is_cast_once_and_held_once():
    given = numbers()
    before = len(shared._CASTS)
    found = Shared(given).pooled(torch.bfloat16, CPU)
    assert found.tensor.dtype == torch.bfloat16
    assert len(shared._CASTS) == before
    assert Shared(given.double()).pooled(torch.bfloat16, CPU).tensor is found.tensor


def test_many_threads_that_ask_at_once_get_one_tensor():
    given = [numbers(7).clone() for _ in range(16)]
    found, ready = [], threading.Barrier(16)

    def ask(tensor):
        ready.wait()
        found.append(Shared(tensor).pooled(torch.float32, CPU).tensor)

    threads = [threading.Thread(target=ask, args=(tensor,)) for tensor in given]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({id(tensor) for tensor in found}) == 1


def test_a_tensor_that_was_written_to_is_another_one():
    given = numbers()
    before = Shared(given)
    key, cast = before.key, before.to(torch.bfloat16)
    with torch.no_grad():
        given.add_(1)
    after = Shared(given)
    assert after.key != key
    close(after.to(torch.bfloat16).tensor.float(), given, precision=torch.bfloat16)
    assert not torch.equal(after.to(torch.bfloat16).tensor, cast.tensor)


def test_training_goes_on_after_a_prediction():
    backbone = make_backbone("bert", dtype=torch.bfloat16)
    model = AdaptedModel(backbone)
    model.add("a", vera(backbone), trainable=True)
    batch = inputs_for(backbone.model, 5, 4)
    with torch.inference_mode():
        model(**batch, adapters="a")
    model.train()
    model(**batch, adapters="a").logits.sum().backward()
    assert any(p.grad is not None and p.grad.any() for p in model.parameters())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_an_adapter_that_was_added_in_inference_mode_serves_passes_with_gradients(dtype):
    backbone = make_backbone("bert", dtype=dtype)
    model = AdaptedModel(backbone)
    with torch.inference_mode():
        model.add("a", vera(backbone, projection_seed=5))
    batch = inputs_for(backbone.model, 5, 4)
    given = backbone.model.get_input_embeddings()(batch.pop("input_ids")).detach().requires_grad_()
    model(inputs_embeds=given, **batch, adapters="a").logits.sum().backward()
    assert given.grad.any()


def test_adapters_that_cannot_share_a_pass_share_their_tensors():
    backbone = make_backbone("deberta-v2")
    model = AdaptedModel(backbone, {f"a{i}": vera(backbone, seed=i) for i in range(2)})
    one, two = (model.residents[f"a{i}"] for i in range(2))
    assert not one.routed
    tensors = [{id(s.tensor) for acting in r.ops().values() for op in acting for s in op.shared()} for r in (one, two)]
    assert tensors[0] == tensors[1]


def test_what_is_in_common_is_counted_once_whatever_the_precision_was():
    backbone = make_backbone("bert")
    model = AdaptedModel(backbone, {"a": vera(backbone)})
    once = model.memory().shared
    model.double()
    model.add("b", vera(backbone, seed=1))
    batch = inputs_for(backbone.model, 5, 4)
    model(**batch, adapters=["a", "b"])
    assert model.memory().shared == 2 * once


def test_a_layout_is_forgotten_with_its_last_adapter():
    backbone = make_backbone("bert")
    gc.collect()
    before = len(slabs._LAYOUTS)
    model = AdaptedModel(backbone, {f"a{i}": vera(backbone, projection_seed=30 + i) for i in range(3)})
    assert len(slabs._LAYOUTS) == before + 3
    for i in range(3):
        model.remove(f"a{i}")
    gc.collect()
    assert len(slabs._LAYOUTS) == before


def test_a_gate_around_it_has_the_precision_that_is_asked_for():
    op = SharedLowRank(A=Shared(numbers()), B=Shared(numbers(1).T), d=torch.ones(3), b=torch.ones(4))
    gate = Gated(ops=(op,), weight=torch.ones(1, 4), bias=torch.ones(1)).to(torch.bfloat16)
    assert {tensor.dtype for tensor in gate.numbers()} == {torch.bfloat16}


def test_sites_with_one_input_have_one_product(monkeypatch):
    backbone = make_backbone("bert")
    model = AdaptedModel(backbone, {"a": vera(backbone)})
    batch = inputs_for(backbone.model, 5)
    calls = []
    linear = torch.nn.functional.linear

    def counted(x, weight, bias=None):
        calls.append(weight)
        return linear(x, weight, bias)

    monkeypatch.setattr("graftwork.ops.sharedlowrank.F.linear", counted)
    model(**batch, adapters="a")
    ops = [op for acting in model.residents["a"].ops().values() for op in acting]
    down = {id(op.A.tensor) for op in ops}
    layers = backbone.sites.num_layers
    # Of query, key and value one; and those of the attention's output and of the two of the feed-forward.
    assert sum(id(weight) in down for weight in calls) == 4 * layers
    assert not model.graft.running.memory


def test_layers_that_are_recomputed_have_the_gradients_of_others():
    backbone = make_backbone("t5")
    targets = (
        "encoder.layers.*.query",
        "decoder.layers.*.cross_attention.key",
        "decoder.layers.*.cross_attention.value",
    )
    adapter = make_adapter(backbone, METHODS["vera"](rank=4, targets=targets), trained=True)
    batch = inputs_for(backbone.model, 5, 4)
    found = []
    for recompute in (False, True):
        model = AdaptedModel(backbone)
        model.add("a", adapter, trainable=True)
        if recompute:
            model.gradient_checkpointing_enable()
        model.train()
        model(**batch, adapters="a").logits.float().square().sum().backward()
        found.append({name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None})
        model.detach()
    assert found[0].keys() == found[1].keys()
    for name, own in found[0].items():
        close(found[1][name], own, 64, scale=float(own.abs().max()) or 1.0)
