"""Greedy soups and SLERP of adapters, as a user types them and in Python, against what is calculated by hand."""

import json
import random
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from cli.conftest import graftwork
from closeness import close
from tiny import make_adapter, make_backbone
from training.workbench import FAST, backbone, backbone_folder, names_in, one_thread, sentence, write_csv

from graftwork import IA3, Adapter, Houlsby, LoRA, tune
from graftwork.arithmetic import donor_merge, greedy_soup, merge_adapters, slerp, soup_adapters
from graftwork.arithmetic.adapters.differences import weights_of
from graftwork.arithmetic.adapters.scores import scorer_for
from graftwork.arithmetic.data import adaptersoups
from graftwork.arithmetic.merging.adaptermethods import AdapterOperands, run_on_adapters
from graftwork.arithmetic.merging.method import make_merge_method
from graftwork.errors import DataError, MethodError, RecipeError
from graftwork.tasks import Task

__all__ = ["backbone", "backbone_folder", "graftwork", "one_thread"]

NAMES = ("first", "second", "third", "fourth")


def written_task(folder, name, labels):
    source = random.Random(len(name))
    rows = [{"text": sentence(source, ("bad", "good")[i % 2]), "label": labels[i % 2]} for i in range(160)]
    file = folder / f"{name}.yaml"
    lines = [f"name: {name}", "text: text", f"data: {write_csv(folder / f'{name}.csv', rows)}", "metrics: accuracy"]
    file.write_text("\n".join([*lines, f"labels: [{', '.join(labels)}]"]) + "\n")
    return file


@pytest.fixture(scope="module")
def tasks(tmp_path_factory):
    """Files of two tasks with different labels."""
    folder = tmp_path_factory.mktemp("tasks")
    return {n: written_task(folder, n, labels) for n, labels in (("mood", ("dull", "fine")), ("pace", ("slow", "up")))}


@pytest.fixture(scope="module")
def runs(backbone, tasks, tmp_path_factory):
    """Several runs of one task, of more and fewer steps, of which one is spoiled; and one of another task."""
    folder = tmp_path_factory.mktemp("runs")
    task = Task.from_yaml(tasks["mood"])
    for seed, (name, steps) in enumerate(zip(NAMES, (1, 12, 6, 24), strict=True)):
        options = {**FAST, "num_train_epochs": None, "max_steps": steps, "seed": seed, "head_learning_rate": 0.02}
        tune(backbone, task=task, method=LoRA(rank=2), output=folder / name, **options)
    spoiled = Adapter.load(folder / "third")
    flipped = {name: -30 * tensor if name.startswith("head.") else tensor for name, tensor in spoiled.tensors.items()}
    replace(spoiled, tensors=flipped).save(folder / "third", overwrite=True)
    options = {**FAST, "num_train_epochs": 1, "seed": 9}
    tune(backbone, task=Task.from_yaml(tasks["pace"]), method=LoRA(rank=2), output=folder / "pace", **options)
    for seed in (3, 4):
        own = folder / f"houlsby-{seed}"
        tune(backbone, task=task, method=Houlsby(bottleneck=3), output=own, **{**options, "seed": seed})
    return folder


def accuracy(adapter, backbone):
    with scorer_for(adapter, backbone) as scorer:
        return scorer(adapter)["accuracy"]


def soup_by_hand(own, backbone, **options):
    """The names that a greedy soup takes, and the score of each adapter alone, by `average` and `evaluate` alone."""
    single = {
        name: accuracy(merge_adapters({name: one}, backbone, **options).adapter, backbone) for name, one in own.items()
    }
    order = sorted(single, key=lambda name: -single[name])
    taken, best = order[:1], single[order[0]]
    for name in order[1:]:
        among = {n: own[n] for n in own if n in (*taken, name)}
        found = accuracy(merge_adapters(among, backbone, **options).adapter, backbone)
        if found >= best:
            taken, best = [*taken, name], found
    return taken, best, single


