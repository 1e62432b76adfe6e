"""`tune_tasks`: several tasks train one adapter, each with a head of its own."""

import json
import math
import shutil
from collections import Counter

import pytest
import torch
import torch.nn.functional as F
from closeness import close
from tiny import SAMPLES, make_adapter, make_backbone
from training.workbench import FAST, at_step, contents, killed, make_rows, names_in, write_csv

from graftwork import AdaptedModel, Adapter, FullFineTuning, HeadOnly, Houlsby, LoRA, Task, evaluate, tune, tune_tasks
from graftwork.errors import AdapterError, GraftworkError, OutputError, RecipeError
from graftwork.kinds.scoring import METRICS
from graftwork.methods.parameters import Parameter, ParameterTree, zeros
from graftwork.settings.yamlfile import read_yaml
from graftwork.training import MultiTaskRecipe, tune_multi_task_recipe
from graftwork.training.mixture import Mixture, task_rows, task_shares
from graftwork.training.multi_task_folder import read_tasks_file, read_tasks_folder
from graftwork.training.multi_task_trainer import MultiTaskTrainer

LORA = LoRA(rank=4)


@pytest.fixture(scope="module")
def tasks(data, tmp_path_factory):
    """Three tasks: of classes, of pairs, and of numbers, of different sizes."""
    folder = tmp_path_factory.mktemp("small")
    few = write_csv(folder / "few.csv", make_rows("pairs", 40, seed=3))
    return [
        Task(name="words", text="text", data=str(data["classes"])),
        Task(name="pairs", text="first", text_pair="second", data=str(few)),
        Task(name="numbers", kind="regression", text="text", data=str(data["numbers"])),
    ]


@pytest.fixture(scope="module")
def run(backbone, tasks):
    usual = {**FAST, "eval_strategy": "steps", "eval_steps": 5, "max_steps": 16}

    def run(output, *, resume=False, overwrite=False, method=LORA, chosen=None, **changes):
        settings = {**usual, **changes}
        return tune_tasks(
            backbone, chosen or tasks, method=method, output=output, resume=resume, overwrite=overwrite, **settings
        )

    return run


