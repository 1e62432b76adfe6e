"""A pool of adapters: tasks come one after another, none is read again, and a process may be killed at any write."""

import contextlib
import itertools
import json
import os
import random
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny import make_adapter
from tiny import make_backbone as make_tiny
from training.workbench import FAST, KilledError, contents, write_csv

from graftwork import AdaptedModel, Adapter, Backbone, Fuse, LoRA, Pool, Task, evaluate, tune
from graftwork.combine import adding
from graftwork.combine.heads import one_of, several
from graftwork.combine.poolfile import PoolTask
from graftwork.combine.selecting import outputs_of, vectors_of
from graftwork.combine.transferability import leep, transrate
from graftwork.errors import AdapterError, InProgressError, InterruptedRunError, MethodError, RecipeError
from graftwork.folders import HeldFolder
from graftwork.heads import States
from graftwork.kinds.several_tasks import SeveralHeads
from graftwork.methods import IA3, AdaMix, BiHNet, FeatureExtraction, FullFineTuning, Houlsby, PrefixTuning, Union
from graftwork.tasks import load

METHOD = LoRA(rank=4)
TRAIN = {**FAST, "num_train_epochs": 4}

WORDS = {"a": ("good", "bad"), "b": ("one", "two"), "c": ("seven", "eight")}
"""Which words decide the two classes of a task."""


def rows_of(name, count=100, seed=0):
    """Rows with a word of each task in a random place, of which the task's own decides: texts of one task say something
    of all of them."""
    source = random.Random(f"{name} {seed}")
    found = []
    for i in range(count):
        chosen = {other: source.randrange(2) for other in WORDS} | {name: i % 2}
        words = [WORDS[other][place] for other, place in chosen.items()] + source.sample(["three", "four", "five"], 2)
        source.shuffle(words)
        found.append({"text": " ".join(words), "label": f"{name}{i % 2}"})
    return found


def task_of(folder, name, count=100):
    return Task(name=name, text="text", data=str(write_csv(folder / f"{name}.csv", rows_of(name, count))))


