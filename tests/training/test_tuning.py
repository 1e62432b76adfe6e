"""`tune`: what is learned, what is written, what is kept, and what is left as it was."""

import json
from dataclasses import replace

import pytest
import torch
from tiny import SAMPLES
from training.workbench import FAST, contents, names_in

from graftwork import AdaptedModel, Adapter, HeadOnly, Houlsby, LoRA, Task, evaluate, tune
from graftwork.adapters import TaskIdentity
from graftwork.errors import OutputError, RecipeError
from graftwork.heads import PooledHead
from graftwork.methods import METHODS, AdaMix, FeatureExtraction
from graftwork.tasks import load
from graftwork.training import Recipe, TrainingSettings, tune_recipe
from graftwork.training.planning import count, trained_for
from graftwork.training.sampling import Shuffled
from graftwork.training.trainer import AdapterTrainer

LORA = LoRA(rank=4)


@pytest.fixture
def classes(data):
    return Task(name="classes", text="text", data=str(data["classes"]), test_fraction=0.1)


def rows_of_log(folder):
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


def scorings(folder):
    return [row for row in rows_of_log(folder) if "eval_loss" in row]


# What is learned


def test_classification_is_learned_and_saved(backbone, classes, tmp_path):
    adapter = tune(backbone, task=classes, method=LORA, output=tmp_path / "a", **FAST)
    assert adapter.metrics["validation"]["accuracy"] == 1.0
    assert adapter.metrics["test"]["accuracy"] == 1.0
    assert adapter.task.labels == ("negative", "positive")
    assert names_in(tmp_path) == ["a"], "nothing is left beside the output"
    assert names_in(tmp_path / "a") == ["README.md", "adapter.json", "adapter.safetensors", "log.jsonl", "recipe.yaml"]
    loaded = Adapter.load(tmp_path / "a")
    assert loaded.tensors.keys() == adapter.tensors.keys()
    assert all(torch.equal(loaded.tensors[name], adapter.tensors[name]) for name in adapter.tensors)
    assert replace(loaded, tensors={}) == replace(adapter, tensors={})
    model = AdaptedModel(backbone, {"c": loaded})
    try:
        assert [found.label for found in model.predict(["one good two", "bad ten"])] == ["positive", "negative"]
    finally:
        model.detach()


def test_pairs_are_learned(backbone, data):
    task = Task(name="pairs", text="first", text_pair="second", data=str(data["pairs"]))
    adapter = tune(backbone, task=task, method=LORA, **FAST)
    assert adapter.metrics["validation"]["accuracy"] > 0.9
    assert adapter.task.pairs
    assert adapter.task.labels == ("is bad", "is good")


def test_regression_is_learned(backbone, data):
    task = Task(name="numbers", kind="regression", text="text", data=str(data["numbers"]))
    adapter = tune(backbone, task=task, method=LORA, **{**FAST, "num_train_epochs": 6})
    assert adapter.metrics["validation"]["pearson"] > 0.9
    assert adapter.task.labels is None
    model = AdaptedModel(backbone, {"n": adapter})
    try:
        high, low = (found.label for found in model.predict(["three good two", "three bad two"]))
        assert high > 1.5
        assert low < -1.5
    finally:
        model.detach()


@pytest.mark.parametrize("method", [LORA, FeatureExtraction()], ids=["pooled", "mixed"])
def test_a_number_starts_as_the_labels_mean(backbone, data, method):
    task = Task(name="numbers", kind="regression", text="text", data=str(data["numbers"]))
    adapter = tune(backbone, task=task, method=method, learning_rate=1e-9, head_learning_rate=1e-9, max_steps=1)
    labels = list(load(task).train["label"])
    mean = sum(labels) / len(labels)
    assert abs(mean) > 1e-3
    assert float(adapter.tensors["head.classifier.bias"]) == pytest.approx(0.0, abs=1e-6)
    assert adapter.head.scale.mean == pytest.approx(mean)


