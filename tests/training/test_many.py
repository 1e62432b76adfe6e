"""`tune_many`: adapters that train in shared passes are what each would be alone, down to their random draws."""

import json
import shutil
from dataclasses import replace

import pytest
import torch
from closeness import close
from tiny import SAMPLES, make_adapter, make_backbone
from training.kinds import KINDS
from training.workbench import FAST, contents, names_in

from graftwork import AdaptedModel, Adapter, FullFineTuning, Houlsby, LoRA, Task, evaluate, tune, tune_many
from graftwork.backbones import Backbone
from graftwork.bank.randomness import RandomSource
from graftwork.errors import DataError, InterruptedRunError, OutputError, RecipeError, TuneManyError
from graftwork.heads import LanguageHead, LikelihoodHead
from graftwork.methods import AdaMix, PrefixTuning, make_method
from graftwork.training import Recipe
from graftwork.training.joint_passes import Step, passes, take
from graftwork.training.trainer import AdapterTrainer

LORA = LoRA(rank=4)


# Gradients


def texts(rows, length, seed, *, choices=None):
    """Input ids and a mask, the first row full."""
    source = torch.Generator().manual_seed(seed)
    shape = (rows, length) if choices is None else (rows, choices, length)
    ids = torch.randint(5, 100, shape, generator=source)
    lengths = torch.randint(2, length + 1, shape[:-1], generator=source)
    lengths.view(-1)[0] = length
    mask = (torch.arange(length) < lengths[..., None]).long()
    return {"input_ids": ids * mask, "attention_mask": mask}


def gradients_of(model, name):
    return {n: p.grad for n, p in model.residents[name].parameters_by_name.named_parameters()}


def check_gradients(model, steps):
    """Those of a step taken together are those of each batch alone, whose draws come from the same source."""
    seeds = {name: seed for seed, name in enumerate(steps)}

    def seeded():
        for name, seed in seeds.items():
            torch.manual_seed(seed)
            model.residents[name].random_source = RandomSource(model.device)
            with model.residents[name].random_source.own():
                pass

    model.train()
    expected, losses = {}, {}
    seeded()
    for name, step in steps.items():
        loss = model(**step.batch, adapters=name, num_items_in_batch=step.counts).loss
        loss.backward()
        losses[name], expected[name] = loss.detach(), gradients_of(model, name)
    for resident in model.residents.values():
        resident.zero_grad()
    seeded()
    found = take(model, steps)
    for name in steps:
        close(found[name], losses[name], what=name)
        # Heads compute in float32: what they hand on is that near, and no nearer; of some it is rounding only.
        largest = max(float(alone.abs().max()) for alone in expected[name].values() if alone is not None)
        for parameter, own in gradients_of(model, name).items():
            alone = expected[name][parameter]
            assert (own is None) == (alone is None), (name, parameter)
            if own is not None:
                close(own, alone, precision=torch.float32, scale=largest, what=f"{name} {parameter}")


METHODS = {
    "lora": LoRA(rank=2),
    "lora-5": LoRA(rank=5),
    "houlsby": Houlsby(bottleneck=3),
    "adamix": AdaMix(bottleneck=4),
    "robust": make_method("pfeiffer", {"bottleneck": 4, "robust_drop": True}),
    "prefix": PrefixTuning(num_virtual_tokens=2, encoder_hidden_size=8, dropout=0.3),
    "prompt": SAMPLES["prompt-tuning"],
    "ia3": SAMPLES["ia3"],
    "full": FullFineTuning(top_layers=1),
    # Of a layout that is already on the model, and not beside it.
    "lora-again": LoRA(rank=2),
    "houlsby-again": Houlsby(bottleneck=3),
    "prefix-again": PrefixTuning(num_virtual_tokens=2, encoder_hidden_size=8, dropout=0.3),
}


