"""Rates by step, by group of parameters and by epoch; optimizers; and what a method makes of what was trained."""

import json
import logging
from dataclasses import replace
from typing import ClassVar

import pytest
import torch
from safetensors.torch import load_file
from tiny import SAMPLES
from torch.optim import SGD
from training.workbench import FAST, at_step, contents, killed
from transformers import Adafactor

from graftwork import Adapter, LoRA, Task, evaluate, tune
from graftwork.adapters import TaskIdentity
from graftwork.adapters.declared import declare
from graftwork.errors import RecipeError
from graftwork.heads import PooledHead
from graftwork.methods import METHODS, FullFineTuning, HeadOnly, ULMFiT
from graftwork.model import AdaptedModel
from graftwork.training import TrainingSettings
from graftwork.training.sampling import Shuffled
from graftwork.training.schedules import scheduler, slanted_triangular
from graftwork.training.trainer import AdapterTrainer


@pytest.fixture(scope="module")
def classes(data):
    return Task(name="classes", text="text", data=str(data["classes"]))


STEPS = 14
"""Steps of an epoch under FAST."""


# Slanted triangular rates


def as_printed(t, steps, fraction, ratio=32):
    """Howard & Ruder 2018, eq. 3, letter by letter."""
    cut = int(steps * fraction)
    p = t / cut if t < cut else 1 - (t - cut) / (cut * (1 / fraction - 1))
    return (1 + p * (ratio - 1)) / ratio


@pytest.mark.parametrize(("steps", "fraction"), [(100, 0.1), (1000, 0.1), (40, 0.25), (10, 0.1)])
def test_slanted_triangular_is_the_printed_formula(steps, fraction):
    cut = int(steps * fraction)
    for t in range(steps + 1):
        assert slanted_triangular(t, cut, steps) == pytest.approx(as_printed(t, steps, fraction), abs=1e-12)


def test_slanted_triangular_by_hand():
    assert [slanted_triangular(t, 10, 100) for t in (0, 5, 10, 55, 100)] == [
        1 / 32,
        (1 + 0.5 * 31) / 32,
        1.0,
        (1 + 0.5 * 31) / 32,
        1 / 32,
    ]


@pytest.mark.parametrize(("rise", "steps"), [(1, 15), (0, 7), (1, 1), (0, 1)])
def test_slanted_triangular_stays_within_its_bounds(rise, steps):
    found = [slanted_triangular(t, rise, steps) for t in range(steps + 1)]
    assert all(1 / 32 <= share <= 1 for share in found)
    assert found[rise] == 1.0


def test_every_group_follows_the_schedule_at_its_own_rate():
    parameters = [torch.nn.Parameter(torch.zeros(1)) for _ in range(2)]
    optimizer = SGD([{"params": [parameters[0]], "lr": 1.0}, {"params": [parameters[1]], "lr": 0.25}])
    schedule = scheduler(slanted_triangular, optimizer, 2, 10)
    rates = []
    for _ in range(4):
        rates.append(schedule.get_last_lr())
        optimizer.step()
        schedule.step()
    expected = [slanted_triangular(t, 2, 10) for t in range(4)]
    assert rates == [[pytest.approx(share), pytest.approx(0.25 * share)] for share in expected]


# What methods and settings decide


class Tuned(LoRA):
    """LoRA with other training defaults."""

    name: ClassVar[str] = "tuned"
    optim: ClassVar[str] = "adafactor"
    lr_scheduler_type: ClassVar[str] = "constant"


def test_a_methods_optimizer_and_schedule_are_the_defaults(backbone):
    plain, own = (TrainingSettings().resolved(method, backbone) for method in (LoRA(), Tuned()))
    assert (plain.optim, plain.lr_scheduler_type) == ("adamw_torch_fused", "linear")
    assert (own.optim, own.lr_scheduler_type) == ("adafactor", "constant")
    assert TrainingSettings().resolved(ULMFiT(), backbone).lr_scheduler_type == "slanted_triangular"
    said = TrainingSettings(optim="sgd", lr_scheduler_type="cosine").resolved(Tuned(), backbone)
    assert (said.optim, said.lr_scheduler_type) == ("sgd", "cosine")


