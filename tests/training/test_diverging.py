"""A run that comes to NaN or infinity is refused, for every kind of task, and says what to change."""

import json
from dataclasses import replace

import pytest
import torch
from training.kinds import KINDS, SETTINGS
from training.workbench import FAST, names_in

from graftwork import AdaptedModel, Adapter, Backbone, LoRA, Task, evaluate, tune, tune_many
from graftwork.cli.app import main
from graftwork.errors import AdapterError, DivergedError, TuneManyError
from graftwork.training.trainer import AdapterTrainer

LORA = LoRA(rank=4)
STEEP = {"optim": "sgd", "learning_rate": 1e25, "head_learning_rate": 1e25, "max_grad_norm": 0.0, "warmup_ratio": 0.0}
"""Settings under which every run diverges in a few steps."""


@pytest.fixture(scope="module")
def loaded(backbones):
    return {name: Backbone.load(str(folder), dtype="float32", device="cpu") for name, folder in backbones.items()}


@pytest.fixture
def classes(data):
    return Task(name="classes", text="text", data=str(data["classes"]))


def task_of(case, kinds_data):
    name, flags = KINDS[case]
    fields = {flag.removeprefix("--"): value for flag, value in zip(flags[::2], flags[1::2], strict=True)}
    return name, Task.parse({"name": case, "data": str(kinds_data[case]), **fields}, origin="the test")


@pytest.mark.parametrize("case", KINDS)
@pytest.mark.parametrize("steps", [1, 20])
def test_every_kind_of_task(loaded, kinds_data, case, steps, tmp_path):
    """It ends at the first loss that is not finite; or, when the last step broke it, at the scores."""
    backbone, task = task_of(case, kinds_data)
    settings = {**SETTINGS, **STEEP, "max_steps": steps}
    with pytest.raises(DivergedError, match=r"diverged(.|\n)*--train.learning_rate") as error:
        tune(loaded[backbone], task=task, method=LORA, output=tmp_path / "a", **settings)
    assert names_in(tmp_path) == []
    assert "checkpoint" not in str(error.value)


def test_regression(backbone, data, tmp_path):
    task = Task(name="n", kind="regression", text="text", data=str(data["numbers"]))
    with pytest.raises(DivergedError):
        tune(backbone, task=task, method=LORA, output=tmp_path / "a", **{**FAST, **STEEP})
    assert names_in(tmp_path) == []


@pytest.fixture
def breaking(monkeypatch):
    """Runs whose loss is NaN from step 15 on, or whose tensors are."""

    def install(what, step=15):
        plain = AdapterTrainer._step

        def broken(self, *args):
            loss = plain(self, *args)
            if self.adapter_name.startswith("classes") and self.state.global_step >= step:
                if what == "loss":
                    return loss * torch.nan
                with torch.no_grad():
                    next(iter(self.adapted.residents[self.adapter_name].tensors().values())).fill_(torch.inf)
            return loss

        monkeypatch.setattr(AdapterTrainer, "_step", broken)

    return install


def test_the_best_checkpoint_before_is_kept_and_named(backbone, classes, breaking, tmp_path):
    breaking("loss")
    settings = {**FAST, "eval_strategy": "steps", "eval_steps": 5, "max_steps": 20}
    with pytest.raises(DivergedError, match="the training loss is nan in step 16") as error:
        tune(backbone, task=classes, method=LORA, output=tmp_path / "a", **settings)
    assert names_in(tmp_path) == [".a.tuning"]
    state = json.loads((tmp_path / ".a.tuning" / "checkpoint-15" / "trainer_state.json").read_text())
    folder = tmp_path / ".a.tuning" / f"checkpoint-{state['best_global_step']}"
    assert str(folder) in str(error.value)
    assert f"{state['best_metric']:.4f}" in str(error.value)
    assert "--overwrite" in error.value.change
    kept = Adapter.load(folder)
    model = AdaptedModel(backbone, {"kept": kept})
    try:
        assert {found.label for found in model.predict(["one good two", "bad ten"])} <= {"positive", "negative"}
    finally:
        model.detach()