# -- soups -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rank", [None, 2])
def test_a_soup_is_the_mean_of_those_that_are_taken_by_hand(graftwork, backbone, runs, tasks, tmp_path, rank):
    folders = [runs / name for name in NAMES]
    own = {name: Adapter.load(runs / name) for name in NAMES}
    taken, best, single = soup_by_hand(own, backbone, rank=rank)
    more = ["--task", tasks["mood"], "--quiet", *([] if rank is None else ["--rank", rank])]
    ran = graftwork("merge", "soup", *folders, *more, "--output", tmp_path / "soup", "--json")
    assert (ran.status, ran.err) == (0, "")
    said = json.loads(ran.out)
    assert said["soup"] == {"taken": taken, "score": pytest.approx(best), "scores": pytest.approx(single)}
    assert said["method"] == {"name": "soup"}
    chosen = [runs / name for name in NAMES if name in taken]
    ran = graftwork("merge", "average", *chosen, *more, "--output", tmp_path / "mean")
    assert ran.status == 0 or len(chosen) == 1
    found, recipe = Adapter.load(tmp_path / "soup"), Adapter.load(tmp_path / "soup").recipe["merged"]
    if len(chosen) > 1:
        mean = Adapter.load(tmp_path / "mean")
        assert all(torch.equal(tensor, mean.tensors[name]) for name, tensor in found.tensors.items())
    assert accuracy(found, backbone) == pytest.approx(best)
    assert recipe["soup"]["taken"] == taken
    assert {*recipe["adapters"]} == {*taken}
    assert [*said["scores"]] == ["merged", *NAMES]
    ran = graftwork("merge", tmp_path / "soup" / "recipe.yaml", "--output", tmp_path / "again", "--quiet")
    assert ran.out.startswith(f"the soup ({best:.4f}) is of {len(taken)} of 4 adapters: {taken[0]} (")
    assert Adapter.load(tmp_path / "again").digest == found.digest


def test_a_soup_takes_some_and_leaves_some(backbone, runs):
    own = {name: Adapter.load(runs / name) for name in NAMES}
    found = soup_adapters(own, backbone)
    assert 1 < len(found.taken) < len(NAMES)
    assert "third" not in found.taken
    assert found.score >= max(found.scores.values())
    assert {*found.merged.members} == {"+".join(name for name in NAMES if name in found.taken)}


def test_on_a_task_of_which_none_is_in_it_a_soup_has_that_task_s_own_head(backbone, runs):
    own = {name: Adapter.load(runs / name) for name in ("second", "fourth", "pace")}
    found = soup_adapters(own, backbone)
    body = own["second"]
    other = {n: t for n, t in own["pace"].tensors.items() if n.startswith("head.")}
    swapped = replace(own["pace"], method=body.method, tensors={**body.tensors, **other}, sites=body.sites)
    expected = (accuracy(body, backbone) + accuracy(swapped, backbone)) / 2
    assert found.scores["second"] == pytest.approx(expected)
    assert found.scores.keys() == own.keys()


def test_bottlenecks_make_a_soup_as_their_mean_is(backbone, runs):
    own = {name: Adapter.load(runs / name) for name in ("houlsby-3", "houlsby-4")}
    found = soup_adapters(own, backbone, align="units")
    taken, best, single = soup_by_hand(own, backbone, align="units")
    assert (found.taken, found.score) == (tuple(taken), pytest.approx(best))
    assert found.scores == pytest.approx(single)
    with pytest.raises(MethodError, match="with bottlenecks of the same settings only") as told:
        soup_adapters({**own, "second": Adapter.load(runs / "second")}, backbone)
    with pytest.raises(MethodError) as said:
        merge_adapters({**own, "second": Adapter.load(runs / "second")}, backbone)
    assert str(told.value) == str(said.value)


def test_heads_that_are_kept_are_scored_each(backbone, runs):
    """Of two adapters of one task, each with its own head over the mean of what they change."""
    own = {name: Adapter.load(runs / name) for name in ("second", "third")}
    found = soup_adapters(own, backbone, heads="keep")
    assert found.scores == pytest.approx({name: accuracy(adapter, backbone) for name, adapter in own.items()})
    both = merge_adapters(own, backbone, heads="keep").adapters.values()
    together = sum(accuracy(adapter, backbone) for adapter in both) / 2
    assert found.score == pytest.approx(max(found.scores["second"], together))
    assert len(found.merged.adapters) == len(found.taken)


def test_an_adapter_without_data_is_refused(graftwork, backbone, tmp_path):
    own = {name: make_adapter(backbone, LoRA(rank=2), trained=True, seed=i) for i, name in enumerate("ab")}
    with pytest.raises(DataError, match="does not say on which data"):
        soup_adapters(own, backbone)
    for name, adapter in own.items():
        adapter.save(tmp_path / name)
    command = ["merge", "soup", tmp_path / "a", tmp_path / "b"]
    told, ran = graftwork(*command, "--dry-run"), graftwork(*command, "--output", tmp_path / "out", "--quiet")
    assert (told.status, told.err) == (ran.status, ran.err)
    assert "does not say on which data" in told.err
    assert names_in(tmp_path) == ["a", "b"]