@pytest.mark.parametrize("kind", ["bert", "llama"])
def test_gradients_of_every_kind_of_op_and_random_draw_are_those_of_a_run_alone(kind):
    backbone = make_backbone(kind, dtype=torch.float64)
    model, steps = AdaptedModel(backbone), {}
    for i, (name, method) in enumerate(METHODS.items()):
        model.add(name, make_adapter(backbone, method, trained=True, seed=i, dropout=0.3), trainable=True)
        batch = texts(2 + i % 3, 4 + i, i)
        steps[name] = Step({**batch, "labels": torch.arange(len(batch["input_ids"])) % 3}, None, (i,))
    assert [set(group) for group in passes(model, {n: s.batch for n, s in steps.items()})] == [
        METHODS.keys() - {"full"},
        {"full"},
    ]
    check_gradients(model, steps)


def test_gradients_of_heads_of_all_kinds_are_those_of_a_run_alone():
    backbone = make_backbone("bert", dtype=torch.float64)
    model, steps = AdaptedModel(backbone), {}
    of_kind = {
        "classification": torch.tensor([2, 0, 1]),
        "regression": torch.tensor([0.5, -1.0, 2.0]),
        "token-classification": torch.tensor([[2, 0, 1, -100, 1]] * 3),
        "multiple-choice": torch.tensor([1, 0, 1]),
    }
    for i, (kind, labels) in enumerate(of_kind.items()):
        for name, length in ((kind, 5), (f"{kind}-again", 5 if labels.dim() > 1 else 8)):
            choices = 2 if kind == "multiple-choice" else None
            model.add(name, make_adapter(backbone, LORA, kind=kind, trained=True, seed=i, dropout=0.2), trainable=True)
            steps[name] = Step({**texts(3, length, len(steps), choices=choices), "labels": labels}, None, (i,))
    assert [len(group) for group in passes(model, {n: s.batch for n, s in steps.items()})] == [6, 2]
    check_gradients(model, steps)


@pytest.mark.parametrize("kind", ["gpt2", "t5"])
def test_gradients_of_language_models_are_those_of_a_run_alone(kind):
    backbone = make_backbone(kind, dtype=torch.float64, head=True)
    shifted, model, steps = not backbone.is_encoder_decoder, AdaptedModel(backbone), {}
    for i, length in enumerate((7, 4, 6)):
        batch = texts(2, length, i)
        labels = batch["input_ids"] if shifted else texts(2, 3 + i, 10 + i)["input_ids"]
        batch["labels"] = labels.masked_fill(labels == 0, -100)
        head = LanguageHead(shifted=shifted)
        model.add(f"says-{i}", make_adapter(backbone, LoRA(rank=2), head=head, trained=True, seed=i), trainable=True)
        steps[f"says-{i}"] = Step(batch, None, (i,))
    for i, (choices, length) in enumerate(((2, 6), (2, 4), (3, 5))):
        batch = texts(2, length, 20 + i, choices=choices)
        said = batch if shifted else texts(2, 8 - i, 30 + i, choices=choices)
        targets = said["input_ids"].masked_fill(said["attention_mask"] == 0, -100)
        head = LikelihoodHead(shifted=shifted)
        model.add(f"judges-{i}", make_adapter(backbone, Houlsby(bottleneck=2), head=head, trained=True), trainable=True)
        steps[f"judges-{i}"] = Step({**batch, "targets": targets, "labels": torch.tensor([1, 0])}, None, (i,))
    assert [len(group) for group in passes(model, {n: s.batch for n, s in steps.items()})] == [3, 2, 1]
    check_gradients(model, steps)


def test_batches_of_very_different_lengths_have_passes_of_their_own():
    backbone = make_backbone("bert", max_position_embeddings=256)
    lengths = {"long": 100, "middling": 60, "short": 20, "shorter": 5}
    model = AdaptedModel(backbone, {name: make_adapter(backbone, LORA) for name in lengths})
    batches = {name: {**texts(1, length, 0), "labels": torch.tensor([0])} for name, length in lengths.items()}
    assert passes(model, batches) == [["long", "middling"], ["short", "shorter"]]


# Whole runs


@pytest.fixture(scope="module")
def tasks(data):
    return {
        "classes": Task(name="classes", text="text", data=str(data["classes"]), test_fraction=0.1),
        "pairs": Task(name="pairs", text="first", text_pair="second", data=str(data["pairs"])),
        "numbers": Task(name="numbers", kind="regression", text="text", data=str(data["numbers"])),
    }