@pytest.fixture(scope="module")
def whole(run, tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole") / "a"
    adapters = run(folder)
    return folder, adapters


# Sampling


def test_shares_are_the_sizes_to_the_power_of_one_over_the_temperature():
    sizes = [392702, 8551, 2490]
    for temperature in (1.0, 2.0, 10.0):
        powers = [size ** (1 / temperature) for size in sizes]
        assert task_shares(sizes, temperature) == pytest.approx([p / sum(powers) for p in powers], rel=1e-12)
    assert task_shares(sizes, 1e9) == pytest.approx([1 / 3] * 3, abs=1e-6)


@pytest.mark.parametrize("temperature", [0.05, 0.5, 1.0, 3.0, 10.0, 1e6])
def test_rows_of_an_epoch_add_up_and_are_near_the_shares(temperature):
    sizes = [1, 7, 97, 1000]
    rows = task_rows(sizes, temperature)
    assert sum(rows) == sum(sizes)
    assert min(rows) >= 1
    if temperature == 1:
        assert rows == sizes
    for own, share in zip(rows, task_shares(sizes, temperature), strict=True):
        assert abs(own - share * sum(sizes)) <= 3


@pytest.mark.parametrize("by_length", [True, False])
def test_an_epoch_has_each_task_as_often_as_it_should_and_depends_on_seed_and_epoch_only(by_length):
    lengths = [[5] * 30, [9, 4, 6]]
    batches = Mixture(lengths, [20, 13], 8, by_length=by_length, seed=3)
    first = list(batches)
    assert len(first) == len(batches) == 5
    assert {len(batch) for batch in first} == {8, 1}
    counts = Counter(row for batch in first for row in batch)
    assert sum(counts[row] for row in range(30)) == 20
    assert max(counts[row] for row in range(30)) == 1
    assert sorted(counts[row] for row in (30, 31, 32)) == [4, 4, 5]
    assert list(batches) == first
    batches.set_epoch(1)
    assert list(batches) != first
    assert list(Mixture(lengths, [20, 13], 8, by_length=by_length, seed=4)) != first


def test_at_temperature_1_an_epoch_has_every_row_once():
    lengths = [[5] * 30, [9, 4, 6]]
    batches = Mixture(lengths, task_rows([30, 3], 1.0), 8, by_length=True, seed=0)
    assert sorted(row for batch in batches for row in batch) == list(range(33))


# What is shared


def test_adapters_share_the_very_parameters_and_one_pass():
    backbone = make_backbone("bert", dtype=torch.float64)
    model = AdaptedModel(backbone)
    model.add("a", make_adapter(backbone, LORA, trained=True, seed=1), trainable=True)
    model.add("b", make_adapter(backbone, LORA, trained=True, seed=2, num_labels=2), trainable=True, shares="a")
    a, b = model.in_training("a"), model.in_training("b")
    for name, tensor in a.tensors().items():
        assert (tensor is b.tensors()[name]) == (not name.startswith("head."))
    assert b.acts_as is a
    memory = model.memory().adapters
    assert memory["b"] == 4 * sum(tensor.numel() for name, tensor in b.tensors().items() if name.startswith("head."))
    assert memory["a"] == 4 * sum(tensor.numel() for tensor in a.tensors().values())
    heads = {name for name in a.tensors() if name.startswith("head.")}
    assert len(list(model.parameters())) - len(list(backbone.model.parameters())) == len(a.tensors()) + len(heads)
    # As two adapters with the same numbers.
    other = AdaptedModel(make_backbone("bert", dtype=torch.float64), {n: model.adapter(n) for n in "ab"})
    batch = {"input_ids": torch.arange(5, 45).view(4, 10)}
    expected = other(**batch, adapters=["b", "a", "b", "b"]).rows
    for row, own in zip(model(**batch, adapters=["b", "a", "b", "b"]).rows, expected, strict=True):
        close(row, own)


@pytest.mark.parametrize("name", sorted(SAMPLES))
def test_every_method_can_be_shared_by_tasks(name):
    method = SAMPLES[name]
    backbone = make_backbone("bert", dtype=torch.float64)
    model = AdaptedModel(backbone)
    for i, task in enumerate("abc"):
        adapter = make_adapter(backbone, method, trained=True, seed=i, num_labels=2 + i % 2)
        model.add(task, adapter, trainable=True, shares=None if i == 0 else "a")
    model.train()
    batch = {"input_ids": torch.arange(5, 65).view(6, 10)}
    labels = {"a": torch.tensor([0, 1]), "b": torch.tensor([2, 0, 1]), "c": torch.tensor([1])}
    torch.manual_seed(0)
    output = model(**batch, adapters=["a", "b", "b", "c", "a", "b"], labels=labels)
    output.loss.backward()
    assert torch.isfinite(output.loss)
    for parameter in model.trained.parameters():
        assert parameter.grad is None or torch.isfinite(parameter.grad).all()


@pytest.mark.parametrize("method", [LORA, Houlsby(bottleneck=4), FullFineTuning()], ids=lambda m: m.name)
def test_gradients_are_the_sums_of_those_of_adapters_apart(method):
    backbone = make_backbone("bert", dtype=torch.float64)
    apart, together = AdaptedModel(backbone), None
    adapters = {n: make_adapter(backbone, method, trained=True, seed=7, num_labels=2 + (n == "b")) for n in "ab"}
    for name, adapter in adapters.items():
        apart.add(name, adapter, trainable=True)
    call = {
        "input_ids": torch.arange(5, 55).view(5, 10),
        "adapters": ["a", "b", "b", "a", "b"],
        "labels": {"a": torch.tensor([0, 1]), "b": torch.tensor([2, 0, 1])},
    }
    apart(**call).loss.backward()
    gradients = {n: {k: p.grad for k, p in apart.in_training(n).tensors().items()} for n in "ab"}
    apart.detach()
    together = AdaptedModel(backbone)
    together.add("a", adapters["a"], trainable=True)
    together.add("b", adapters["b"], trainable=True, shares="a")
    together(**call).loss.backward()
    largest = max(float(p.abs().max()) for own in gradients.values() for p in own.values())
    for name in "ab":
        for key, tensor in together.in_training(name).tensors().items():
            own = gradients[name][key]
            expected = own if key.startswith("head.") else gradients["a"][key] + gradients["b"][key]
            # Heads compute in float32; of some parameters, what they hand on is rounding only.
            close(tensor.grad, expected, precision=torch.float32, scale=largest, what=key)


def test_adapters_that_cannot_share_are_refused():
    backbone = make_backbone("bert")
    model = AdaptedModel(backbone)
    model.add("a", make_adapter(backbone, LORA), trainable=True)
    with pytest.raises(AdapterError, match="cannot share parameters"):
        model.add("b", make_adapter(backbone, LoRA(rank=3)), trainable=True, shares="a")
    with pytest.raises(AdapterError, match="trainable=True"):
        model.add("b", make_adapter(backbone, LORA), shares="a")
    with pytest.raises(AdapterError, match="no adapter is named"):
        model.add("b", make_adapter(backbone, LORA), trainable=True, shares="c")
    assert list(model.residents) == ["a"]


def test_a_parameter_of_two_trees_is_one():
    first = ParameterTree({"a.b": torch.zeros(2)})
    second = ParameterTree({"x.b": first.by_name()["a.b"]})
    assert second.by_name()["x.b"] is first.by_name()["a.b"]
    assert Parameter(shape=(1,), init=zeros, group="head").of_each_task
    assert not Parameter(shape=(1,), init=zeros).of_each_task


# A run


def test_one_adapter_for_all_tasks_with_a_head_of_each(whole, backbone):
    folder, adapters = whole
    assert names_in(folder) == ["log.jsonl", "numbers", "pairs", "recipe.yaml", "tasks.json", "words"]
    first = adapters["words"]
    for name, adapter in adapters.items():
        loaded = Adapter.load(folder / name)
        assert loaded.digest == adapter.digest
        assert loaded.task.name == name
        for key, tensor in loaded.tensors.items():
            if not key.startswith("head."):
                assert torch.equal(tensor, first.tensors[key])
        assert evaluate(loaded, backbone=backbone) == pytest.approx(
            {k: v for k, v in adapter.metrics["validation"].items() if k != "loss"}, rel=1e-5
        )
    assert adapters["words"].metrics["validation"]["accuracy"] > 0.8
    about = read_tasks_file(folder)
    assert list(about.tasks) == ["words", "pairs", "numbers"]
    sizes = [entry.rows for entry in about.tasks.values()]
    assert [entry.share for entry in about.tasks.values()] == task_shares(sizes, 10.0)
    assert about.shared_parameters == sum(t.numel() for n, t in first.tensors.items() if not n.startswith("head."))
    main = [METRICS[e.metric].goodness(e.metrics["validation"][e.metric]) for e in about.tasks.values()]
    assert about.score == pytest.approx(sum(main) / 3)
    assert read_tasks_folder(folder).keys() == adapters.keys()


def test_the_folder_serves_a_mixed_batch(whole, backbone):
    folder, adapters = whole
    with_all = AdaptedModel(backbone, {name: folder / name for name in adapters})
    found = with_all.predict(
        ["one good two", ("three bad", "mild"), "mild one"], adapters=["words", "pairs", "numbers"]
    )
    assert found[0].label in ("positive", "negative")
    assert isinstance(found[2].label, float)
    with_all.detach()


def test_the_checkpoint_is_chosen_by_the_mean_score(whole):
    folder, _ = whole
    log = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    scored = [row["eval_score"] for row in log if "eval_score" in row]
    assert len(scored) == 4
    assert read_tasks_file(folder).score == pytest.approx(max(scored))


def test_goodness_is_one_scale():
    assert METRICS["bleu"].goodness(50.0) == 0.5
    assert METRICS["accuracy"].goodness(0.25) == 0.25
    assert METRICS["mse"].goodness(0.0) == 1.0
    assert METRICS["loss"].goodness(3.0) == 0.25


def test_the_recipe_makes_the_same_again(whole, backbone, tmp_path):
    folder, _ = whole
    recipe = MultiTaskRecipe.from_yaml(folder / "recipe.yaml")
    tune_multi_task_recipe(recipe, output=tmp_path / "again", backbone=backbone)
    assert contents(tmp_path / "again") == contents(folder)


def test_the_recipe_has_nothing_of_one_task_alone(whole):
    said = read_yaml(whole[0] / "recipe.yaml")
    assert {"tasks", "train", "method", "backbone"} <= said.keys()
    assert not {"task", "trained_with", "generated_by", "consolidated_with"} & said.keys()


def test_the_recipe_of_one_of_the_tasks_is_not_run_alone(whole, backbone, tmp_path):
    from graftwork.training import Recipe, tune_recipe

    folder, _ = whole
    with pytest.raises(RecipeError, match="trained together with words, numbers"):
        tune_recipe(Recipe.from_yaml(folder / "pairs" / "recipe.yaml"), output=tmp_path / "b", backbone=backbone)


def test_tasks_of_one_kind_learn_as_much_as_alone(backbone, data, tmp_path):
    twin = write_csv(tmp_path / "twin.csv", make_rows("classes", seed=5))
    chosen = [Task(name=n, text="text", data=str(f)) for n, f in (("one", data["classes"]), ("two", twin))]
    found = tune_tasks(backbone, chosen, method=LORA, **FAST)
    assert all(adapter.metrics["validation"]["accuracy"] > 0.9 for adapter in found.values())


def test_a_step_is_the_mean_over_its_rows(run, monkeypatch, tmp_path):
    """Two batches of 8 in a step are one of 16: the losses of tasks are means over the step, by their shares."""
    losses = {}
    monkeypatch.setattr(F, "dropout", lambda x, *_, **__: x)

    def noted(size):
        plain = MultiTaskTrainer.training_step

        def training_step(self, model, inputs, num_items_in_batch=None):
            loss = plain(self, model, inputs, num_items_in_batch)
            losses.setdefault(size, []).append(float(loss))
            return loss

        return training_step

    usual = {"max_steps": 1, "eval_steps": 1, "train_sampling_strategy": "random"}
    for size, steps in ((16, 1), (8, 2)):
        with monkeypatch.context() as patch:
            patch.setattr(MultiTaskTrainer, "training_step", noted(size))
            run(None, per_device_train_batch_size=size, gradient_accumulation_steps=steps, **usual)
    [joined] = losses[16]
    assert len(losses[8]) == 2
    assert sum(losses[8]) == pytest.approx(joined, rel=1e-4)


def test_a_weight_scales_a_tasks_loss(run, monkeypatch):
    found = []
    monkeypatch.setattr(F, "dropout", lambda x, *_, **__: x)

    def keep(self, model, inputs, num_items_in_batch=None):
        loss = self.compute_loss(model, self._prepare_inputs(inputs), num_items_in_batch=num_items_in_batch)
        found.append({"loss": float(loss.detach()), "items": num_items_in_batch})
        loss.backward()
        return loss.detach()

    monkeypatch.setattr(MultiTaskTrainer, "training_step", keep)
    usual = {"max_steps": 1, "eval_steps": 1}
    run(None, **usual)
    run(None, task_weights={"words": 3.0, "numbers": 0.5}, **usual)
    run(None, task_weights={"words": 1e-9, "numbers": 1e-9}, **usual)
    run(None, task_weights={"pairs": 1e-9, "numbers": 1e-9}, **usual)
    plain, weighted, pairs, words = found
    assert math.isclose(sum(plain["items"].shares.values()), 1.0)
    numbers = plain["loss"] - pairs["loss"] - words["loss"]
    assert numbers > 0.01
    expected = 3 * words["loss"] + pairs["loss"] + numbers / 2
    assert weighted["loss"] == pytest.approx(expected, rel=1e-5)


# Killed and resumed


@pytest.mark.parametrize("step", [3, 8, 15, 16])
def test_killed_run_resumes_to_the_same_bytes(run, whole, tmp_path, step):
    with killed(at_step(step)):
        run(tmp_path / "a")
    assert names_in(tmp_path) == [".a.tuning"]
    run(tmp_path / "a", resume=True)
    assert contents(tmp_path / "a") == contents(whole[0])
    assert names_in(tmp_path) == ["a"]


def test_a_finished_run_is_not_trained_again(run, whole, tmp_path, monkeypatch):
    shutil.copytree(whole[0], tmp_path / "a")
    monkeypatch.setattr(MultiTaskTrainer, "train", None)
    found = run(tmp_path / "a", resume=True)
    assert {n: a.digest for n, a in found.items()} == {n: a.digest for n, a in whole[1].items()}
    with pytest.raises(RecipeError, match=r"learning_rate was 0.01, is 0.5"):
        run(tmp_path / "a", resume=True, learning_rate=0.5)


def test_other_tasks_are_not_resumed(run, tasks, tmp_path):
    with killed(at_step(8)):
        run(tmp_path / "a")
    before = contents(tmp_path / ".a.tuning")
    for chosen in (tasks[:2], tasks[::-1]):
        with pytest.raises(RecipeError, match="was started with words, pairs, numbers, and now there are"):
            run(tmp_path / "a", resume=True, chosen=chosen)
    with pytest.raises(RecipeError, match=r"sampling_temperature was 10.0, is 1.0"):
        run(tmp_path / "a", resume=True, sampling_temperature=1.0)
    assert contents(tmp_path / ".a.tuning") == before


def test_outputs_of_another_kind_are_not_overwritten(run, whole, backbone, tasks, tmp_path):
    tune(backbone, task=tasks[0], method=LORA, output=tmp_path / "one", **{**FAST, "max_steps": 1})
    with pytest.raises(OutputError, match=r"is not a folder with tasks.json"):
        run(tmp_path / "one", overwrite=True)
    shutil.copytree(whole[0], tmp_path / "a")
    with pytest.raises(OutputError, match="exists already"):
        run(tmp_path / "a")
    with pytest.raises(OutputError, match="is not an adapter's folder"):
        tune(backbone, task=tasks[0], method=LORA, output=tmp_path / "a", overwrite=True, **FAST)
    run(tmp_path / "a", overwrite=True, max_steps=1, eval_steps=1)
    assert read_tasks_file(tmp_path / "a").tasks.keys() == {"words", "pairs", "numbers"}


def test_a_damaged_folder_is_refused(whole, tmp_path):
    shutil.copytree(whole[0], tmp_path / "a")
    shutil.rmtree(tmp_path / "a" / "words")
    shutil.copytree(tmp_path / "a" / "pairs", tmp_path / "a" / "words")
    with pytest.raises(AdapterError, match="another adapter than"):
        read_tasks_folder(tmp_path / "a")
    (tmp_path / "a" / "tasks.json").write_text("{}")
    with pytest.raises(AdapterError, match="key 'method' is missing"):
        read_tasks_folder(tmp_path / "a")
    with pytest.raises(AdapterError, match="cannot be read"):
        read_tasks_folder(tmp_path)


# What is refused


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"task_weights": {"wordz": 2.0}}, r"weight for 'wordz'(.|\n)*words"),
        ({"task_weights": {"words": 0.0}}, "expected a number above 0"),
        ({"sampling_temperature": 0}, "sampling_temperature=0: expected a number above 0"),
        ({"sampling_temperature": float("inf")}, "sampling_temperature"),
        ({"prefix_cache": "on"}, r"prefix cache(.|\n)*--train.prefix_cache"),
        ({"torch_compile": True}, r"compiled layers(.|\n)*--train.torch_compile"),
        ({"tokens_per_batch": 400}, r"number of rows(.|\n)*--train.tokens_per_batch"),
        ({"learning_rat": 0.1}, "unknown key 'train.learning_rat'"),
    ],
)
def test_settings_that_cannot_be(run, changes, said):
    with pytest.raises(RecipeError, match=said):
        run(None, **changes)


