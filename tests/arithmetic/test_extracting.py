"""LoRA out of what a larger adapter or a fine-tuned model changes."""

import copy
import json

import pytest
import torch
from cli.conftest import graftwork
from closeness import PASS, close
from tiny import make_adapter, make_backbone, make_batch, make_config, make_tokenizer, randomised
from transformers import (
    AutoModelForCausalLM,
    AutoModelForImageClassification,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    DistilBertForSequenceClassification,
)

from graftwork import AdaptedModel, Adapter, Backbone, DoRA, FullFineTuning, HeadOnly, Houlsby, LoRA, Task
from graftwork.arithmetic import extract_lora, finetuned_adapter, save_finetuned
from graftwork.arithmetic.adapters.differences import weights_of
from graftwork.errors import AdapterError, MethodError, OutputError, RecipeError

__all__ = ["graftwork"]


@pytest.fixture(scope="module")
def backbone():
    return make_backbone()


@pytest.fixture(scope="module")
def full(backbone):
    return make_adapter(backbone, FullFineTuning(), trained=True, pooling="pooler")


def test_of_full_rank_nothing_is_lost_but_embeddings(backbone, full):
    found = extract_lora(full, backbone, 32)
    own, made = weights_of(full, backbone), weights_of(found.adapter, backbone)
    assert {one.name for one in found.left_out} == {
        name for name in own if name.startswith("embeddings.") and "norm" not in name
    }
    for one in found.tensors:
        if one.how != "left out":
            close(made[one.name], own[one.name], 64, what=one.name)
            assert one.kept == pytest.approx(1.0, abs=1e-6)
    squared = {name: float(t.square().sum()) for name, t in own.items()}
    left = sum(squared[one.name] for one in found.left_out)
    assert found.kept == pytest.approx(1 - left / sum(squared.values()), abs=1e-5)


@pytest.mark.parametrize("rank", [1, 4])
def test_each_product_is_the_best_of_its_rank(backbone, full, rank):
    found = extract_lora(full, backbone, rank, rest="drop")
    assert found.adapter.method.name == "lora"
    own, made = weights_of(full, backbone), weights_of(found.adapter, backbone)
    assert made.keys() == {one.name for one in found.tensors if one.how == "low rank"}
    for one in found.tensors:
        if one.how == "low rank":
            u, s, vh = torch.linalg.svd(own[one.name].double(), full_matrices=False)
            close(made[one.name], ((u[:, :rank] * s[:rank]) @ vh[:rank]).float(), 64, scale=float(s[0]), what=one.name)
            assert one.kept == pytest.approx(float(s[:rank].square().sum() / s.square().sum()), abs=1e-6)
            assert one.relative == pytest.approx(float(s.norm() / backbone.weights[one.name].norm()), rel=1e-5)


def test_a_smaller_lora_is_extracted_from_a_larger_one(backbone):
    own = make_adapter(backbone, LoRA(rank=5, alpha=3), trained=True)
    close_to = extract_lora(own, backbone, 5)
    assert close_to.kept == pytest.approx(1.0)
    made, there = weights_of(close_to.adapter, backbone), weights_of(own, backbone)
    for name, tensor in there.items():
        close(made[name], tensor, 64, what=name)
    smaller = extract_lora(own, backbone, 2)
    assert smaller.adapter.method.rank == 2
    assert 0.2 < smaller.kept < 1.0


def test_targets_say_which_maps_are_adapted(backbone):
    own = make_adapter(backbone, DoRA(rank=3), trained=True)
    found = extract_lora(own, backbone, 2, targets=["query", "value"], rest="drop")
    assert {site.rpartition(".")[2] for site in found.adapter.sites} == {"query", "value"}
    assert {one.how for one in found.tensors} == {"low rank", "left out"}