@pytest.fixture(scope="module")
def tasks(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tasks")
    return {name: task_of(folder, name) for name in WORDS}


def add_all(pool, tasks, names="abc", **training):
    return [pool.add(tasks[name], **{**TRAIN, **training}) for name in names]


@pytest.fixture(scope="module")
def filled(backbone, tasks, tmp_path_factory):
    """A pool of one adapter with three tasks."""
    folder = tmp_path_factory.mktemp("filled") / "pool"
    pool = Pool(folder, backbone=backbone, capacity=1, method=METHOD, student_epochs=12)
    add_all(pool, tasks)
    return folder


# Heads


def adapters_of(backbone, sizes=(3, 2)):
    return [
        make_adapter(backbone, METHOD, trained=True, seed=i, num_labels=size, pooling="first")
        for i, size in enumerate(sizes)
    ]


def test_several_heads_say_what_each_says():
    backbone = make_tiny("bert", tokenizer=True)
    one, two = adapters_of(backbone)
    number = make_adapter(backbone, METHOD, trained=True, seed=5, kind="regression", pooling="mean")
    joined = several(one, [one, two, number])
    assert isinstance(joined.head, SeveralHeads)
    inputs = ["the film is good", "a man sleeps", "bad"]
    said = outputs_of(joined, backbone, one.task, inputs)
    alone = [replace(own, tensors={**one.tensors, **heads(own)}) for own in (one, two, number)]
    model = AdaptedModel(backbone, dict(zip("abc", alone, strict=True)))
    expected = torch.cat([model.logits(inputs, name) for name in "abc"], dim=-1)
    model.detach()
    torch.testing.assert_close(said, expected)
    for place, own in enumerate(alone):
        back = one_of(joined, place, PoolTask(member=0, identity=own.task))
        assert back.head == own.head
        assert back.tensors.keys() == own.tensors.keys()
        assert all(torch.equal(back.tensors[name], own.tensors[name]) for name in own.tensors)


def heads(adapter):
    return {name: tensor for name, tensor in adapter.tensors.items() if name.startswith("head.")}


def test_the_loss_is_the_mean_over_all_outputs():
    backbone = make_tiny("bert")
    head = several(adapters_of(backbone)[0], adapters_of(backbone)).head
    random = np.random.RandomState(0)
    s, t = random.normal(size=(4, 5)), random.normal(size=(4, 5))
    target = np.concatenate([own - own.mean(axis=1, keepdims=True) for own in (t[:, :3], t[:, 3:])], axis=1)
    found = head.targets(torch.tensor(t))
    np.testing.assert_allclose(found.numpy(), target, rtol=1e-12, atol=1e-12)
    loss = head.loss(torch.tensor(s), found, States(), {})
    assert loss.item() == pytest.approx(((s - target) ** 2).mean(), rel=1e-12)
    counts = head.step_counts([{"labels": found}])
    halves = [head.loss(torch.tensor(s[own]), found[own], States(), {}, counts) for own in (slice(0, 1), slice(1, 4))]
    assert sum(halves).item() == pytest.approx(loss.item(), rel=1e-12)


def test_a_number_is_not_centred_and_is_standardised():
    backbone = make_tiny("bert")
    number = make_adapter(backbone, METHOD, kind="regression", pooling="first")
    fitted = replace(number, head=number.head.fitted([1.0, 3.0, 11.0]))
    head = several(number, [adapters_of(backbone)[1], fitted]).head
    t = torch.tensor([[1.0, 3.0, 7.0]], dtype=torch.float64)
    assert head.targets(t).tolist() == [[-1.0, 1.0, 7.0]]
    deviation = np.std([1.0, 3.0, 11.0])
    loss = head.loss(torch.tensor([[-1.0, 1.0, 9.0]], dtype=torch.float64), head.targets(t), States(), {})
    assert loss.item() == pytest.approx((2 / deviation) ** 2 / 3)


def test_an_adapter_with_several_heads_saves_and_loads(tmp_path):
    backbone = make_tiny("bert")
    joined = several(adapters_of(backbone)[0], adapters_of(backbone))
    joined.save(tmp_path / "a")
    loaded = Adapter.load(tmp_path / "a")
    assert loaded.head == joined.head
    assert loaded.digest == joined.digest
    loaded.check(backbone)


# Adding


def test_tasks_with_room_are_those_that_tune_makes(backbone, tasks, tmp_path):
    pool = Pool(tmp_path / "pool", backbone=backbone, capacity=2, method=METHOD)
    [first] = add_all(pool, tasks, "a", max_steps=3)
    alone = tune(backbone, task=tasks["a"], method=METHOD, **{**TRAIN, "max_steps": 3})
    own = pool.adapter("a")
    assert own.digest == alone.digest
    assert own.metrics == alone.metrics
    assert (first.member, first.consolidated) == (0, False)
    assert pool.tasks == ("a",)
    model = AdaptedModel(backbone, {"a": alone})
    expected = model.predict(["one good two"], "a")
    model.detach()
    assert pool.predict(["one good two"], "a") == expected


def test_three_tasks_in_one_adapter_are_all_known(backbone, tasks, filled):
    pool = Pool(filled, backbone=backbone)
    assert pool.members == [("a", "b", "c")]
    # An adapter that is merely tuned on knows the last one; chance is 0.5.
    scores = {name: evaluate(pool.adapter(name), backbone=backbone, split="train")["accuracy"] for name in "abc"}
    assert min(scores.values()) > 0.8, scores
    for step in pool.history[1:]:
        assert step.consolidated
        assert step.examples == 90
        assert {*step.agreement} == {*"abc"[: "abc".index(step.task)]}
    assert evaluate(pool.adapter("c"), backbone=backbone) == pytest.approx(pool.history[-1].after)


def test_bytes_grow_by_heads_alone(backbone, filled):
    pool = Pool(filled, backbone=backbone)
    sizes = [step.nbytes for step in pool.history]
    assert sizes[-1] == pool.nbytes
    body = sum(tensor.nbytes for name, tensor in pool.adapter("a").tensors.items() if not name.startswith("head."))
    head = sum(tensor.nbytes for tensor in heads(pool.adapter("a")).values())
    # Names of tensors stand in the file as well.
    assert all(head <= after - before < head + 400 < body for before, after in itertools.pairwise(sizes))
    assert len([*(filled / "adapters").iterdir()]) == 1


def test_a_budget_bounds_the_memory_of_all_tasks(backbone, filled):
    pool = Pool(filled, backbone=backbone)
    model = pool.model()
    expected = [model.predict(["one good two"], name) for name in "abc"]
    each = model.memory().adapters
    model.detach()
    assert each.keys() == {*"abc"}
    budget = 2 * max(each.values())
    model = pool.model(budget=budget)
    assert [model.predict(["one good two"], name) for name in "abc"] == expected
    assert model.memory().total <= budget
    model.detach()


def test_no_data_of_earlier_tasks_are_read(backbone, tmp_path):
    tasks = {name: task_of(tmp_path / "data", name, 40) for name in "abc"}
    pool = Pool(tmp_path / "pool", backbone=backbone, capacity=1, method=METHOD)
    for name in "abc":
        pool.add(tasks[name], **{**TRAIN, "max_steps": 3})
        (tmp_path / "data" / f"{name}.csv").unlink()
    again = Pool(tmp_path / "pool", backbone=backbone)
    assert again.tasks == ("a", "b", "c")
    assert again.predict(["one good two"], "a")[0].label in ("a0", "a1")
    texts = {row["text"] for name in "abc" for row in rows_of(name, 40)}
    kept = b"".join(contents(tmp_path / "pool").values()).decode("utf-8", errors="ignore")
    assert not [text for text in texts if text in kept], "no text of any task is kept"


def test_the_same_tasks_make_the_same_bytes(backbone, tasks, filled, tmp_path):
    pool = Pool(tmp_path / "pool", backbone=backbone, capacity=1, method=METHOD, student_epochs=12)
    add_all(pool, tasks, "ab")
    again = [Pool(tmp_path / "pool", backbone=backbone).history, Pool(filled, backbone=backbone).history[:2]]
    assert again[0] == again[1]


# Choosing


@pytest.mark.parametrize("selection", ["transrate", "leep"])
def test_the_member_with_the_highest_score_is_chosen(backbone, tasks, tmp_path, selection):
    pool = Pool(tmp_path / "pool", backbone=backbone, capacity=2, method=METHOD, selection=selection, examples=50)
    add_all(pool, tasks, "ab", max_steps=3)
    before = [several(own, [own]) for own in (pool.adapter("a"), pool.adapter("b"))]
    [step] = add_all(pool, tasks, "c", max_steps=3)
    new = tune(backbone, task=tasks["c"], method=METHOD, **{**TRAIN, "max_steps": 3})
    inputs, labels = adding.examples_of(tasks["c"], load(tasks["c"]).train, pool.settings)
    assert len(inputs) == 50
    for place, own in enumerate(before):
        if selection == "leep":
            said = outputs_of(own, backbone, new.task, inputs).double().softmax(-1).numpy()
            expected = leep(said, np.array(labels))
        else:
            expected = transrate(vectors_of(own, backbone, new.task, new.head, inputs).numpy(), np.array(labels))
        assert step.transferability[place] == pytest.approx(expected, rel=1e-9)
    assert step.member == max(step.transferability, key=step.transferability.get)
    assert pool.members[step.member][-1] == "c"


def test_members_at_random_are_drawn_by_the_seed(backbone, tasks, tmp_path):
    def member(seed):
        pool = Pool(tmp_path / f"{seed}", backbone=backbone, capacity=2, method=METHOD, selection="random", seed=seed)
        steps = [pool.add(tasks[name], **{**TRAIN, "max_steps": 2}) for name in "abc"]
        assert steps[-1].transferability == {}
        return steps[-1].member

    found = {seed: member(seed) for seed in range(4)}
    assert {*found.values()} == {0, 1}
    shutil.rmtree(tmp_path / "0")
    assert member(0) == found[0]


def test_one_adapter_tuned_on_forgets(backbone, tasks, filled, tmp_path):
    pool = Pool(tmp_path / "pool", backbone=backbone, capacity=1, method=METHOD, consolidation="sequential")
    add_all(pool, tasks, num_train_epochs=6, learning_rate=0.005)  # at twice the rate some tasks are not learned at all
    assert pool.members == [("a", "b", "c")]
    consolidated = Pool(filled, backbone=backbone)

    def mean(own):
        return np.mean([evaluate(own.adapter(n), backbone=backbone, split="train")["accuracy"] for n in "abc"])

    assert evaluate(pool.adapter("c"), backbone=backbone, split="train")["accuracy"] > 0.8
    assert mean(pool) < mean(consolidated)


def test_one_adapter_is_tuned_on_with_the_method_that_it_was_finished_with(backbone, tasks, tmp_path, monkeypatch):
    tuned = []
    plain = adding.tune_recipe

    def noted(recipe, **options):
        start = None if recipe.start is None else recipe.start.adapter()
        tuned.append((start, plain(recipe, **options)))
        return tuned[-1][1]

    monkeypatch.setattr(adding, "tune_recipe", noted)
    pool = Pool(
        tmp_path / "pool", backbone=backbone, capacity=1, method=AdaMix(bottleneck=4), consolidation="sequential"
    )
    rates = {"learning_rate": 1e-9, "head_learning_rate": 1e-9}
    for name in "ab":
        pool.add(tasks[name], **{**TRAIN, "max_steps": 1, **rates})
    (_, first), _, (start, on) = tuned
    assert on.method == first.method
    for name in {name for name in first.tensors if not name.startswith("head.")}:
        assert torch.equal(start.tensors[name], first.tensors[name])
        torch.testing.assert_close(on.tensors[name], first.tensors[name], rtol=1e-4, atol=1e-5)


def test_without_a_capacity_each_task_has_its_own(backbone, tasks, tmp_path):
    pool = Pool(tmp_path / "pool", backbone=backbone, method=METHOD)
    for name in "abc":
        pool.add(tasks[name], **{**TRAIN, "max_steps": 2})
    assert pool.members == [("a",), ("b",), ("c",)]


def test_a_number_and_several_labels_are_consolidated(backbone, tasks, data, tmp_path):
    numbers = Task(name="n", kind="regression", text="text", data=str(data["numbers"]))
    pool = Pool(tmp_path / "pool", backbone=backbone, capacity=1, method=METHOD, selection="random", student_epochs=30)
    add_all(pool, tasks, "a")
    step = pool.add(numbers, **TRAIN)
    assert step.after["r2"] > 0.5
    assert evaluate(pool.adapter("a"), backbone=backbone, split="train")["accuracy"] > 0.7
    assert pool.predict(["one good two"], "n")[0].label > 0


# Killed


@pytest.fixture
def untuned(monkeypatch):
    """What is refused is refused before anything is tuned."""
    monkeypatch.setattr(adding, "tune_recipe", lambda *_, **__: pytest.fail("tuned"))


@pytest.fixture
def prepared(backbone, tasks, monkeypatch):
    """Training that was done before: what is left of adding a task is what it writes to the pool."""
    made = {}

    def tuned(recipe, **options):
        key = recipe.model_dump_json(exclude={"start"}).replace(str(options["output"].parent), "")
        if key not in made:
            made[key] = plain(recipe, **{**options, "output": None, "resume": False})
        return made[key]

    plain = adding.tune_recipe
    monkeypatch.setattr(adding, "tune_recipe", tuned)


WRITES = ("replace", "rename", "mkdir", "unlink", "rmdir")
"""Functions of `os` by which folders change."""


class Deadly:
    """Kills at the n-th change of a folder."""

    def __init__(self, monkeypatch, number):
        self.left = number
        for name in WRITES:
            monkeypatch.setattr(os, name, self.counting(getattr(os, name)))
        monkeypatch.setattr(Path, "write_bytes", self.counting(Path.write_bytes, half=True))

    def counting(self, function, *, half=False):
        def counted(*arguments, **options):
            self.left -= 1
            if self.left == 0 and half:
                function(arguments[0], arguments[1][: len(arguments[1]) // 2])
            if self.left <= 0:  # a process that is killed tidies nothing up
                raise KilledError
            return function(*arguments, **options)

        return counted


def test_killed_at_each_write_the_pool_is_that_of_before_or_after(backbone, tasks, prepared, tmp_path):
    settings = {**TRAIN, "max_steps": 2}
    pool = Pool(tmp_path / "pool", backbone=backbone, capacity=1, method=METHOD)
    pool.add(tasks["a"], **settings)
    shutil.copytree(tmp_path / "pool", tmp_path / "before")
    pool.add(tasks["b"], **settings)
    before, after = (json.loads((tmp_path / name / "pool.json").read_text()) for name in ("before", "pool"))
    seen = []
    for number in range(1, 500):
        folder = tmp_path / "killed" / "pool"
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(tmp_path / "before", folder)
        own = Pool(folder, backbone=backbone)
        with pytest.MonkeyPatch.context() as patch:
            deadly = Deadly(patch, number)
            with contextlib.suppress(KilledError):
                own.add(tasks["b"], **settings)
        left = json.loads((folder / "pool.json").read_text())
        assert left in (before, after), number
        seen.append(left == after)
        again = Pool(folder, backbone=backbone)
        for name in again.tasks:
            again.adapter(name).check(backbone)
        if left == before:
            again.add(tasks["b"], **settings)
            assert json.loads((folder / "pool.json").read_text()) == after, number
            assert {path.name for path in folder.iterdir()} == {"pool.json", "adapters"}
            assert len([*(folder / "adapters").iterdir()]) == 1
        if deadly.left > 0:
            break
    assert not seen[0]
    assert seen[-1]
    assert sorted(seen) == seen, "it changes once, from before to after"
    assert len(seen) > 10


def test_killed_with_the_first_task(backbone, tasks, prepared, tmp_path):
    settings = {**TRAIN, "max_steps": 2}
    for number in range(1, 100):
        folder = tmp_path / f"{number}"
        with pytest.MonkeyPatch.context() as patch:
            pool = Pool(folder, backbone=backbone, capacity=1, method=METHOD)
            deadly = Deadly(patch, number)
            with contextlib.suppress(KilledError):
                pool.add(tasks["a"], **settings)
        again = Pool(folder, backbone=backbone, capacity=1, method=METHOD)
        if again.tasks == ():
            again.add(tasks["a"], **settings)
        assert Pool(folder).tasks == ("a",)
        if deadly.left > 0:
            break


def test_what_was_tuned_before_a_kill_is_not_tuned_again(backbone, tasks, tmp_path, monkeypatch):
    pool = Pool(tmp_path / "pool", backbone=backbone, capacity=1, method=METHOD)
    add_all(pool, tasks, "a", max_steps=3)
    with monkeypatch.context() as patch:
        patch.setattr(adding, "choose", lambda *_, **__: (_ for _ in ()).throw(KilledError))
        with pytest.raises(KilledError):
            add_all(pool, tasks, "b", max_steps=3)
    tuned = []
    plain = adding.tune_recipe

    def noted(recipe, **options):
        tuned.append((recipe.task["name"], options["resume"], (options["output"] / "adapter.json").exists()))
        return plain(recipe, **options)

    monkeypatch.setattr(adding, "tune_recipe", noted)
    add_all(Pool(tmp_path / "pool", backbone=backbone), tasks, "b", max_steps=3)
    assert tuned[0] == ("b", True, True)


def test_interrupted_by_the_keyboard(backbone, tasks, tmp_path, monkeypatch):
    from graftwork.training.trainer import AdapterTrainer

    settings = {**TRAIN, "eval_strategy": "steps", "eval_steps": 5}
    pool = Pool(tmp_path / "pool", backbone=backbone, capacity=1, method=METHOD)
    plain = AdapterTrainer.training_step

    def interrupt(self, *args, **kwargs):
        if self.state.global_step == 12:
            raise KeyboardInterrupt
        return plain(self, *args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(AdapterTrainer, "training_step", interrupt)
        with pytest.raises(InterruptedRunError, match=r"kept up to step 10; the pool is as it was") as stop:
            pool.add(tasks["a"], **settings)
    assert not stop.value.resumable, "there is no --resume to be advised"
    pool.add(tasks["a"], **settings)
    assert pool.adapter("a").digest == tune(backbone, task=tasks["a"], method=METHOD, **settings).digest


def test_a_pool_that_another_process_holds(backbone, tasks, tmp_path, untuned):
    pool = Pool(tmp_path / "pool", backbone=backbone, method=METHOD)
    held = HeldFolder.take(tmp_path / "pool" / adding.WORKING, "another one")
    with pytest.raises(InProgressError, match=r"in progress(.|\n)*change: the pool '.*pool', or wait") as error:
        pool.add(tasks["a"], **TRAIN)
    held.remove()
    assert "--output" not in str(error.value)


# What is refused


def test_a_capacity_below_one(backbone, tmp_path):
    for capacity in (0, -1, 1.5, True):
        with pytest.raises(RecipeError, match=r"capacity(.|\n)*--capacity"):
            Pool(tmp_path / "pool", backbone=backbone, capacity=capacity)
    assert not (tmp_path / "pool").exists()


def test_a_task_twice_and_one_that_is_not_there(backbone, tasks, filled):
    pool = Pool(filled, backbone=backbone)
    with pytest.raises(AdapterError, match="has the task 'a' already"):
        pool.add(tasks["a"], **TRAIN)
    with pytest.raises(AdapterError, match=r"no task 'd'(.|\n)*one of a, b, c"):
        pool.adapter("d")
    with pytest.raises(AdapterError, match="no task 'd'"):
        pool.predict(["one"], "d")


def test_another_backbone(filled, other_backbone_folder):
    other = Backbone.load(str(other_backbone_folder), dtype="float32", device="cpu")
    with pytest.raises(AdapterError, match="was made for backbone"):
        Pool(filled, backbone=other)


def test_other_settings_than_the_pool_has(backbone, filled):
    with pytest.raises(RecipeError, match=r"capacity is 1, and 2 is given(.|\n)*--capacity"):
        Pool(filled, backbone=backbone, capacity=2)
    with pytest.raises(RecipeError, match="method is"):
        Pool(filled, backbone=backbone, method="houlsby")
    with pytest.raises(RecipeError, match="selecton"):
        Pool(filled, backbone=backbone, selecton="leep")
    assert Pool(filled, backbone=backbone, capacity=1, method=METHOD).settings.capacity == 1


def test_tasks_that_cannot_be_consolidated(backbone, data, tasks, filled, tmp_path):
    pool = Pool(filled, backbone=backbone)
    tags = Task(name="tags", kind="token-classification", text="words", data=str(data["classes"]))
    with pytest.raises(MethodError, match="takes no task of kind token-classification"):
        pool.add(tags, **TRAIN)
    numbers = Task(name="n", kind="regression", text="text", data=str(data["numbers"]))
    two = Pool(tmp_path / "two", backbone=backbone, capacity=2, method=METHOD)
    for name in "ab":
        two.add(tasks[name], **{**TRAIN, "max_steps": 1})
    with pytest.raises(RecipeError, match=r"no single classes(.|\n)*--selection"):
        two.add(numbers, **{**TRAIN, "max_steps": 1})
    assert two.tasks == ("a", "b")
    mixed = Pool(tmp_path / "pool", backbone=backbone, capacity=1, method=FeatureExtraction())
    with pytest.raises(MethodError, match="cannot be consolidated"):
        mixed.add(tasks["a"], **{**TRAIN, "max_steps": 1})


def test_methods_that_cannot_take_in_tasks(backbone, tasks, tmp_path, untuned):
    with pytest.raises(MethodError, match=r"'bihnet': they are made from examples of one task(.|\n)*--method"):
        Pool(tmp_path / "pool", backbone=backbone, method=BiHNet())
    with pytest.raises(MethodError, match="'bihnet'"):
        Pool(tmp_path / "pool", backbone=backbone, method=Union(methods=[BiHNet(), LoRA()]))
    part = make_adapter(backbone, Houlsby(bottleneck=4), pooling="mean")
    with pytest.raises(MethodError, match=r"composed of finished ones, as part-of-it(.|\n)*--method"):
        Pool(tmp_path / "pool", backbone=backbone, method=Fuse(parts={"part-of-it": part}))
    with pytest.raises(MethodError, match=r"'feature-extraction', whose head(.|\n)*cannot be consolidated"):
        Pool(tmp_path / "pool", backbone=backbone, method=FeatureExtraction()).add(tasks["a"], **TRAIN)


def test_leep_with_a_member_without_classes(backbone, data, tasks, tmp_path, monkeypatch):
    numbers = Task(name="n", kind="regression", text="text", data=str(data["numbers"]))
    pool = Pool(tmp_path / "pool", backbone=backbone, capacity=2, method=METHOD, selection="leep")
    # Before the first one is tuned, too.
    for names in ("nab", "anb"):
        with pytest.raises(RecipeError, match=r"task 'b' by LEEP(.|\n)*adapter \d has none(.|\n)*--selection"):
            pool.missing([{**tasks, "n": numbers}[name] for name in names])
    pool.missing([tasks["a"], tasks["b"], tasks["c"]])
    pool.add(numbers, **{**TRAIN, "max_steps": 1})
    pool.add(tasks["a"], **{**TRAIN, "max_steps": 1})
    monkeypatch.setattr(adding, "tune_recipe", lambda *_, **__: pytest.fail("tuned"))
    with pytest.raises(RecipeError, match="adapter 0 has none"):
        pool.add(tasks["b"], **TRAIN)


def test_a_task_that_is_given_twice(backbone, tasks, tmp_path):
    pool = Pool(tmp_path / "pool", backbone=backbone, method=METHOD)
    with pytest.raises(AdapterError, match=r"task 'a' is given twice(.|\n)*--task"):
        pool.missing([tasks["a"], tasks["b"], tasks["a"]])


@pytest.mark.parametrize(
    "settings",
    [
        {"consolidation": "sequential", "student_epochs": 3},
        {"selection": "leep", "weighting": "equation"},
        {"selection": "random", "scaling": "trace"},
        {"capacity": None, "selection": "random"},
        {"capacity": None, "consolidation": "sequential"},
        {"capacity": None, "student_epochs": 3},
        {"capacity": None, "examples": 10},
    ],
    ids=lambda settings: " ".join(settings),
)
def test_settings_without_effect(backbone, tmp_path, settings):
    name = [*settings][-1]
    with pytest.raises(RecipeError, match=rf"{name}=.* would do nothing(.|\n)*--{name.replace('_', '-')}"):
        Pool(tmp_path / "pool", backbone=backbone, **{"capacity": 1, **settings})


@pytest.mark.parametrize("settings", [{}, {"consolidation": "sequential"}], ids=["distilled", "tuned on"])
def test_the_pool_knows_tasks_by_their_recipes(backbone, tasks, tmp_path, settings):
    pool = Pool(tmp_path / "pool", backbone=backbone, capacity=1, method=AdaMix(bottleneck=4), **settings)
    training = {**TRAIN, "max_steps": 1}
    assert not pool.has(tasks["a"], **training)
    for name in "ab":
        pool.add(tasks[name], **training)
    again = Pool(tmp_path / "pool", backbone=backbone)
    assert again.has(tasks["a"], **training)
    assert again.has(tasks["b"], **training)
    with pytest.raises(RecipeError, match=r"has the task 'b' already(.|\n)*max_steps was 1, is 2"):
        again.has(tasks["b"], **{**training, "max_steps": 2})
    with pytest.raises(RecipeError, match=r"task\.data was"):
        again.has(tasks["b"], data=tasks["a"].data, **training)


def test_what_is_no_pool(backbone, tmp_path):
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "file").write_text("x")
    with pytest.raises(AdapterError, match="is not a pool"):
        Pool(tmp_path / "other", backbone=backbone)
    (tmp_path / "other" / "pool.json").write_text('{"members": 3}')
    with pytest.raises(AdapterError, match="is damaged"):
        Pool(tmp_path / "other", backbone=backbone)
    (tmp_path / "other" / "pool.json").write_text('{"schema_version": 1, "members": []}')
    with pytest.raises(AdapterError, match=r"has schema version 1, which(.|\n)*schema version 2"):
        Pool(tmp_path / "other", backbone=backbone)


def test_a_member_that_is_another_adapter(backbone, filled, tmp_path):
    shutil.copytree(filled, tmp_path / "pool")
    [member] = (tmp_path / "pool" / "adapters").iterdir()
    adapter = Adapter.load(member)
    moved = replace(adapter, tensors={name: tensor + 1 for name, tensor in adapter.tensors.items()})
    moved.save(member, overwrite=True)
    with pytest.raises(AdapterError, match="holds another adapter"):
        Pool(tmp_path / "pool", backbone=backbone).adapter("a")


@pytest.mark.parametrize(
    "method",
    [
        Houlsby(bottleneck=4),
        AdaMix(bottleneck=4),
        PrefixTuning(num_virtual_tokens=3),
        IA3(),
        FullFineTuning(top_layers=1),
        Union(methods=[LoRA(rank=2), Houlsby(bottleneck=4, norms="none")]),
    ],
    ids=lambda method: method.name,
)
def test_any_method_is_consolidated(backbone, tasks, tmp_path, method):
    pool = Pool(tmp_path / "pool", backbone=backbone, capacity=1, method=method, examples=20)
    steps = [pool.add(tasks[name], **{**TRAIN, "max_steps": 3}) for name in "ab"]
    assert steps[1].consolidated
    for name in "ab":
        own = pool.adapter(name)
        own.check(backbone)
        own.save(tmp_path / name)
        assert evaluate(Adapter.load(tmp_path / name), backbone=backbone)["accuracy"] >= 0.0
    bodies = [{n: t for n, t in pool.adapter(name).tensors.items() if not n.startswith("head.")} for name in "ab"]
    assert all(torch.equal(bodies[0][name], bodies[1][name]) for name in bodies[0])


def test_pairs_are_consolidated_with_single_texts(backbone, tasks, data, tmp_path):
    pairs = Task(name="pairs", text="first", text_pair="second", data=str(data["pairs"]))
    pool = Pool(tmp_path / "pool", backbone=backbone, capacity=1, method=METHOD, student_epochs=8)
    add_all(pool, tasks, "a")
    pool.add(pairs, **TRAIN)
    assert evaluate(pool.adapter("pairs"), backbone=backbone, split="train")["accuracy"] > 0.8
    assert pool.predict([("one good two", "mild")], "pairs")[0].label in ("is good", "is bad")
    assert pool.predict(["one good two"], "a")[0].label in ("a0", "a1")