@pytest.mark.parametrize(
    ("section", "value"), [("start", "somewhere"), ("distill", {"teachers": ["somewhere"], "alpha": 1.0})]
)
def test_sections_that_would_do_nothing(whole, backbone, section, value, tmp_path):
    recipe = MultiTaskRecipe.parse({**read_yaml(whole[0] / "recipe.yaml"), section: value})
    with pytest.raises(RecipeError, match=rf"tasks that train one adapter(.|\n)*{section}") as caught:
        tune_multi_task_recipe(recipe, backbone=backbone, output=tmp_path / "a")
    assert caught.value.change == section
    assert names_in(tmp_path) == []


def test_tasks_that_cannot_be(run, backbone, tasks, tmp_path):
    with pytest.raises(RecipeError, match=r"two tasks named 'words'(.|\n)*--task"):
        run(None, chosen=[tasks[0], tasks[0]])
    with pytest.raises(RecipeError, match="has only 'words'"):
        run(None, chosen=tasks[:1])
    with pytest.raises(RecipeError, match="has none"):
        MultiTaskRecipe.parse({"tasks": []})
    with pytest.raises(RecipeError, match="tasks is 'words'"):
        tune_tasks(backbone, "words")
    with pytest.raises(RecipeError, match="cannot be a folder's name"):
        run(None, chosen=[tasks[0], tasks[1].override(name="tasks.json")])
    with pytest.raises(RecipeError, match="cannot be a folder's name"):
        run(None, chosen=[tasks[0], tasks[1].override(name="shared.safetensors")])
    with pytest.raises(RecipeError, match="both task and tasks"):
        MultiTaskRecipe.parse({"task": "rte", "tasks": ["rte", "cola"]})
    with pytest.raises(GraftworkError, match="cannot be resumed"):
        run(None, resume=True)