def scorings(folder):
    rows = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    return [row["step"] for row in rows if "eval_loss" in row]


def check_like_solo(backbone, adapters, folder, shared, bound=1e-5):
    """Each adapter's folder against what `tune` makes of the same recipe."""
    found = tune_many(backbone, adapters, output=folder / "many", **shared)
    for name, given in adapters.items():
        own = {key: value for key, value in given.items() if key != "train"}
        tune(backbone, **own, output=folder / name, **{**shared, **given.get("train", {})})
        alone, loaded = Adapter.load(folder / name), Adapter.load(folder / "many" / name)
        assert loaded.recipe == alone.recipe
        assert replace(loaded, tensors={}, metrics={}) == replace(alone, tensors={}, metrics={})
        for key, tensor in alone.tensors.items():
            torch.testing.assert_close(
                loaded.tensors[key],
                tensor,
                rtol=0,
                atol=bound,
                msg=lambda said, key=key, name=name: f"{name} {key}: {said}",
            )
            assert torch.equal(found[name].tensors[key], loaded.tensors[key])
        for split, scores in alone.metrics.items():
            assert loaded.metrics[split] == pytest.approx(scores, rel=1e-3)
        assert scorings(folder / "many" / name) == scorings(folder / name)
    assert names_in(folder / "many") == sorted(adapters)
    return found


def test_each_run_has_its_own_settings_and_is_as_alone(backbone, tasks, tmp_path):
    """Rates, clipping, schedules, accumulation, lengths of training, saving and stopping differ."""
    adapters = {
        "short": {"task": tasks["classes"], "method": LORA, "train": {"max_steps": 3, "max_grad_norm": 0.01}},
        "accumulating": {
            "task": tasks["pairs"],
            "method": Houlsby(bottleneck=4),
            "train": {"gradient_accumulation_steps": 3, "lr_scheduler_type": "cosine", "learning_rate": 1e-3},
        },
        "stopped": {
            "task": tasks["numbers"],
            "method": AdaMix(bottleneck=4),
            "train": {
                **{"seed": 3, "eval_strategy": "steps", "eval_steps": 2, "early_stopping_patience": 1},
                **{"lr_scheduler_type": "constant", "optim": "sgd", "learning_rate": 0.1, "head_learning_rate": 0.1},
                "max_steps": 20,
            },
        },
        "sgd": {
            "task": tasks["classes"],
            "method": PrefixTuning(num_virtual_tokens=2, reparametrise=False),
            "train": {"optim": "sgd", "seed": 1, "train_sampling_strategy": "random", "max_grad_norm": 0.0},
        },
    }
    check_like_solo(backbone, adapters, tmp_path, {**FAST, "num_train_epochs": 1})
    last = scorings(tmp_path / "many" / "stopped")[-1]
    assert last < 20, "it is to stop early"


def test_a_saved_folder_is_an_ordinary_one(backbone, tasks, tmp_path):
    before = {name: tensor.clone() for name, tensor in backbone.model.state_dict().items()}
    found = tune_many(
        backbone,
        {"a": {"task": tasks["classes"], "method": "lora"}, "b": {"task": tasks["pairs"], "seeds": [0, 1]}},
        output=tmp_path / "many",
        **{**FAST, "num_train_epochs": 1},
    )
    assert list(found) == ["a", "b-0", "b-1"] == names_in(tmp_path / "many")
    assert names_in(tmp_path / "many" / "a") == [
        *("README.md", "adapter.json", "adapter.safetensors", "log.jsonl", "recipe.yaml"),
    ]
    assert not any(p.requires_grad or p.grad is not None for p in backbone.model.parameters())
    assert all(torch.equal(tensor, before[name]) for name, tensor in backbone.model.state_dict().items())
    loaded = Adapter.load(tmp_path / "many" / "a")
    scores = evaluate(loaded, backbone=backbone, split="validation")
    assert scores.items() <= loaded.metrics["validation"].items()
    assert Recipe.from_yaml(tmp_path / "many" / "a" / "recipe.yaml").train.learning_rate == 0.01
    assert Adapter.load(tmp_path / "many" / "b-1").seed == 1
    model = AdaptedModel(backbone, {"a": loaded})
    try:
        assert len(model.predict(["one good two", "bad ten"])) == 2
    finally:
        model.detach()