def test_an_interrupted_soup_goes_on(graftwork, backbone, runs, tasks, tmp_path, monkeypatch):
    plain, count = adaptersoups.goodness_on_all, []

    def counted(*arguments, **options):
        count.append(1)
        if len(count) == 3:
            raise KeyboardInterrupt
        return plain(*arguments, **options)

    monkeypatch.setattr(adaptersoups, "goodness_on_all", counted)
    command = ["merge", "soup", *[runs / name for name in NAMES[:3]], "--output", tmp_path / "out", "--quiet", "--json"]
    ran = graftwork(*command)
    assert (ran.status, "--resume" in ran.err) == (130, True)
    assert names_in(tmp_path) == [".out.merging"]
    ran = graftwork(*command, "--resume")
    assert (ran.status, ran.err) == (0, "")
    assert len(count) == 6  # two before, the one that was interrupted, and three after
    assert names_in(tmp_path) == ["out"]
    whole = soup_adapters({name: Adapter.load(runs / name) for name in NAMES[:3]}, backbone)
    assert json.loads(ran.out)["soup"]["taken"] == [*whole.taken]
    assert Adapter.load(tmp_path / "out").digest == whole.merged.adapter.digest


@pytest.mark.parametrize("merge", ["soup", "donor"])
def test_what_is_kept_of_other_rows_is_not_taken_up(backbone, runs, tasks, tmp_path, merge):
    """The labels of the data are exchanged between two calls."""
    labels = {"dull": "fine", "fine": "dull"}
    own = {}
    data = tmp_path / "mood.csv"
    shutil.copy(tasks["mood"].with_suffix(".csv"), data)
    for name in ("second", "third"):
        adapter = Adapter.load(runs / name)
        task = {**adapter.recipe["task"], "data": str(data)}
        own[name] = replace(adapter, recipe={**adapter.recipe, "task": task})

    def scores(working):
        if merge == "soup":
            return soup_adapters(own, backbone, working=working).scores
        return donor_merge(*own.values(), backbone, by="mean", points=2, working=working).points

    before = scores(tmp_path / "working")
    assert scores(tmp_path / "working") == before
    header, *lines = data.read_text().splitlines()
    swapped = [",".join((*line.split(",")[:-1], labels[line.split(",")[-1]])) for line in lines]
    data.write_text("\n".join([header, *swapped]) + "\n")
    after = scores(tmp_path / "working")
    assert after != before
    assert after == scores(tmp_path / "afresh")


def test_a_dry_run_of_a_soup_is_that_of_all(graftwork, runs, tasks, tmp_path):
    own = [runs / name for name in NAMES[:3]]
    told = graftwork("merge", "soup", *own, "--task", tasks["mood"], "--dry-run", "--json")
    mean = graftwork("merge", "average", *own, "--dry-run", "--json")
    assert (told.status, told.err) == (mean.status, mean.err) == (0, "")
    plan, other = json.loads(told.out), json.loads(mean.out)
    assert (plan.pop("chosen"), plan.pop("at_most"), plan.pop("reads")) == (
        True,
        True,
        [f"validation rows of {name}" for name in NAMES[:3]],
    )
    assert (other.pop("chosen"), other.pop("at_most"), other.pop("reads")) == (False, False, [])
    assert plan == other
    text = graftwork("merge", "soup", *own, "--dry-run")
    assert "scores decide which of the adapters it is of" in text.out
    assert names_in(tmp_path) == []


def test_a_dry_run_refuses_a_task_of_another_kind(graftwork, runs, tmp_path):
    (tmp_path / "tags.yaml").write_text("name: tags\nkind: regression\ntext: text\ndata: none.csv\n")
    own = [runs / name for name in NAMES[:2]]
    command = ["merge", "soup", *own, "--task", tmp_path / "tags.yaml"]
    told, ran = graftwork(*command, "--dry-run"), graftwork(*command, "--output", tmp_path / "out", "--quiet")
    assert told.status == ran.status == 2
    assert told.err == ran.err
    assert "is regression" in told.err


def test_a_greedy_soup_has_the_mean_that_it_is_given():
    found = greedy_soup([3.0, 1.0, 2.0], lambda own: -abs(own - 2.4), mean=lambda each: sum(each) / len(each))
    # 2 first, then 3 (mean 2.5), then 1 (mean 2, worse).
    assert (found.taken, found.soup) == ((2, 0), 2.5)


