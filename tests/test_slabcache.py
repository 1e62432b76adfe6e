"""Slabs that are kept for the next batch over the same adapters: they are never those of others, and are counted."""

import gc
import weakref

import pytest
import torch
from closeness import close
from tiny import inputs_for, make_adapter, make_backbone

from graftwork import AdaptedModel, Houlsby, LoRA, VeRA
from graftwork.errors import AdapterError
from graftwork.passes import sharing


@pytest.fixture
def joins(monkeypatch):
    """How often slabs were joined."""
    made = []
    join = sharing.join
    monkeypatch.setattr(sharing, "join", lambda *args: made.append(args) or join(*args))
    return made


def make_model(*, rank=3, count=3, **options):
    backbone = make_backbone("bert")
    adapters = {f"a{i}": make_adapter(backbone, LoRA(rank=rank), trained=True, seed=i) for i in range(count)}
    return AdaptedModel(backbone, adapters, **options), adapters


def check_rows(model, batch, names):
    """Each row says what its adapter says alone."""
    with torch.no_grad():
        rows = model(**batch, adapters=names).rows
        for row, name in enumerate(names):
            close(rows[row], model(**batch, adapters=name).logits[row])


def test_the_same_adapters_in_any_order_and_number_are_joined_once(joins):
    model, _ = make_model()
    batch = inputs_for(model.model, 5, 4, 3, 5)
    for names in (["a0", "a1", "a2", "a0"], ["a2", "a1", "a1", "a0"], ["a1", "a2", "a0", "a0"]):
        check_rows(model, batch, names)
    assert len(joins) == 1
    check_rows(model, batch, ["a1", "a0", "a0", "a0"])
    assert len(joins) == 2


def test_another_adapter_under_the_same_name_has_slabs_of_its_own():
    model, _ = make_model()
    batch = inputs_for(model.model, 5, 4)
    check_rows(model, batch, ["a0", "a1"])
    with torch.no_grad():
        before = model(**batch, adapters=["a0", "a1"]).rows
    model.replace("a1", make_adapter(model.backbone, LoRA(rank=3), trained=True, seed=9))
    assert model.memory().slabs == 0
    check_rows(model, batch, ["a0", "a1"])
    with torch.no_grad():
        after = model(**batch, adapters=["a0", "a1"]).rows
    close(after[0], before[0])
    assert (after[1] - before[1]).abs().max() > 1e-3
    model.remove("a1")
    assert model.memory().slabs == 0


def test_adapters_in_training_are_joined_anew(joins):
    backbone = make_backbone("bert")
    model = AdaptedModel(backbone)
    for i in range(2):
        model.add(f"a{i}", make_adapter(backbone, LoRA(rank=2), trained=True, seed=i), trainable=True)
    batch = inputs_for(backbone.model, 5, 4)
    check_rows(model, batch, ["a0", "a1"])
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1)
    check_rows(model, batch, ["a0", "a1"])
    assert len(joins) == 2
    assert model.memory().slabs == 0


def test_slabs_are_counted_and_take_no_more_than_the_adapters_themselves():
    model, _ = make_model(count=4)
    batch = inputs_for(model.model, 5, 4)
    memory = model.memory()
    assert memory.slabs == 0
    ops = sum(t.nbytes for n, t in model.adapter("a0").tensors.items() if not n.startswith("head."))
    check_rows(model, batch, ["a0", "a1"])
    assert model.memory().slabs == 2 * ops
    assert model.memory().total == memory.total + 2 * ops
    check_rows(model, batch, ["a2", "a3"])
    assert model.memory().slabs == 4 * ops
    check_rows(model, batch, ["a1", "a3"])
    assert model.memory().slabs == 4 * ops


def test_within_a_budget_slabs_give_way_to_adapters(joins):
    free, _ = make_model()
    one = free.memory().adapters["a0"]
    free.detach()
    model, adapters = make_model(count=2, budget=4 * one)
    batch = inputs_for(model.model, 5, 4)
    check_rows(model, batch, ["a0", "a1"])
    assert 0 < model.memory().slabs <= 2 * one
    for i in range(2):
        model.add(f"b{i}", adapters[f"a{i}"])
    memory = model.memory()
    assert not memory.unloaded
    assert memory.slabs == 0
    for names in (["a0", "a1"], ["b0", "a1"], ["b0", "b1"]):
        check_rows(model, batch, names)
        assert model.memory().total <= 4 * one
    assert len(joins) == 4


def test_a_model_that_is_cast_has_slabs_in_its_precision():
    model, _ = make_model()
    batch = inputs_for(model.model, 5, 4)
    check_rows(model, batch, ["a0", "a1"])
    with torch.no_grad():
        single = model(**batch, adapters=["a0", "a1"]).rows
    model.double()
    assert model.memory().slabs == 0
    check_rows(model, batch, ["a0", "a1"])
    with torch.no_grad():
        double = model(**batch, adapters=["a0", "a1"]).last_hidden_state
    assert double.dtype == torch.float64
    close(model(**batch, adapters=["a0", "a1"]).rows[0].float(), single[0])