def test_a_joint_recipe_run_twice_gives_the_same_bytes(backbone, tasks, tmp_path):
    # Dropout of low-rank inputs is drawn for all rows together.
    method = LoRA(rank=4, dropout=0.3)
    adapters = {name: {"task": tasks[name], "method": method} for name in ("classes", "numbers")}
    for folder in ("one", "two"):
        torch.manual_seed(len(folder))  # what ran before must not matter
        torch.rand(ord(folder[0]))
        tune_many(backbone, adapters, output=tmp_path / folder, **{**FAST, "num_train_epochs": 1})
    assert contents(tmp_path / "one") == contents(tmp_path / "two")


@pytest.mark.parametrize("kinds", [("tags", "choices"), ("generation-t5", "likelihood-t5"), ("images",)], ids=str)
def test_other_kinds_of_task(backbones, kinds_data, kinds, tmp_path):
    flags = {case: dict(zip(KINDS[case][1][::2], KINDS[case][1][1::2], strict=True)) for case in kinds}
    backbone = Backbone.load(str(backbones[KINDS[kinds[0]][0]]), dtype="float32", device="cpu")
    adapters = {
        f"{case}-{seed}": {
            "task": Task(
                name=case, data=str(kinds_data[case]), **{k.removeprefix("--"): v for k, v in flags[case].items()}
            ),
            "method": LORA,
            "train": {
                "seed": seed,
                **({"generation_examples": 2, "max_new_tokens": 8} if "generation" in case else {}),
            },
        }
        for case in kinds
        for seed in (0, 1)
    }
    # AdamW makes a step of what is only rounding, such as the gradient of a bias that all choices share.
    settings = {"optim": "sgd", "learning_rate": 0.1, "max_steps": 3, "per_device_train_batch_size": 8}
    check_like_solo(backbone, adapters, tmp_path, settings)


# Failed, killed, resumed


@pytest.fixture
def three(tasks):
    """Runs of 4, 8 and 8 steps, saved every 3."""
    steps = {"classes": 4, "pairs": 8, "numbers": 8}
    return {n: {"task": tasks[n], "method": LORA, "train": {"max_steps": count}} for n, count in steps.items()}


SAVED = {**FAST, "eval_strategy": "steps", "eval_steps": 3}


def test_a_run_that_fails_leaves_the_others_alone(backbone, three, tmp_path, monkeypatch, caplog):
    plain = AdapterTrainer.training_step

    def fail(self, *args, **kwargs):
        if self.adapter_name == "pairs" and self.state.global_step == 4:
            raise RuntimeError("in the middle")
        return plain(self, *args, **kwargs)

    tune_many(backbone, three, output=tmp_path / "whole", **SAVED)
    with monkeypatch.context() as patch:
        patch.setattr(AdapterTrainer, "training_step", fail)
        with pytest.raises(
            TuneManyError, match=r"1 of 3 runs failed(.|\n)*pairs: RuntimeError: in the middle"
        ) as caught:
            tune_many(backbone, three, output=tmp_path / "a", **SAVED)
    assert list(caught.value.finished) == ["classes", "numbers"]
    assert names_in(tmp_path / "a") == [".pairs.tuning", "classes", "numbers"]
    assert "'pairs' failed" in caplog.text
    tune_many(backbone, three, output=tmp_path / "a", resume=True, **SAVED)
    assert names_in(tmp_path / "a") == ["classes", "numbers", "pairs"]
    for name in three:
        check_near(tmp_path / "a" / name, tmp_path / "whole" / name)


def check_near(folder, whole):
    """After a resume other batches share the passes, so that sums round otherwise."""
    found, expected = Adapter.load(folder), Adapter.load(whole)
    for key, tensor in expected.tensors.items():
        torch.testing.assert_close(found.tensors[key], tensor, rtol=0, atol=1e-5)