@pytest.mark.parametrize("settings", [{"lr_scheduler_type": "slanted"}, {"optim": "adam"}])
def test_unknown_names_are_refused_with_those_that_are_known(backbone, classes, settings):
    with pytest.raises(RecipeError) as error:
        tune(backbone, task=classes, **settings)
    (key, value), known = next(iter(settings.items())), ("slanted_triangular", "adafactor")
    assert f"train.{key}={value!r}" in str(error.value)
    assert any(name in str(error.value) for name in known)


# Groups of parameters


@pytest.fixture
def make_trainer(backbone, tmp_path):
    models = []

    def make(method, options=None, **settings):
        options = options or {}
        head = PooledHead(kind="classification", num_outputs=2, pooling="pooler")
        identity = TaskIdentity(name="c", labels=("negative", "positive"))
        model = AdaptedModel(backbone)
        models.append(model)
        model.add("c", Adapter.create(backbone, method, head, identity), trainable=True)
        resolved = TrainingSettings(**settings).resolved(method, backbone)
        arguments = resolved.arguments(tmp_path, metric="accuracy", greater_is_better=True, device=torch.device("cpu"))
        arguments = replace(arguments, eval_strategy="no", save_strategy="no", load_best_model_at_end=False)
        given = {"batches": Shuffled(8, 4, seed=0), "schedule": resolved.schedule, **options}
        return AdapterTrainer(model=model, args=arguments, adapter_name="c", **given)

    yield make
    for model in models:
        model.detach()


def test_each_rate_is_a_group_of_its_own(make_trainer, backbone):
    trainer = make_trainer(ULMFiT(), learning_rate=1e-3)
    groups = trainer.create_optimizer().param_groups
    resident = trainer.adapted.residents["c"]
    declared = declare(backbone, resident.adapter.method, resident.adapter.head)
    names = {id(tensor): name for name, tensor in resident.tensors().items()}
    assert {names[id(p)] for group in groups for p in group["params"]} == set(declared)
    for group in groups:
        for parameter in group["params"]:
            said = declared[names[id(parameter)]]
            assert group["lr"] == pytest.approx(1e-3 * said.rate, rel=1e-12)
            assert group["weight_decay"] == (0.01 if said.decay else 0.0)
    assert sorted({round(group["lr"] / 1e-3, 9) for group in groups}) == [
        round(2.6**-height, 9) for height in (2, 1, 0)
    ]
    assert groups[0]["lr"] == 1e-3, "the rate that is logged is the highest"


def test_the_head_has_a_rate_of_its_own(make_trainer, backbone):
    trainer = make_trainer(LoRA(b_rate=4), {"head_learning_rate": 0.02}, learning_rate=1e-3)
    names = {id(tensor): name for name, tensor in trainer.adapted.residents["c"].tensors().items()}
    groups = trainer.create_optimizer().param_groups
    rates = {names[id(p)]: group["lr"] for group in groups for p in group["params"]}
    wanted = {name: 0.02 if name.startswith("head.") else 4e-3 if name.endswith(".B") else 1e-3 for name in rates}
    assert rates == pytest.approx(wanted, rel=1e-12)
    assert groups[0]["lr"] == 4e-3, "the rate that is logged is the method's highest"


def test_rates_of_the_head_that_are_not_given(backbone):
    def rate(method, **given):
        return TrainingSettings(**given).resolved(method, backbone).head_learning_rate

    assert rate(LoRA()) == rate(LoRA(), learning_rate=1e-5) == 3e-3
    assert rate(HeadOnly()) == HeadOnly().learning_rate == 1e-2
    assert rate(LoRA(), learning_rate=1.0) == 1.0
    assert rate(LoRA(), head_learning_rate=0.5) == rate(FullFineTuning(), head_learning_rate=0.5) == 0.5
    assert rate(FullFineTuning()) == FullFineTuning().learning_rate
    assert rate(FullFineTuning(), learning_rate=1.0) == rate(ULMFiT(), learning_rate=1.0) == 1.0