def test_tensors_that_break_between_scorings(backbone, classes, breaking, tmp_path):
    breaking("tensors")
    with pytest.raises(DivergedError, match="diverged"):
        tune(backbone, task=classes, method=LORA, output=tmp_path / "a", **{**FAST, "max_steps": 16})
    assert not (tmp_path / "a").exists()


def test_the_others_of_a_joint_recipe_go_on(backbone, classes, data, breaking, tmp_path):
    breaking("loss")
    adapters = {
        "classes": {"task": classes, "method": LORA},
        "numbers": {"task": Task(name="n", kind="regression", text="text", data=str(data["numbers"])), "method": LORA},
    }
    settings = {**FAST, "eval_strategy": "steps", "eval_steps": 5, "max_steps": 20}
    with pytest.raises(TuneManyError, match=r"classes: the training loss is nan in step 16(.|\n)*checkpoint-") as error:
        tune_many(backbone, adapters, output=tmp_path, **settings)
    assert list(error.value.finished) == ["numbers"]
    assert names_in(tmp_path) == [".classes.tuning", "numbers"]


def test_the_command_says_so(backbone_folder, data, tmp_path, capsys):
    flags = ["--backbone", str(backbone_folder), "--data", str(data["classes"]), "--text", "text", "--quiet"]
    steep = [part for name, value in STEEP.items() for part in (f"--train.{name}", str(value))]
    with pytest.raises(SystemExit, match="2"):
        main(["tune", *flags, *steep, "--output", str(tmp_path / "a")])
    assert "training has diverged" in capsys.readouterr().err
    assert names_in(tmp_path) == []


# What is not finite is neither saved nor used


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_an_adapter_that_is_not_finite_is_neither_saved_nor_put_on_a_model(backbone, classes, value, tmp_path):
    adapter = tune(backbone, task=classes, method=LORA, max_steps=1)
    name, tensor = next(iter(adapter.tensors.items()))
    changed = tensor.clone()
    changed.view(-1)[-1] = value
    broken = replace(adapter, tensors={**adapter.tensors, name: changed})
    with pytest.raises(AdapterError, match=f"not saved: it holds NaN or infinity in {name}"):
        broken.save(tmp_path / "a")
    assert names_in(tmp_path) == []
    with pytest.raises(AdapterError, match=f"holds NaN or infinity in {name}"):
        evaluate(broken, backbone=backbone)
    model = AdaptedModel(backbone)
    try:
        with pytest.raises(AdapterError, match="holds NaN or infinity"):
            model.add("a", broken)
    finally:
        model.detach()


def test_large_numbers_are_finite(backbone, classes):
    """Their sum is not."""
    adapter = tune(backbone, task=classes, method=LORA, max_steps=1)
    name, tensor = next(iter(adapter.tensors.items()))
    large = replace(adapter, tensors={**adapter.tensors, name: torch.full_like(tensor, 3e38)})
    large.check(backbone)


@pytest.mark.parametrize("case", KINDS)
def test_evaluate_refuses_scores_that_are_not_finite(loaded, kinds_data, case, monkeypatch):
    """As where a backbone in float16 overflows: the adapter itself is well."""
    name, task = task_of(case, kinds_data)
    backbone = loaded[name]
    adapter = tune(backbone, task=task, method=LORA, **{**SETTINGS, "max_steps": 1})
    plain = type(adapter.head).logits
    monkeypatch.setattr(type(adapter.head), "logits", lambda *args, **kwargs: plain(*args, **kwargs) * torch.nan)
    with pytest.raises(DivergedError, match=r"finite numbers(.|\n)*float32"):
        evaluate(adapter, backbone=backbone)


def test_a_metric_that_is_not_finite(backbone, classes, monkeypatch):
    monkeypatch.setattr("graftwork.training.scoring.compute", lambda *_: {"accuracy": float("nan")})
    with pytest.raises(DivergedError, match="accuracy is nan"):
        tune(backbone, task=classes, method=LORA, max_steps=1)