def test_a_pass_that_fails_fails_all_that_took_part(backbone, three, tmp_path, monkeypatch):
    def fail(*args):
        raise RuntimeError("no memory")

    monkeypatch.setattr("graftwork.training.many.take", fail)
    with pytest.raises(TuneManyError, match="3 of 3 runs failed"):
        tune_many(backbone, three, output=tmp_path / "a", **SAVED)
    assert names_in(tmp_path) == []
    with torch.no_grad():
        AdaptedModel(backbone).detach()  # it is free


@pytest.mark.parametrize("killed", [False, True], ids=["interrupted", "killed"])
def test_interrupted_or_killed_and_resumed(backbone, three, tmp_path, monkeypatch, killed):
    tune_many(backbone, three, output=tmp_path / "whole", **SAVED)
    plain, passed = take, []

    def interrupt(*args):
        if len(passed) == 5:
            shutil.copytree(tmp_path / "a", tmp_path / "kept")
            raise KeyboardInterrupt
        passed.append(args)
        return plain(*args)

    with monkeypatch.context() as patch:
        patch.setattr("graftwork.training.many.take", interrupt)
        with pytest.raises(InterruptedRunError, match="finished: classes; kept: numbers, pairs"):
            tune_many(backbone, three, output=tmp_path / "a", **SAVED)
    if killed:
        # What lay on the disk at that moment is what is left, whatever was cleaned up later.
        shutil.rmtree(tmp_path / "a")
        shutil.move(tmp_path / "kept", tmp_path / "a")
    held = [".tuning"] if killed else []
    assert names_in(tmp_path / "a") == [".numbers.tuning", ".pairs.tuning", *held, "classes"]
    finished = contents(tmp_path / "a" / "classes")
    found = tune_many(backbone, three, output=tmp_path / "a", resume=True, **SAVED)
    assert list(found) == list(three)
    assert names_in(tmp_path / "a") == sorted(three)
    assert contents(tmp_path / "a" / "classes") == finished, "what is finished stays"
    for name in three:
        check_near(tmp_path / "a" / name, tmp_path / "whole" / name)


# What is refused


def test_outputs_are_not_lost(backbone, three, tmp_path):
    one = {"classes": three["classes"]}
    tune_many(backbone, one, output=tmp_path, **FAST)
    before = contents(tmp_path)
    with pytest.raises(OutputError, match=r"exists already(.|\n)*--overwrite"):
        tune_many(backbone, three, output=tmp_path, **FAST)
    with pytest.raises(RecipeError, match=r"classes(.|\n)*train.learning_rate was 0.01, is 0.5"):
        tune_many(backbone, one, output=tmp_path, resume=True, **{**FAST, "learning_rate": 0.5})
    assert contents(tmp_path) == before
    with pytest.raises(OutputError, match="no interrupted runs"):
        tune_many(backbone, three, output=tmp_path / "other", resume=True, **FAST)
    with pytest.raises(OutputError, match="one of the two"):
        tune_many(backbone, one, output=tmp_path, resume=True, overwrite=True, **FAST)
    tune_many(backbone, one, output=tmp_path, overwrite=True, **{**FAST, "seed": 1})
    assert Adapter.load(tmp_path / "classes").seed == 1


def test_what_is_wrong_is_said_before_anything_is_trained(backbone, three, tmp_path):
    full = {"task": three["classes"]["task"], "method": "full-fine-tuning"}
    with pytest.raises(RecipeError, match=r"'classes' and 'full'(.|\n)*backbone_dropout is 'off'(.|\n)*'keep'"):
        tune_many(backbone, {"classes": three["classes"], "full": full}, output=tmp_path, **FAST)
    with pytest.raises(RecipeError, match=r"'classes' cannot have a prefix cache(.|\n)*train.prefix_cache"):
        tune_many(backbone, three, output=tmp_path, **FAST, prefix_cache="on")
    absent = {**three["pairs"], "data": str(tmp_path / "absent.csv")}
    with pytest.raises(DataError, match="adapter 'pairs': "):
        tune_many(backbone, {"classes": three["classes"], "pairs": absent}, output=tmp_path, **FAST)
    assert names_in(tmp_path) == []
