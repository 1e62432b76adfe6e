"""What is changed inside a pass, beside one, or behind the model's back: every pass ends as it began, or is refused."""

import copy
import gc
import pickle
import threading

import pytest
import torch
from tiny import batch_for, make_adapter, make_backbone

from graftwork.adapters import Adapter
from graftwork.backbones import Backbone
from graftwork.errors import AdapterError, BackboneError, SiteError
from graftwork.grafting.site import SiteModule
from graftwork.methods import FullFineTuning, HeadOnly, Houlsby, LoRA
from graftwork.model import AdaptedModel
from graftwork.passes.starts import LayerStart

LORA = LoRA(rank=2)


def adapted(*methods, kind="bert", head=False, **options):
    backbone = make_backbone(kind, tokenizer=True, head=head)
    names = "abcdefgh"
    adapters = {
        name: make_adapter(backbone, method, trained=True) for name, method in zip(names, methods, strict=False)
    }
    return AdaptedModel(backbone, adapters, **options)


def site_modules(backbone):
    return [module for module in backbone.model.modules() if isinstance(module, SiteModule)]


def is_checkpointed(backbone):
    return any(getattr(module, "gradient_checkpointing", False) for module in backbone.model.modules())


# Inside a pass


CHANGES = {
    "merge": lambda model: model.merge("b"),
    "unmerge": lambda model: model.unmerge(),
    "copy": copy.deepcopy,
    "other pass": lambda model: model.logits(["good film"], "b"),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_what_a_hook_does_to_the_model_leaves_the_pass_as_it_is(change):
    model = adapted(LORA, LORA)
    batch = batch_for(model.backbone, 5, 3)
    with torch.no_grad():
        expected = model(**batch, adapters="a").logits
        seen = []
        embeddings = model.backbone.base.embeddings

        def change_once(*_):
            if not seen:
                seen.append(1)
                change(model)

        hook = embeddings.register_forward_hook(change_once)
        found = model(**batch, adapters="a").logits
        hook.remove()
        assert seen
        assert torch.equal(found, expected)
        if model.merged:
            own = AdaptedModel(copy.deepcopy(make_backbone("bert", tokenizer=True)), {"b": model.adapter("b")})
            own.merge("b")
            assert torch.equal(
                model.backbone.model(**batch).last_hidden_state, own.backbone.model(**batch).last_hidden_state
            )
            model.unmerge()
        assert torch.equal(model(**batch, adapters="a").logits, expected)


def test_a_hook_cannot_detach():
    model = adapted(LORA)
    batch = batch_for(model.backbone, 5, 3)
    hook = model.backbone.base.embeddings.register_forward_hook(lambda *_: model.detach() and None)
    with torch.no_grad(), pytest.raises(SiteError, match=r"inside a forward pass(.|\n)*outside of forward passes"):
        model(**batch)
    hook.remove()
    assert list(model.residents) == ["a"]
    with torch.no_grad():
        model(**batch)
    model.detach()
    assert not site_modules(model.backbone)


# Who has the backbone


def test_predictions_hold_the_model_that_they_are_of():
    expected = adapted(Houlsby(bottleneck=3)).logits(["good film"], "a")
    inference = adapted(Houlsby(bottleneck=3)).inference("a")
    gc.collect()
    assert torch.equal(inference.logits(["good film"], "a", batch_size=1), expected)


@pytest.mark.parametrize("method", [LORA, HeadOnly()], ids=["lora", "head-only"])
@pytest.mark.parametrize("merged", [False, True])
def test_predictions_end_with_the_hold_on_the_backbone(method, merged):
    model = adapted(method)
    if merged:
        model.merge("a")
    inference = model.inference("a")
    model.detach()
    other = AdaptedModel(model.backbone, {"x": make_adapter(model.backbone, LORA, trained=True)})
    with pytest.raises(BackboneError, match="no longer uses"):
        inference.logits(["good film"], "a", batch_size=1)
    for refused in (lambda: model.beginning(LayerStart(model.backbone, 1)).__enter__(), lambda: model.logits([], "a")):
        with pytest.raises(BackboneError, match="no longer uses"):
            refused()
    other.detach()
    assert not site_modules(other.backbone)


def test_what_is_generated_ends_with_the_hold_on_the_backbone():
    model = adapted(LORA, kind="gpt2", head=True)
    model.merge("a")
    steps = []

    def detach_at_the_third(*_):
        steps.append(1)
        if len(steps) == 3:
            thread = threading.Thread(target=model.detach)
            thread.start()
            waiting.append(thread)

    waiting = []
    hook = model.backbone.base.h[0].mlp.register_forward_hook(detach_at_the_third)
    with pytest.raises(BackboneError, match="no longer uses"):
        model.generate(torch.tensor([[5, 6, 7]]), max_new_tokens=50, do_sample=False, eos_token_id=None)
    hook.remove()
    waiting[0].join()


def test_an_adapter_added_beside_a_detach_is_refused(monkeypatch):
    model = adapted()
    adapter = make_adapter(model.backbone, LORA)
    made, go = threading.Event(), threading.Event()
    room = model.residents.room

    def slow(*args, **options):
        made.set()
        go.wait()
        return room(*args, **options)

    monkeypatch.setattr(model.residents, "room", slow)
    errors = []

    def add():
        try:
            model.add("a", adapter)
        except BackboneError as error:
            errors.append(error)

    thread = threading.Thread(target=add)
    thread.start()
    made.wait()
    backbone = model.detach()
    go.set()
    thread.join()
    assert errors
    assert not site_modules(backbone)
    assert not list(model.residents)
    AdaptedModel(backbone, {"b": adapter}).detach()


def test_a_refused_adapter_leaves_the_backbone_to_others(tmp_path):
    model = adapted()
    backbone = model.detach()
    with pytest.raises(AdapterError):
        model.add("a", tmp_path / "gone")
    other = AdaptedModel(backbone)
    with pytest.raises(BackboneError):
        model.add("a", make_adapter(backbone, LORA))
    other.detach()
    model.add("a", make_adapter(backbone, LORA))


def test_a_refused_adapter_takes_none_off_that_came_meanwhile(monkeypatch):
    """Of two threads that add to a model that was detached, the one that fails leaves what the other has added."""
    model = adapted()
    good = make_adapter(model.backbone, LORA)
    model.detach()
    load = Adapter.load

    def slow(folder):
        model.add("b", good)  # as another thread would, after the first one has taken the backbone
        return load(folder)

    monkeypatch.setattr("graftwork.adapters.Adapter.load", slow)
    with pytest.raises(AdapterError):
        model.add("a", "gone")
    assert list(model.residents) == ["b"]
    assert len(model.predict(["good film"])) == 1


def test_one_model_is_no_two_backbones():
    """The model's modules are what is taken, whatever is around them."""
    first = make_backbone("bert", tokenizer=True)
    second = Backbone(first.model, first.tokenizer)
    model = AdaptedModel(first, {"a": make_adapter(first, LORA)})
    with pytest.raises(BackboneError, match="in use by another AdaptedModel"):
        AdaptedModel(second)
    with pytest.raises(BackboneError, match="in use by an AdaptedModel"):
        Backbone(first.model)
    model.detach()
    AdaptedModel(second).detach()


# Behind the model's back


def test_dropout_acts_in_no_prediction_whatever_mode_the_backbone_is_in():
    model = adapted(LORA)
    expected = model.logits(["good film"], "a")
    model.backbone.model.train()
    assert torch.equal(model.logits(["good film"], "a"), expected)


def test_weights_are_not_loaded_over_merged_ones():
    model = adapted(LORA)
    weights = {name: tensor.clone() for name, tensor in model.backbone.model.state_dict().items()}
    model.merge("a")
    with pytest.raises(SiteError, match="unmerge"):
        model.backbone.model.load_state_dict(weights)
    model.unmerge()
    model.backbone.model.load_state_dict(weights)


def test_a_cast_reaches_the_weights_behind_merged_ones():
    model = adapted(LORA)
    model.merge("a")
    model.backbone.model.to(torch.bfloat16)
    model.unmerge()
    assert {parameter.dtype for parameter in model.backbone.model.parameters()} == {torch.bfloat16}
    assert len(model.predict(["good film"])) == 1


def test_a_move_that_fails_leaves_what_is_merged():
    model = adapted(LORA)
    model.merge("a")
    expected = model.logits(["good film"], "a")

    def fail(tensor):
        raise RuntimeError("no room on the device")

    with pytest.raises(RuntimeError, match="no room"):
        model._apply(fail)
    assert model.merged == "a"
    assert torch.equal(model.logits(["good film"], "a"), expected)


def test_weights_that_were_written_to_have_another_fingerprint():
    model = adapted(LORA)
    backbone = model.detach()
    before, digest = backbone.fingerprint, backbone.digest_of_weights()
    assert (copy.deepcopy(backbone).fingerprint, copy.deepcopy(backbone).digest_of_weights()) == (before, digest)
    weights = backbone.model.state_dict()
    weights["embeddings.word_embeddings.weight"] = weights["embeddings.word_embeddings.weight"] + 1
    backbone.model.load_state_dict(weights)
    assert backbone.fingerprint != before
    assert backbone.digest_of_weights() != digest


def test_precisions_have_states_of_their_own():
    """Weights that were rounded once are not what they were, when they are cast back."""
    backbone = make_backbone("bert")
    before, digest = backbone.fingerprint, backbone.digest_of_weights()
    backbone.model.to(torch.bfloat16).to(torch.float32)
    assert backbone.fingerprint == before
    assert backbone.digest_of_weights() != digest


@pytest.mark.parametrize("size", [0, 1 << 40])
def test_an_adapter_is_what_its_file_was_when_it_was_read(size, tmp_path, monkeypatch):
    """Large files are mapped into memory, and a file can be written to where it is."""
    monkeypatch.setattr("graftwork.adapters.tensorfile.SMALL", size)
    backbone = make_backbone("bert", tokenizer=True)
    make_adapter(backbone, LORA, trained=True).save(tmp_path / "a")
    make_adapter(backbone, LORA).save(tmp_path / "b")
    model = AdaptedModel(backbone, {"a": tmp_path / "a"})
    expected = model.adapter("a").tensors["head.classifier.weight"].clone()
    content = (tmp_path / "b" / "adapter.safetensors").read_bytes()
    with (tmp_path / "a" / "adapter.safetensors").open("r+b") as file:
        file.write(content)
    assert torch.equal(model.adapter("a").tensors["head.classifier.weight"], expected)


# Recomputed layers


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
def test_a_copy_is_checkpointed_as_the_model_is(copied):
    model = adapted()
    model.add("a", make_adapter(model.backbone, LORA, trained=True), trainable=True)
    model.train()
    model.activation_checkpointing_enable()
    batch, labels = batch_for(model.backbone, 5, 3), torch.tensor([0, 1])
    other = copied(model)
    gradients = []
    for each in (model, other):
        each(**batch, labels=labels).loss.backward()
        gradients.append([parameter.grad for parameter in each.in_training("a").parameters()])
    for one, another in zip(*gradients, strict=True):
        assert torch.equal(one, another)
    assert is_checkpointed(other.backbone)


def test_a_backbone_whose_layers_are_recomputed_already():
    """What acts on a layer acts in its recomputation, whoever asked for that."""
    gradients = []
    for checkpointed in (False, True):
        backbone = make_backbone("bert", tokenizer=True)
        if checkpointed:
            backbone.model.activation_checkpointing_enable({"use_reentrant": False})
        model = AdaptedModel(backbone)
        model.add("a", make_adapter(backbone, LORA, trained=True), trainable=True)
        model.train()(**batch_for(backbone, 5, 3), labels=torch.tensor([0, 1])).loss.backward()
        gradients.append([parameter.grad.clone() for parameter in model.in_training("a").parameters()])
        model.detach()
        assert is_checkpointed(backbone) == checkpointed
    for one, another in zip(*gradients, strict=True):
        assert torch.equal(one, another)


def test_a_backbone_that_cannot_recompute_its_layers():
    model = AdaptedModel(make_backbone("resnet"))
    with pytest.raises(BackboneError, match=r"cannot recompute(.|\n)*--train\.gradient_checkpointing"):
        model.activation_checkpointing_enable()


# Names


def test_labels_and_counts_by_the_name_of_no_row():
    model = adapted(LORA, LORA)
    batch, labels = batch_for(model.backbone, 5, 3), torch.tensor([0, 1])
    with pytest.raises(AdapterError, match=r"labels are given for zzz(.|\n)*a, b"):
        model(**batch, adapters=["a", "b"], labels={"zzz": labels})
    with pytest.raises(AdapterError, match=r"num_items_in_batch are given for labels"):
        model(**batch, adapters=["a", "b"], labels=labels, num_items_in_batch={"labels": torch.tensor(9)})
    with pytest.raises(AdapterError, match=r"labels are given for b"):
        model(**batch, adapters="a", labels={"b": labels})


# Memory


@pytest.fixture(scope="module")
def size():
    model = adapted(LORA)
    return model.memory().total


def test_room_is_never_waited_for_with_the_graft_held(size):
    """Two threads predict and a third keeps states, where there is room for one adapter."""
    model = adapted(LORA, LORA, HeadOnly(), budget=int(1.5 * size))
    batch = batch_for(model.backbone, 5, 3)
    failed = []

    def predict(name):
        try:
            for _ in range(30):
                model.logits(["good film"], name)
        except BaseException as error:
            failed.append(error)

    with model.beginning(LayerStart(model.backbone, 1)):
        threads = [threading.Thread(target=predict, args=(name,), daemon=True) for name in "ab"]
        for thread in threads:
            thread.start()
        for _ in range(30):
            cached = model.states_to_cache("a", **batch)
            with torch.no_grad():
                model(
                    attention_mask=batch["attention_mask"],
                    input_ids=batch["input_ids"],
                    cached_states=cached,
                    adapters="c",
                )
        for thread in threads:
            thread.join(30)
    assert not failed
    assert not any(thread.is_alive() for thread in threads)


def test_a_budget_holds_after_a_cast(size):
    model = adapted(LORA, LORA, budget=2 * size)
    model.to(torch.bfloat16)
    model.logits(["good film"], "a")
    model.to(torch.float32)
    model.predict(["good film", "bad film"], ["a", "b"])
    assert model.memory().total <= 2 * size


def test_what_nobody_uses_and_no_name_stands_for_is_unloaded(size):
    model = adapted(LORA, budget=10 * size)
    inference = model.inference("a")
    old = model.residents["a"]
    model.replace("a", make_adapter(model.backbone, Houlsby(bottleneck=2)))
    assert not old.loaded
    assert inference.logits(["good film"], "a", batch_size=1).shape == (1, 3)
    assert not old.loaded


def test_a_budget_gives_versions_tensors_of_their_own(size):
    backbone = make_backbone("bert", tokenizer=True)
    adapter = make_adapter(backbone, FullFineTuning(), trained=True)
    model = AdaptedModel(backbone, {"a": adapter}, budget=10**9)
    expected = model.logits(["good film"], "a")
    for tensor in adapter.tensors.values():
        tensor.add_(1)
    assert torch.equal(model.logits(["good film"], "a"), expected)


def test_an_adapter_is_pinned_until_it_is_said_otherwise(size):
    backbone = make_backbone("bert", tokenizer=True)
    model = AdaptedModel(backbone, budget=10**6)
    adapter = make_adapter(backbone, LORA)
    model.add("a", adapter, pinned=True)
    model.replace("a", adapter)
    assert model.residents.pinned("a")
    model.replace("a", adapter, pinned=False)
    assert not model.residents.pinned("a")
    model.add("t", adapter, trainable=True)
    model.replace("t", adapter)
    assert not model.residents.pinned("t")