def test_adafactor_takes_the_given_rate_as_it_is(make_trainer):
    """As Lester et al. 2021 tune prompts: no scaling by the parameters, no relative steps."""
    optimizer = make_trainer(Tuned(), learning_rate=0.3).create_optimizer()
    assert isinstance(optimizer, Adafactor)
    for group in optimizer.param_groups:
        assert (group["lr"], group["scale_parameter"], group["relative_step"]) == (0.3, False, False)


def test_slanted_triangular_rates_of_a_run(backbone, classes, tmp_path):
    settings = {**FAST, "logging_steps": 1, "max_steps": 20, "warmup_ratio": 0.2}
    tune(backbone, task=classes, method=ULMFiT(), output=tmp_path / "a", **settings)
    rows = [json.loads(line) for line in (tmp_path / "a" / "log.jsonl").read_text().splitlines()]
    found = {row["step"]: row["learning_rate"] for row in rows if "learning_rate" in row}
    # What is logged at a step is the rate that the step was made with.
    assert found == {step: pytest.approx(0.01 * slanted_triangular(step - 1, 4, 20), rel=1e-9) for step in range(1, 21)}


# Thawing


def changed(adapter) -> dict[str, bool]:
    """Whether anything was trained, by place."""
    places: dict[str, bool] = {}
    for name, tensor in adapter.tensors.items():
        place = ".".join(name.split(".")[:2]) if name.startswith("layers.") else name.split(".")[0]
        places[place] = places.get(place, False) or bool((tensor != 0).any())
    return places


@pytest.mark.parametrize(
    ("steps", "unfrozen"),
    [
        (STEPS, {"layers.1", "pooler", "head"}),
        (STEPS + 1, {"layers.0", "layers.1", "pooler", "head"}),
        (2 * STEPS + 1, {"embeddings", "layers.0", "layers.1", "pooler", "head"}),
    ],
)
def test_one_layer_more_is_trained_each_epoch(backbone, classes, steps, unfrozen):
    settings = {**FAST, "eval_strategy": "steps", "eval_steps": steps, "max_steps": steps}
    adapter = tune(backbone, task=classes, method=FullFineTuning(gradual_unfreezing=True), pooling="pooler", **settings)
    assert {place for place, moved in changed(adapter).items() if moved} == unfrozen
    assert set(changed(adapter)) == {"embeddings", "layers.0", "layers.1", "pooler", "head"}


def test_a_run_that_ends_too_early_says_so(backbone, classes, caplog):
    with caplog.at_level(logging.WARNING, "graftwork"):
        tune(backbone, task=classes, method=ULMFiT(), **{**FAST, "num_train_epochs": 2})
    assert "2 epochs" in caplog.text
    assert "epoch 3 (--train.num_train_epochs)" in caplog.text
    caplog.clear()
    with caplog.at_level(logging.WARNING, "graftwork"):
        tune(backbone, task=classes, method=ULMFiT(), **{**FAST, "num_train_epochs": 3})
    assert "num_train_epochs" not in caplog.text


def test_part_of_an_epoch_is_not_too_early_where_all_is_trained_from_the_start(backbone, classes, caplog):
    with caplog.at_level(logging.WARNING, "graftwork"):
        tune(backbone, task=classes, method=LoRA(), **{**FAST, "num_train_epochs": 0.5})
    assert "unfrozen" not in caplog.text


# Resuming