def test_what_changes_no_weights_is_refused(backbone):
    for method in (Houlsby(bottleneck=3), HeadOnly()):
        with pytest.raises(MethodError, match=f"no LoRA can be extracted from an adapter of method '{method.name}'"):
            extract_lora(make_adapter(backbone, method), backbone, 2)
    with pytest.raises(MethodError, match="changes no linear map that the targets name"):
        extract_lora(make_adapter(backbone, LoRA(targets="query"), trained=True), backbone, 2, targets=["value"])
    with pytest.raises(RecipeError, match="rank is 0"):
        extract_lora(make_adapter(backbone, LoRA()), backbone, 0)


# -- fine-tuned models -------------------------------------------------------------------------------------------------

MODELS = {
    "bert": (AutoModelForSequenceClassification, {"num_labels": 3}),
    "roberta": (AutoModelForSequenceClassification, {"num_labels": 3}),
    "gpt2": (AutoModelForSequenceClassification, {"num_labels": 3, "pad_token_id": 0}),
    "llama": (AutoModelForSequenceClassification, {"num_labels": 1, "pad_token_id": 0}),
    "distilbert": (AutoModelForTokenClassification, {"num_labels": 4}),
}


def tuned(kind, folder, **fields):
    """A backbone's folder, and that of a model with a task head that was tuned from it."""
    auto, own = MODELS[kind]
    torch.manual_seed(0)
    config = make_config(kind, **own, **fields)
    if config.num_labels > 1:
        config.id2label = dict(enumerate("abcd"[: config.num_labels]))
    model = randomised(auto.from_config(config)).eval()
    model.base_model.save_pretrained(folder / "base")
    make_tokenizer().save_pretrained(folder / "base")
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.02)
    model.save_pretrained(folder / "tuned")
    return model, Backbone.load(str(folder / "base"), dtype="float32")


@pytest.mark.parametrize("kind", MODELS)
def test_a_fine_tuned_model_is_an_adapter_that_says_the_same(kind, tmp_path):
    model, backbone = tuned(kind, tmp_path)
    adapter = finetuned_adapter(tmp_path / "tuned", backbone)
    assert adapter.task.name == "tuned"
    batch = make_batch(7, 4, 5)
    adapted = AdaptedModel(backbone, {"t": adapter})
    with torch.no_grad():
        expected = model(**batch).logits
        found = adapted(**batch, adapters="t").logits
    adapted.detach()
    real = batch["attention_mask"].bool() if expected.dim() == 3 else slice(None)
    close(found[real], expected[real], PASS)


def test_a_model_with_statistics_of_its_own_is_refused(tmp_path):
    model = randomised(AutoModelForImageClassification.from_config(make_config("resnet", num_labels=3))).eval()
    model.save_pretrained(tmp_path / "same")
    backbone = Backbone(copy.deepcopy(model.base_model), name="base")
    assert finetuned_adapter(tmp_path / "same", backbone).kind == "image-classification"
    next(buffer for name, buffer in model.named_buffers() if name.endswith("running_mean")).add_(1.0)
    model.save_pretrained(tmp_path / "tuned")
    with pytest.raises(AdapterError, match=r"has a buffer of its own, .*running_mean, which no adapter can have"):
        finetuned_adapter(tmp_path / "tuned", backbone)


def test_a_generative_model_is_an_adapter_too(tmp_path):
    torch.manual_seed(0)
    model = randomised(AutoModelForCausalLM.from_config(make_config("llama"))).eval()
    model.save_pretrained(tmp_path / "base")
    make_tokenizer().save_pretrained(tmp_path / "base")
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.02)
    model.save_pretrained(tmp_path / "tuned")
    backbone = Backbone.load(str(tmp_path / "base"), dtype="float32")
    adapter = finetuned_adapter(tmp_path / "tuned", backbone)
    assert adapter.kind == "generation"
    batch = make_batch(7, 4)
    adapted = AdaptedModel(backbone, {"t": adapter})
    with torch.no_grad():
        close(
            adapted(**batch, adapters="t").logits[batch["attention_mask"] == 1],
            model(**batch).logits[batch["attention_mask"] == 1],
            PASS,
        )
    adapted.detach()