@pytest.mark.parametrize("name", METHODS)
def test_every_method_tunes(backbone, classes, name):
    method = SAMPLES[name]
    adapter = tune(backbone, task=classes, method=method, max_steps=3)
    start = Adapter.create(backbone, adapter.method, adapter.head, adapter.task, seed=0)
    changed = [key for key, tensor in adapter.tensors.items() if not torch.equal(tensor, start.tensors[key])]
    assert {"head.classifier.weight", "head.classifier.bias"} <= set(changed)
    assert not method.lowers_to or any(not key.startswith("head.") for key in changed)
    assert adapter.recipe["train"]["learning_rate"] == method.learning_rate
    assert adapter.recipe["train"]["num_train_epochs"] == method.num_train_epochs
    assert adapter.recipe["train"]["backbone_dropout"] == ("off" if method.frozen_backbone else "keep")


def test_what_was_trained_is_counted_where_less_is_kept(backbone, classes):
    adapter = tune(backbone, task=classes, method=AdaMix(bottleneck=4), max_steps=1)
    wanted = count(backbone.name, "adamix", {"bottleneck": 4})["trained"]["total"]
    assert trained_for(adapter) == wanted > adapter.num_parameters


# What is left as it was


def outputs_of(backbone):
    batch = backbone.tokenizer(["one good two", "bad"], padding=True, return_tensors="pt")
    with torch.no_grad():
        return backbone.model(**batch).last_hidden_state


@pytest.mark.parametrize("method", [Houlsby(bottleneck=4), METHODS["full-fine-tuning"]()], ids=lambda m: m.name)
def test_backbone_is_bit_for_bit_what_it_was(backbone, classes, method):
    state = {name: tensor.clone() for name, tensor in backbone.model.state_dict().items()}
    before, modules = outputs_of(backbone), dict(backbone.model.named_modules())
    # transformers leaves hooks of its own behind where hidden states were asked for.
    hooks = {name: len(module._forward_hooks) for name, module in modules.items()}
    tune(backbone, task=classes, method=method, max_steps=3, gradient_checkpointing=True)
    after = backbone.model.state_dict()
    assert after.keys() == state.keys()
    assert all(torch.equal(after[name], state[name]) for name in state)
    assert torch.equal(outputs_of(backbone), before)
    assert dict(backbone.model.named_modules()) == modules
    assert not backbone.model.training
    assert not backbone.model.is_gradient_checkpointing
    assert {name: len(module._forward_hooks) for name, module in backbone.model.named_modules()} == hooks
    assert not any(p.requires_grad or p.grad is not None for p in backbone.model.parameters())


def test_backbone_is_free_again_after_an_error(backbone, classes, monkeypatch):
    def fail(*args, **kwargs):
        raise RuntimeError("in the middle")

    before = outputs_of(backbone)
    monkeypatch.setattr(AdapterTrainer, "training_step", fail)
    with pytest.raises(RuntimeError, match="in the middle"):
        tune(backbone, task=classes, method=LORA, max_steps=3)
    monkeypatch.undo()
    assert torch.equal(outputs_of(backbone), before)
    assert tune(backbone, task=classes, method=LORA, max_steps=1).num_parameters > 0


# Same seed, same bytes


def test_same_seed_gives_the_same_bytes_and_another_seed_others(backbone, classes, tmp_path):
    settings = {**FAST, "num_train_epochs": 1}
    for name, seed in (("a", 3), ("b", 3), ("c", 4)):
        torch.manual_seed(len(name + str(seed)) + ord(name))  # what ran before must not matter
        tune(backbone, task=classes, method=LORA, output=tmp_path / name, seed=seed, **settings)
    assert contents(tmp_path / "a") == contents(tmp_path / "b")
    first, other = Adapter.load(tmp_path / "a"), Adapter.load(tmp_path / "c")
    assert [name for name in first.tensors if torch.equal(first.tensors[name], other.tensors[name])] == []
    assert (first.seed, other.seed) == (3, 4)


def test_recipe_in_the_folder_gives_the_same_bytes(backbone, classes, tmp_path):
    tune(backbone, task=classes, method=LORA, output=tmp_path / "a", **{**FAST, "num_train_epochs": 1})
    recipe = Recipe.from_yaml(tmp_path / "a" / "recipe.yaml")
    left = {name for name, value in recipe.train.model_dump().items() if value is None}
    of_generation = {"max_target_length", "max_new_tokens", "generation_examples"}
    assert left == {"early_stopping_patience", "eval_steps", "tokens_per_batch", *of_generation}, "all is written out"
    assert recipe.dtype == "float32"
    tune_recipe(recipe, output=tmp_path / "b")
    assert contents(tmp_path / "a") == contents(tmp_path / "b")