@pytest.fixture(scope="module")
def resumed(backbone, classes, tmp_path_factory):
    """Trains straight through, and again with the run killed at each of some steps and resumed: the same bytes."""

    def check(method, steps, **settings):
        folder = tmp_path_factory.mktemp("runs")
        settings = {**FAST, "eval_strategy": "steps", "eval_steps": 7, **settings}
        tune(backbone, task=classes, method=method, output=folder / "whole", **settings)
        for step in steps:
            output = folder / f"{step}"
            with killed(at_step(step)):
                tune(backbone, task=classes, method=method, output=output, **settings)
            tune(backbone, task=classes, method=method, output=output, resume=True, **settings)
            assert contents(output) == contents(folder / "whole"), step

    return check


def test_a_killed_run_whose_layers_thaw_resumes_to_the_same_bytes(resumed):
    # In the first epoch; at its end, just before the next layer is unfrozen; in the third.
    resumed(ULMFiT(), (9, STEPS, 2 * STEPS + 2), max_steps=2 * STEPS + 3)


def test_a_killed_run_of_adafactor_resumes_to_the_same_bytes(resumed):
    resumed(LoRA(rank=4), (9,), max_steps=STEPS + 2, optim="adafactor", lr_scheduler_type="constant")


@pytest.mark.parametrize("name", sorted(METHODS.keys() - {"ulmfit", "lora"}))
def test_a_killed_run_of_any_method_resumes_to_the_same_bytes(resumed, name):
    """Encoders of prompts and prefixes, and what methods draw, included."""
    resumed(SAMPLES[name], (9,), max_steps=STEPS - 1)


# What is kept in the end


class Halved(LoRA):
    """Keeps a plain LoRA of half the difference, in which what it says shows."""

    name: ClassVar[str] = "halved"

    def finish(self, parameters, sites):
        kept = {name: tensor / 2 if name.endswith(".B") else tensor for name, tensor in parameters.items()}
        return LoRA(**self.model_dump()), kept


def test_the_finished_adapter_is_what_is_scored_and_saved(backbone, classes, tmp_path, monkeypatch):
    monkeypatch.setitem(METHODS, "halved", Halved)
    settings = {**FAST, "eval_strategy": "steps", "eval_steps": 4, "max_steps": 4}
    plain = tune(backbone, task=classes, method=LoRA(rank=4), **settings)
    adapter = tune(backbone, task=classes, method=Halved(rank=4), output=tmp_path / "a", **settings)
    assert adapter.method == LoRA(rank=4)
    for name, tensor in plain.tensors.items():
        assert torch.equal(adapter.tensors[name], tensor / 2 if name.endswith(".B") else tensor)
    assert adapter.metrics["validation"]["loss"] != plain.metrics["validation"]["loss"]
    saved = Adapter.load(tmp_path / "a")
    assert saved.method == LoRA(rank=4)
    assert evaluate(saved, backbone=backbone)["accuracy"] == adapter.metrics["validation"]["accuracy"]


def test_checkpoints_hold_what_is_trained(backbone, classes, tmp_path, monkeypatch):
    """So that a run killed after its last step goes on to the very same adapter."""
    monkeypatch.setitem(METHODS, "halved", Halved)
    settings = {**FAST, "eval_strategy": "steps", "eval_steps": 4, "max_steps": 4}
    plain = tune(backbone, task=classes, method=LoRA(rank=4), **settings)
    whole = tune(backbone, task=classes, method=Halved(rank=4), output=tmp_path / "whole", **settings)

    def install(patch, death):
        patch.setattr(Adapter, "finished", lambda *_: death.strike(tmp_path / ".a.tuning"))

    with killed(install):
        tune(backbone, task=classes, method=Halved(rank=4), output=tmp_path / "a", **settings)
    kept = load_file(tmp_path / ".a.tuning" / "checkpoint-4" / "adapter.safetensors")
    assert all(torch.equal(tensor, plain.tensors[name]) for name, tensor in kept.items())
    tune(backbone, task=classes, method=Halved(rank=4), output=tmp_path / "a", resume=True, **settings)
    assert contents(tmp_path / "a") == contents(tmp_path / "whole")
    assert torch.equal(whole.tensors["layers.0.ffn.up.B"], kept["layers.0.ffn.up.B"] / 2)