# -- SLERP -------------------------------------------------------------------------------------------------------------


def by_hand(a, b, t):
    """SLERP of two tensors in float64."""
    a, b = a.double().numpy(), b.double().numpy()
    angle = np.arccos(np.clip((a * b).sum() / np.sqrt((a * a).sum() * (b * b).sum()), -1, 1))
    return torch.from_numpy((np.sin((1 - t) * angle) * a + np.sin(t * angle) * b) / np.sin(angle)).float()


@pytest.mark.parametrize("t", [0.0, 0.3, 1.0])
def test_slerp_of_lora_is_that_of_its_products(t):
    backbone = make_backbone(dtype=torch.float64)
    own = {n: make_adapter(backbone, LoRA(rank=3), trained=True, seed=i) for i, n in enumerate("ab")}
    a, b = (weights_of(adapter, backbone) for adapter in own.values())
    operands = AdapterOperands(adapters=own, backbone=backbone)
    merged = run_on_adapters(make_merge_method("slerp", {"t": t}), operands).merged.adapter
    assert merged.method.name == "full-fine-tuning"
    found = weights_of(merged, backbone)
    assert found.keys() == a.keys() == b.keys()
    for name, tensor in found.items():
        close(tensor, by_hand(a[name], b[name], t), 8, what=name)
    # Of two tensors a sum is made, so that the LoRA of both ranks says all of it.
    ranked = AdapterOperands(adapters=own, backbone=backbone, rank=6)
    low = run_on_adapters(make_merge_method("slerp", {"t": t}), ranked).merged.adapter
    assert (low.method.name, low.method.rank) == ("lora", 6)
    for name, tensor in weights_of(low, backbone).items():
        close(tensor, by_hand(a[name], b[name], t), 64, what=name)


def test_slerp_of_ia3_is_relative_to_ones():
    backbone = make_backbone()
    own = {n: make_adapter(backbone, IA3(), trained=True, seed=i) for i, n in enumerate("ab")}
    merged = merge_adapters(own, backbone, formula=slerp).adapter
    for name in (name for name in merged.tensors if not name.startswith("head.")):
        a, b = (adapter.tensors[name] - 1 for adapter in own.values())
        close(merged.tensors[name] - 1, by_hand(a, b, 0.5), 8, scale=1.0, what=name)


def test_slerp_needs_two_adapters_that_change_something(graftwork, runs, tmp_path):
    backbone = make_backbone()
    own = {"a": make_adapter(backbone, LoRA(rank=2), trained=True), "b": make_adapter(backbone, LoRA(rank=2), seed=1)}
    chosen = make_merge_method("slerp")
    with pytest.raises(MethodError, match="an adapter changes nothing, so that slerp has no angle"):
        run_on_adapters(chosen, AdapterOperands(adapters=own, backbone=backbone))
    with pytest.raises(RecipeError, match="the backbone alone changes nothing"):
        run_on_adapters(chosen, AdapterOperands(adapters={"a": own["a"]}, backbone=backbone))
    ran = graftwork("merge", "slerp", runs / "first", "--output", tmp_path / "out", "--quiet")
    assert (ran.status, "the backbone alone changes nothing" in ran.err, "interpolate" in ran.err) == (2, True, True)
    assert names_in(tmp_path) == []


def test_slerp_by_command_has_a_sweep(graftwork, backbone, runs, tasks, tmp_path):
    own = [runs / "second", runs / "fourth"]
    more = ["--sweep", "t=0,0.5,1", "--task", tasks["mood"], "--rank", 4, "--quiet", "--json"]
    ran = graftwork("merge", "slerp", *own, *more, "--output", tmp_path / "out")
    assert (ran.status, ran.err) == (0, "")
    t = json.loads(ran.out)["method"]["t"]
    a, b = (weights_of(Adapter.load(folder), backbone) for folder in own)
    for name, tensor in weights_of(Adapter.load(tmp_path / "out"), backbone).items():
        close(tensor, by_hand(a[name], b[name], t), 64, what=name)
    shutil.copytree(tmp_path / "out", tmp_path / "moved")
    ran = graftwork("merge", tmp_path / "moved" / "recipe.yaml", "--output", tmp_path / "again", "--quiet")
    assert (ran.status, ran.err) == (0, "")
    assert Adapter.load(tmp_path / "again").digest == Adapter.load(tmp_path / "out").digest