def test_slabs_that_were_made_in_inference_mode_serve_passes_with_gradients():
    model, _ = make_model()
    batch = inputs_for(model.model, 5, 4)
    with torch.inference_mode():
        model(**batch, adapters=["a0", "a1"])
    given = model.model.get_input_embeddings()(batch.pop("input_ids")).detach().requires_grad_()
    model(inputs_embeds=given, **batch, adapters=["a0", "a1"]).last_hidden_state.sum().backward()
    alone = model(inputs_embeds=given, **batch, adapters="a1", output_hidden_states=True)
    [own] = torch.autograd.grad(alone.hidden_states[-1][1].sum(), [given])
    close(given.grad[1], own[1])


def test_unlike_adapters_are_joined_once_too(joins):
    backbone = make_backbone("bert")
    adapters = {
        "low": make_adapter(backbone, LoRA(rank=2), trained=True),
        "rank": make_adapter(backbone, LoRA(rank=5), trained=True, seed=1),
        "wide": make_adapter(backbone, Houlsby(bottleneck=3), trained=True),
    }
    model = AdaptedModel(backbone, adapters)
    batch = inputs_for(backbone.model, 5, 4, 3)
    for names in (["low", "wide", "rank"], ["wide", "rank", "low"]):
        check_rows(model, batch, names)
    assert len(joins) == 1


@pytest.mark.parametrize("method", [LoRA, VeRA])
def test_a_dropout_of_training_does_not_keep_finished_adapters_apart(method):
    backbone = make_backbone("bert")
    adapters = [make_adapter(backbone, method(rank=4, dropout=dropout), trained=True) for dropout in (0.0, 0.3)]
    model = AdaptedModel(backbone, {f"a{i}": adapter for i, adapter in enumerate(adapters)})
    assert model.residents["a0"].layout is model.residents["a1"].layout


# Tensors that adapters have in common


def vera(backbone, seed, **settings):
    return make_adapter(backbone, VeRA(rank=16, **settings), trained=True, seed=seed)


def test_what_adapters_have_in_common_is_in_memory_once():
    backbone = make_backbone("bert")
    adapters = [vera(backbone, seed) for seed in range(3)]
    common = sum(adapters[0].tensors[name].nbytes for name in adapters[0].fixed)
    own = sum(t.nbytes for t in adapters[0].tensors.values()) - common
    model = AdaptedModel(backbone, {f"a{i}": adapter for i, adapter in enumerate(adapters)})
    batch = inputs_for(backbone.model, 5, 4, 3, 6)
    check_rows(model, batch, ["a2", "a0", "a1", "a0"])
    memory = model.memory()
    assert set(memory.adapters.values()) == {own}
    assert memory.shared == common
    assert memory.total == 3 * own + common + memory.slabs
    assert memory.slabs < 3 * own
    tensors = {op.A.tensor.data_ptr() for r in model.residents.values() for acting in r.ops().values() for op in acting}
    assert len(tensors) == 2  # of two input widths
    for i in range(3):
        assert model.memory().shared == common
        model.remove(f"a{i}")
    assert model.memory().total == 0


def test_what_nobody_has_any_more_is_let_go():
    backbone = make_backbone("bert")
    model = AdaptedModel(backbone, {f"a{i}": vera(backbone, i) for i in range(2)})
    check_rows(model, inputs_for(backbone.model, 5, 4), ["a0", "a1"])
    op = next(iter(model.residents["a0"].ops().values()))[0]
    held = weakref.ref(op.A.tensor)
    del op
    model.remove("a0")
    gc.collect()
    assert held() is not None
    model.remove("a1")
    gc.collect()
    assert held() is None


def test_adapters_with_other_matrices_share_a_batch():
    backbone = make_backbone("bert")
    model = AdaptedModel(
        backbone,
        {
            "a": vera(backbone, 0),
            "b": vera(backbone, 1, projection_seed=1),
            "c": vera(backbone, 2),
            "low": make_adapter(backbone, LoRA(rank=2), trained=True),
        },
    )
    batch = inputs_for(backbone.model, 5, 4, 3, 6)
    check_rows(model, batch, ["c", "b", "a", "low"])
    check_rows(model, batch, ["b", "b", "low", "c"])


def test_a_budget_counts_what_is_in_common_once():
    backbone = make_backbone("bert")
    adapters = [vera(backbone, seed) for seed in range(3)]
    model = AdaptedModel(backbone, {"a": adapters[0]})
    memory = model.memory()
    model.detach()
    model = AdaptedModel(backbone, budget=2 * memory.adapters["a"] + memory.shared)
    for i, adapter in enumerate(adapters):
        model.add(f"a{i}", adapter)
    assert model.memory().unloaded == ("a0",)
    check_rows(model, inputs_for(backbone.model, 5, 4), ["a0", "a1"])
    assert model.memory().total <= model.residents.budget
    with pytest.raises(AdapterError, match="3 adapters of one pass"):
        model(**inputs_for(backbone.model, 5, 4, 3), adapters=["a0", "a1", "a2"])


def test_what_a_method_never_trains_is_held_once_in_the_memory_of_the_processor_too():
    backbone = make_backbone("bert")
    given = [vera(backbone, seed) for seed in range(2)]
    model = AdaptedModel(backbone, {f"a{i}": adapter for i, adapter in enumerate(given)})
    one, two = (model.residents[name].tensors() for name in ("a0", "a1"))
    for name, tensor in one.items():
        assert (tensor.data_ptr() == two[name].data_ptr()) == (name in given[0].fixed)
        assert tensor.data_ptr() != given[0].tensors[name].data_ptr()
    for name in given[0].fixed:
        given[0].tensors[name].zero_()
    assert one["shared.A.32"].any()