def test_other_heads_and_other_backbones_are_refused(tmp_path):
    _, backbone = tuned("bert", tmp_path / "one")
    tuned("bert", tmp_path / "two", vocab_size=90)
    with pytest.raises(AdapterError, match=r"is no fine-tuned .*word.weight is \(90, 32\) instead of \(100, 32\)"):
        finetuned_adapter(tmp_path / "two" / "tuned", backbone)
    DistilBertForSequenceClassification(make_config("distilbert")).save_pretrained(tmp_path / "three")
    with pytest.raises(AdapterError, match="is a DistilBertForSequenceClassification, whose head no adapter can have"):
        finetuned_adapter(tmp_path / "three", backbone)


def test_the_command_extracts_from_a_model_and_from_an_adapter(graftwork, tmp_path):
    _, backbone = tuned("bert", tmp_path)
    ran = graftwork("extract", tmp_path / "tuned", "--output", tmp_path / "lora", "--rank", 8, "--quiet")
    assert (ran.status, "--backbone" in ran.err) == (2, True)
    arguments = ["--backbone", tmp_path / "base", "--output", tmp_path / "lora", "--rank", 8, "--quiet"]
    ran = graftwork("extract", tmp_path / "tuned", *arguments)
    assert (ran.status, ran.err) == (0, "")
    assert "left out" in ran.out
    assert "embeddings.word.weight" in ran.out
    made = Adapter.load(tmp_path / "lora")
    assert [method.name for method in made.method.methods] == ["lora", "layer-norm-tuning", "bitfit"]
    made.check(backbone)
    ran = graftwork("extract", tmp_path / "lora", "--output", tmp_path / "smaller", "--rank", 2, "--quiet", "--json")
    assert ran.status == 0
    said = json.loads(ran.out)
    assert said["rank"] == 2
    assert 0 < said["kept"] < 1
    assert graftwork("extract", tmp_path / "lora", "--output", tmp_path / "no", "--pairs").status == 2
    assert graftwork("extract", tmp_path / "lora", "--output", tmp_path / "smaller").status == 2


@pytest.mark.parametrize("kind", ["bert", "gpt2", "roberta"])
def test_an_adapter_that_changes_weights_is_written_as_a_model(kind, tmp_path):
    model, backbone = tuned(kind, tmp_path)
    adapter = finetuned_adapter(tmp_path / "tuned", backbone)
    save_finetuned(adapter, backbone, tmp_path / "tuned", tmp_path / "again")
    again = type(model).from_pretrained(tmp_path / "again")
    for name, tensor in model.state_dict().items():
        close(again.state_dict()[name], tensor, 4, what=name)
    small = make_adapter(backbone, LoRA(rank=2), num_labels=2)
    with pytest.raises(AdapterError, match="has another head than the adapter"):
        save_finetuned(small, backbone, tmp_path / "tuned", tmp_path / "other")
    with pytest.raises(OutputError, match="exists already"):
        save_finetuned(adapter, backbone, tmp_path / "tuned", tmp_path / "again")


def test_a_task_says_what_the_labels_of_a_model_are(tmp_path):
    model, backbone = tuned("bert", tmp_path)
    model.config.id2label = {i: f"LABEL_{i}" for i in range(3)}
    model.save_pretrained(tmp_path / "unnamed")
    task = Task(name="t", text="text", labels=("x", "y", "z"))
    assert finetuned_adapter(tmp_path / "unnamed", backbone, task=task).task.labels == ("x", "y", "z")
    with pytest.raises(AdapterError, match=r"has the labels a, b, c, and task 't' has x, y, z"):
        finetuned_adapter(tmp_path / "tuned", backbone, task=task)
    with pytest.raises(AdapterError, match="has a head for classification, and task 'n' is regression"):
        finetuned_adapter(tmp_path / "tuned", backbone, task=Task(name="n", text="text", kind="regression"))