def test_output_none_gives_the_same_adapter(backbone, classes, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    settings = {**FAST, "num_train_epochs": 1}
    only = tune(backbone, task=classes, method=LORA, **settings)
    assert names_in(tmp_path) == []
    saved = tune(backbone, task=classes, method=LORA, output="a", **settings)
    assert only.metrics == saved.metrics
    assert all(torch.equal(only.tensors[name], saved.tensors[name]) for name in saved.tensors)


# Which checkpoint is kept


def test_best_checkpoint_is_kept(backbone, classes, tmp_path):
    # Scored after each step at a high rate, a run goes up and down.
    task = classes.override(test_fraction=0.0, validation_fraction=0.4)
    settings = {
        "learning_rate": 0.02,
        "head_learning_rate": 0.02,
        "lr_scheduler_type": "constant",
        "per_device_train_batch_size": 8,
    }
    steps = {"max_steps": 3, "eval_strategy": "steps", "eval_steps": 1}
    adapter = tune(backbone, task=task, method=LORA, output=tmp_path / "a", pooling="pooler", **settings, **steps)
    accuracies = [row["eval_accuracy"] for row in scorings(tmp_path / "a")]
    assert len(accuracies) == 3
    assert accuracies[-1] < max(accuracies), "the run must tell the best checkpoint from the last"
    assert adapter.metrics["validation"]["accuracy"] == max(accuracies)
    assert evaluate(adapter, backbone=backbone)["accuracy"] == max(accuracies)


def test_smaller_is_better_where_the_metric_says_so(backbone, data, tmp_path):
    task = Task(name="n", kind="regression", text="text", data=str(data["numbers"]), metrics=("mse",))
    settings = {
        **FAST,
        "learning_rate": 0.1,
        "head_learning_rate": 0.1,
        "num_train_epochs": 6,
        "lr_scheduler_type": "constant",
    }
    adapter = tune(backbone, task=task, method=LORA, output=tmp_path / "a", **settings)
    errors = [row["eval_mse"] for row in scorings(tmp_path / "a")]
    assert min(errors) < max(errors)
    assert adapter.metrics["validation"]["mse"] == min(errors)


# Training settings


def test_early_stopping(backbone, classes, tmp_path):
    settings = {**FAST, "num_train_epochs": 12, "early_stopping_patience": 2}
    tune(backbone, task=classes, method=LORA, output=tmp_path / "a", **settings)
    accuracies = [row["eval_accuracy"] for row in scorings(tmp_path / "a")]
    best = accuracies.index(max(accuracies))
    assert len(accuracies) == best + 3 < 12


def test_max_steps_ends_within_an_epoch_and_is_still_scored(backbone, classes, tmp_path):
    adapter = tune(backbone, task=classes, method=LORA, output=tmp_path / "a", **{**FAST, "max_steps": 5})
    rows = rows_of_log(tmp_path / "a")
    assert [row["step"] for row in scorings(tmp_path / "a")] == [5]
    assert max(row["step"] for row in rows) == 5
    assert adapter.metrics["validation"]["accuracy"] == rows[-1]["eval_accuracy"]


def test_eval_strategy_steps(backbone, classes, tmp_path):
    settings = {**FAST, "max_steps": 10, "eval_strategy": "steps", "eval_steps": 4}
    tune(backbone, task=classes, method=LORA, output=tmp_path / "a", **settings)
    assert [row["step"] for row in scorings(tmp_path / "a")] == [4, 8, 10]


def test_fewer_steps_than_between_scorings_are_scored_at_the_end(backbone, classes, tmp_path):
    settings = {**FAST, "max_steps": 3, "eval_strategy": "steps"}
    tune(backbone, task=classes, method=LORA, output=tmp_path / "a", **settings)
    assert [row["step"] for row in scorings(tmp_path / "a")] == [3]


def largest_difference(one, other):
    return max((one.tensors[name] - other.tensors[name]).abs().max().item() for name in one.tensors)


def test_gradient_checkpointing_changes_nothing(backbone, classes):
    plain = tune(backbone, task=classes, method=LORA, max_steps=4)
    again = tune(backbone, task=classes, method=LORA, max_steps=4, gradient_checkpointing=True)
    # The very same operations run, once more.
    assert largest_difference(plain, again) == 0.0


def test_accumulated_batches_are_one_batch(backbone, data):
    # Without dropout and padding effects the mean over two half batches is the mean over the batch, up to rounding.
    task = Task(name="classes", text="text", data=str(data["classes"]))
    head = {"max_steps": 2, "adam_epsilon": 1e-2, "train_sampling_strategy": "random"}
    whole = tune(backbone, task=task, method=HeadOnly(), per_device_train_batch_size=8, **head)
    parts = tune(
        backbone, task=task, method=HeadOnly(), per_device_train_batch_size=4, gradient_accumulation_steps=2, **head
    )
    single = tune(backbone, task=task, method=HeadOnly(), per_device_train_batch_size=4, **head)
    # The head's dropout draws other masks for two halves, so the results are near, not equal; one half alone is not.
    assert 0 < largest_difference(whole, parts) < largest_difference(whole, single)


def test_steps_count_accumulated_batches(backbone, classes, tmp_path):
    settings = {"per_device_train_batch_size": 8, "gradient_accumulation_steps": 3, "num_train_epochs": 1}
    tune(backbone, task=classes, method=LORA, output=tmp_path / "a", **settings)
    # 96 training rows: 12 batches of 8.
    assert [row["step"] for row in scorings(tmp_path / "a")] == [4]


@pytest.mark.parametrize("method", [Houlsby(bottleneck=4), LORA, METHODS["full-fine-tuning"]()], ids=lambda m: m.name)
def test_weight_decay_spares_biases_and_norms(backbone, classes, tmp_path, method):
    head = PooledHead(kind="classification", num_outputs=2, pooling="pooler")
    identity = TaskIdentity(name="c", labels=("negative", "positive"))
    model = AdaptedModel(backbone)
    try:
        model.add("c", Adapter.create(backbone, method, head, identity), trainable=True)
        settings = TrainingSettings().resolved(method, backbone)
        arguments = settings.arguments(tmp_path, metric="accuracy", greater_is_better=True, device=torch.device("cpu"))
        arguments = replace(arguments, eval_strategy="no", save_strategy="no", load_best_model_at_end=False)
        trainer = AdapterTrainer(model=model, args=arguments, adapter_name="c", batches=Shuffled(8, 4, seed=0))
        decaying = trainer.get_decay_parameter_names(model)
        by_decay = {group["weight_decay"]: group["params"] for group in trainer.create_optimizer().param_groups}
        names = {id(p): name.partition(".parameters_by_name.")[2] for name, p in model.named_parameters()}
    finally:
        model.detach()
    decayed, spared = ({names[id(p)] for p in by_decay[decay]} for decay in (0.01, 0.0))
    assert decayed == {name.partition(".parameters_by_name.")[2] for name in decaying}
    assert decayed | spared == Adapter.create(backbone, method, head, identity).tensors.keys()
    assert "head.classifier.weight" in decayed
    assert spared == {name for name in decayed | spared if "bias" in name or "norm" in name}


# Errors of the Python interface


def test_unknown_argument(backbone, classes):
    with pytest.raises(RecipeError, match=r"unknown key 'train\.learning_rat' (.|\n)*learning_rate(.|\n)*tune"):
        tune(backbone, task=classes, learning_rat=1e-3)


def test_all_wrong_arguments_are_named_at_once(backbone, classes):
    with pytest.raises(RecipeError) as error:
        tune(backbone, task=classes, learning_rate=-1, seed="x", epochs=3)
    assert all(name in str(error.value) for name in ("learning_rate=-1", "seed='x'", "train.epochs"))


def test_resume_needs_an_output(backbone, classes):
    with pytest.raises(OutputError, match="cannot be resumed"):
        tune(backbone, task=classes, resume=True)