@pytest.fixture(scope="module")
def mixed(data, kinds_data):
    """Tasks whose inputs are of different shapes: texts, words with tags, and questions with choices."""
    return [
        Task(name="words", text="text", data=str(data["classes"])),
        Task(name="tags", kind="token-classification", text="words", label="tags", data=str(kinds_data["tags"])),
        Task(
            name="choices",
            kind="multiple-choice",
            text="question",
            choices=("choices",),
            data=str(kinds_data["choices"]),
        ),
    ]


def test_tasks_of_different_kinds_share_an_adapter(backbone, mixed, tmp_path):
    usual = {**FAST, "eval_strategy": "steps", "eval_steps": 3, "max_steps": 6}
    tune_tasks(backbone, mixed, method=Houlsby(bottleneck=4), output=tmp_path / "whole", **usual)
    with killed(at_step(5)):
        tune_tasks(backbone, mixed, method=Houlsby(bottleneck=4), output=tmp_path / "a", **usual)
    found = tune_tasks(backbone, mixed, method=Houlsby(bottleneck=4), output=tmp_path / "a", resume=True, **usual)
    assert contents(tmp_path / "a") == contents(tmp_path / "whole")
    for name, adapter in found.items():
        for key, tensor in adapter.tensors.items():
            if not key.startswith("head."):
                assert torch.equal(tensor, found["words"].tensors[key]), name


def test_tasks_whose_heads_read_other_layers_are_refused(backbone, mixed):
    with pytest.raises(
        RecipeError, match=r"tasks 'words' and 'tags' cannot train one adapter(.|\n)*--task, or --method"
    ):
        tune_tasks(backbone, mixed, method=FullFineTuning(), pooling="pooler", **FAST)


def test_tasks_whose_heads_read_other_layers_cannot_share():
    # Full fine-tuning trains the pooler where a head reads it.
    model = AdaptedModel(make_backbone("bert"))
    model.add("a", make_adapter(model.backbone, FullFineTuning(), pooling="pooler"), trainable=True)
    with pytest.raises(AdapterError, match=r"cannot share parameters(.|\n)*heads that read the same layers"):
        model.add("b", make_adapter(model.backbone, FullFineTuning(), pooling="mean"), trainable=True, shares="a")


def test_head_only_has_nothing_in_common_and_still_works(run):
    found = run(None, method=HeadOnly(), max_steps=2, eval_steps=1)
    assert set(found) == {"words", "pairs", "numbers"}
