"""Merges that read data: donors, RegMean and AdaMerging, on adapters and on full fine-tunings."""

import json
import random
from dataclasses import replace
from functools import partial

import pytest
import torch
from closeness import close
from hypothesis import given
from hypothesis import strategies as st
from tiny import batch_for, make_adapter, make_backbone
from training.workbench import FAST, backbone, backbone_folder, data, one_thread, sentence, write_csv

from graftwork import IA3, AdaptedModel, Adapter, FullFineTuning, Houlsby, LoRA, Task, evaluate, tune
from graftwork.arithmetic import (
    AdaMergingSettings,
    FisherSettings,
    RegMeanSettings,
    adamerging,
    donor_merge,
    fisher_adapters,
    merge_adapters,
    regmean,
    regmean_adapters,
    ties,
)
from graftwork.arithmetic.adapters.differences import weights_of
from graftwork.arithmetic.adapters.mergeable import bodies_of
from graftwork.arithmetic.data.learnedcoefficients import elected
from graftwork.arithmetic.data.linearforms import linear_form
from graftwork.arithmetic.data.reading import rows_of, source_for
from graftwork.arithmetic.data.regressionmeans import grams_of
from graftwork.errors import AdapterError, DataError, MethodError, RecipeError
from graftwork.heads import IGNORED, LanguageHead

__all__ = ["backbone", "backbone_folder", "data", "one_thread"]

METHODS = {"lora": LoRA(rank=3), "full": FullFineTuning(), "ia3": IA3(), "houlsby": Houlsby(bottleneck=4)}
SHORT = {**FAST, "num_train_epochs": 1}
INPUTS = RegMeanSettings(examples=24, batch_size=8)
FEW = FisherSettings(examples=12, batch_size=6)


@pytest.fixture(scope="module")
def tasks(tmp_path_factory):
    """Two tasks that other words decide."""
    folder, found = tmp_path_factory.mktemp("tasks"), {}
    for seed, (name, words) in enumerate({"mood": ("bad", "good"), "pace": ("mild", "nine")}.items()):
        source = random.Random(seed)
        rows = [{"text": sentence(source, words[i % 2]), "label": ("no", "yes")[i % 2]} for i in range(48)]
        found[name] = Task(
            name=name, text="text", data=str(write_csv(folder / f"{name}.csv", rows)), metrics="accuracy"
        )
    return found


@pytest.fixture(scope="module")
def tuned(backbone, tasks):
    """Adapters of a method for both tasks, tuned once each."""
    made = {}

    def tuned(method):
        if method not in made:
            rate = {"learning_rate": 1e-3} if method == "full" else {}
            made[method] = {
                name: tune(backbone, task=task, method=METHODS[method], seed=i, **{**SHORT, **rate})
                for i, (name, task) in enumerate(tasks.items())
            }
        return made[method]

    return tuned


class StoppedError(Exception):
    """Stands for a process that is killed."""


def stop_after(monkeypatch, target, name, calls):
    """Have a function raise from its so-many-th call on; gives how often it was called."""
    plain, count = getattr(target, name), []

    def counted(*args, **kwargs):
        count.append(1)
        if len(count) > calls:
            raise StoppedError
        return plain(*args, **kwargs)

    monkeypatch.setattr(target, name, counted)
    return count


# -- Fisher and donors -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", METHODS)
def test_adapters_and_full_fine_tunings_are_merged_by_their_information(backbone, tuned, method):
    own = tuned(method)
    merged = fisher_adapters(own, backbone, fisher=FEW)
    assert [*merged.adapters] == ["mood+pace"]
    assert 0.0 <= evaluate(replace(merged.adapter, recipe=own["mood"].recipe), backbone=backbone)["accuracy"] <= 1.0
    alone = fisher_adapters(own, backbone, lambdas=[1.0, 0.0], fisher=FEW, heads="keep").adapters["mood"]
    if method in ("lora", "full"):
        expected, found = weights_of(own["mood"], backbone), weights_of(alone, backbone)
        for name, tensor in expected.items():
            close(found[name], tensor, 8, what=name)
    else:
        for name, tensor in own["mood"].tensors.items():
            close(alone.tensors[name], tensor, 8, what=name)


def test_the_weights_of_a_merge_are_between_those_of_its_operands(backbone, tuned):
    own = tuned("full")
    merged = fisher_adapters(own, backbone, fisher=FEW).adapter
    for name in (name for name in merged.tensors if not name.startswith("head.")):
        pair = torch.stack([adapter.tensors[name] for adapter in own.values()])
        slack = 1e-6 * pair.abs().max()
        assert bool((merged.tensors[name] >= pair.amin(dim=0) - slack).all()), name
        assert bool((merged.tensors[name] <= pair.amax(dim=0) + slack).all()), name


@pytest.mark.parametrize("merge", [fisher_adapters, regmean_adapters, adamerging], ids=lambda own: own.__name__)
def test_fine_tunings_that_change_nothing_are_refused(backbone, tuned, merge):
    """As those of a run of one step, whose rate is still zero."""
    own = {}
    for name, adapter in tuned("full").items():
        heads = {key: tensor for key, tensor in adapter.tensors.items() if key.startswith("head.")}
        own[name] = replace(adapter, tensors={key: torch.zeros_like(t) for key, t in adapter.tensors.items()} | heads)
    with pytest.raises(AdapterError, match="mood, pace change nothing of the backbone"):
        merge(own, backbone)


@pytest.mark.parametrize("method", ["full", "houlsby"])
def test_a_donor_s_share_is_chosen_on_validation_and_never_hurts_there(backbone, tuned, method):
    own = tuned(method)
    merge = donor_merge(own["mood"], own["pace"], backbone, points=4, fisher=FEW)
    assert [mix for mix, _ in merge.points] == pytest.approx([0, 1 / 3, 2 / 3, 1])
    scores = {mix: own["accuracy"] for mix, own in merge.points}
    assert scores[merge.weight] == max(scores.values())
    assert scores[1.0] == pytest.approx(own["mood"].metrics["validation"]["accuracy"])
    assert merge.adapter.metrics["validation"]["accuracy"] == max(scores.values())
    assert evaluate(merge.adapter, backbone=backbone)["accuracy"] == pytest.approx(max(scores.values()))
    head = "head.classifier.weight"
    assert torch.equal(merge.adapter.tensors[head], own["mood"].tensors[head])


def test_by_a_mean_each_point_is_on_the_line(backbone, tuned):
    own = tuned("ia3")
    merge = donor_merge(own["mood"], own["pace"], backbone, by="mean", points=3)
    mix = merge.weight
    expected = merge_adapters(own, backbone, coefficients=[mix, 1 - mix], heads="keep").adapters["mood"]
    for name, tensor in expected.tensors.items():
        close(merge.adapter.tensors[name], tensor, 8, what=name)


def test_an_interrupted_donor_merge_goes_on_with_the_points_that_are_left(backbone, tuned, tmp_path, monkeypatch):
    from graftwork.arithmetic.adapters import scores as adapterscores

    own = tuned("lora")
    whole = donor_merge(own["mood"], own["pace"], backbone, points=5, fisher=FEW)
    with monkeypatch.context() as patch:
        stop_after(patch, adapterscores.SplitScorer, "__call__", 3)
        with pytest.raises(StoppedError):
            donor_merge(own["mood"], own["pace"], backbone, points=5, fisher=FEW, working=tmp_path)
    with monkeypatch.context() as patch:
        count = stop_after(patch, adapterscores.SplitScorer, "__call__", 100)
        again = donor_merge(own["mood"], own["pace"], backbone, points=5, fisher=FEW, working=tmp_path)
    assert len(count) == 2
    assert again.points == whole.points
    assert again.adapter.digest == whole.adapter.digest


def test_what_a_donor_merge_cannot_do_is_refused(backbone, tuned):
    own = tuned("lora")
    with pytest.raises(RecipeError, match="points"):
        donor_merge(own["mood"], own["pace"], backbone, points=1)
    with pytest.raises(DataError, match="does not say on which data"):
        donor_merge(replace(own["mood"], recipe={}), own["pace"], backbone, points=2)
    with pytest.raises(MethodError, match="1 lambdas are given for 2"):
        fisher_adapters(own, backbone, lambdas=[1.0])


# -- RegMean -----------------------------------------------------------------------------------------------------------


def random_models(seed, count=3, rows=20):
    generator = torch.Generator().manual_seed(seed)
    weights = [
        {"w": torch.randn(4, 5, generator=generator), "b": torch.randn(4, generator=generator)} for _ in range(count)
    ]
    inputs = [torch.randn(rows, 5, generator=generator, dtype=torch.float64) for _ in range(count)]
    return weights, inputs


@given(seed=st.integers(0, 2**16))
def test_regmean_is_the_least_squares_solution(seed):
    weights, inputs = random_models(seed)
    grams = [{"w": x.T @ x / len(x)} for x in inputs]
    found = regmean(weights, grams, alpha=1.0)
    together = torch.cat(inputs)
    outputs = torch.cat([x @ vector["w"].double().T for x, vector in zip(inputs, weights, strict=True)])
    expected = torch.linalg.lstsq(together, outputs).solution.T
    close(found["w"], expected.float(), 256)
    close(found["b"], torch.stack([vector["b"] for vector in weights]).mean(dim=0))


@given(seed=st.integers(0, 2**16), alpha=st.floats(0, 1))
def test_regmean_of_one_model_is_that_model(seed, alpha):
    weights, inputs = random_models(seed, rows=3)  # fewer than there are directions
    found = regmean([weights[0]] * 3, [{"w": x.T @ x / len(x)} for x in inputs], alpha=alpha)
    for name, tensor in weights[0].items():
        close(found[name], tensor, what=name)


def test_regmean_with_alpha_is_the_formula():
    weights, inputs = random_models(0)
    grams = [x.T @ x / len(x) for x in inputs]
    cut = [0.3 * g + 0.7 * torch.diag(g.diagonal()) for g in grams]
    above = torch.stack([v["w"].double() @ g for v, g in zip(weights, cut, strict=True)]).sum(dim=0)
    expected = above @ torch.linalg.inv(torch.stack(cut).sum(dim=0))
    close(regmean(weights, [{"w": g} for g in grams], alpha=0.3)["w"], expected.float(), 64)
    with pytest.raises(MethodError, match="alpha is 2"):
        regmean(weights, [{}] * 3, alpha=2.0)


def test_where_nothing_enters_regmean_is_the_mean():
    weights, _ = random_models(0, count=2)
    gram = torch.zeros(5, 5)
    gram[0, 0] = 1.0
    found = regmean(weights, [{"w": gram}] * 2, alpha=0.5)["w"]
    close(found, torch.stack([vector["w"] for vector in weights]).mean(dim=0))


@pytest.mark.parametrize("kind", ["bert", "gpt2"])
def test_the_inputs_of_linear_maps_are_those_that_enter_without_padding(kind, tasks, tuned, monkeypatch):
    backbone = make_backbone(kind, dtype=torch.float64)
    adapter = make_adapter(backbone, LoRA(rank=3), trained=True)
    bodies = bodies_of({"a": adapter}, backbone)
    lengths = (7, 4, 5)
    ids = torch.randint(5, 100, (3, 7), generator=torch.Generator().manual_seed(0))

    class Rows:
        def __len__(self):
            return 3

        def batches(self, size, *, start=0):
            mask = (torch.arange(7) < torch.tensor(lengths)[:, None]).long()
            yield 3, {"input_ids": ids, "attention_mask": mask}

    found = grams_of(adapter, bodies, Rows(), batch_size=3)
    name = "layers.1.ffn.up"
    seen = []
    model = AdaptedModel(backbone, {"a": adapter})
    path = backbone.sites[name].path
    hook = model.graft.root.get_submodule(path).register_forward_pre_hook(lambda module, args: seen.append(args[0][0]))
    for row, length in zip(ids, lengths, strict=True):
        model(input_ids=row[None, :length], adapters="a")
    hook.remove()
    model.detach()
    x = torch.cat(seen).detach()
    close(found[f"{name}.weight"], (x.T @ x / sum(lengths)).float(), 512)
    assert torch.equal(found["layers.0.attention.query.weight"], found["layers.0.attention.value.weight"])


@pytest.mark.parametrize("width", [7, 5], ids=["as long as the source", "shorter"])
@pytest.mark.parametrize("kind", ["t5", "bart"])
def test_padding_counts_in_neither_stack_of_an_encoder_decoder(kind, width):
    """Also not where both masks have one shape, and in cross-attention, into which tokens of both stacks enter."""
    backbone = make_backbone(kind, head=True, dtype=torch.float64)
    adapter = make_adapter(backbone, LoRA(rank=3), trained=True, head=LanguageHead(shifted=False))
    bodies = bodies_of({"a": adapter}, backbone)
    batch = batch_for(backbone, 7, 4, 5)
    wanted = (2, width, 3)
    real = torch.arange(width) < torch.tensor(wanted)[:, None]
    batch["labels"] = torch.randint(5, 100, real.shape, generator=torch.Generator().manual_seed(1))
    batch["labels"][~real] = IGNORED

    class Rows:
        def __init__(self, *batches):
            self.own = batches

        def __len__(self):
            return 3

        def batches(self, size, *, start=0):
            yield from enumerate(self.own, start=1)

    rows = [
        {
            **{name: batch[name][i : i + 1, :length] for name in ("input_ids", "attention_mask")},
            "labels": batch["labels"][i : i + 1, :own],
        }
        for i, (length, own) in enumerate(zip((7, 4, 5), wanted, strict=True))
    ]
    together = grams_of(adapter, bodies, Rows(batch), batch_size=3)
    apart = grams_of(adapter, bodies, Rows(*rows), batch_size=1)
    stacks = {name.split(".layers")[0] for name in together}
    assert stacks == {"encoder", "decoder"}
    for name in together:
        close(together[name], apart[name], 512)


@pytest.mark.parametrize("method", ["lora", "full"])
def test_adapters_and_full_fine_tunings_are_merged_by_regmean(backbone, tuned, tmp_path, monkeypatch, method):
    own = tuned(method)
    whole = regmean_adapters(own, backbone, settings=INPUTS).adapter
    # On what enters, the merge is nearer to each model than the mean is, all of them together.
    mean = merge_adapters(own, backbone).adapter
    bodies = bodies_of(own, backbone)
    found, plain = ({**weights_of(a, backbone)} for a in (whole, mean))
    grams = [
        grams_of(adapter, bodies, rows_of(adapter, backbone, "train", examples=24), batch_size=8)
        for adapter in own.values()
    ]
    name = "layers.0.attention.query.weight"

    def distance(delta):
        apart = [(delta - vector[name]).double() for vector in bodies.vectors]
        return sum(float(((a @ gram[name].double()) * a).sum()) for a, gram in zip(apart, grams, strict=True))

    assert distance(found[name]) < distance(plain[name])
    with monkeypatch.context() as patch:
        patch.setattr("graftwork.arithmetic.data.keeping.EVERY", 0.0)
        stop_after(patch, AdaptedModel, "forward", 4)
        with pytest.raises(StoppedError):
            regmean_adapters(own, backbone, settings=INPUTS, working=tmp_path)
    with monkeypatch.context() as patch:
        count = stop_after(patch, AdaptedModel, "forward", 100)
        again = regmean_adapters(own, backbone, settings=INPUTS, working=tmp_path).adapter
    assert len(count) == 2
    assert again.digest == whole.digest


def test_regmean_of_what_has_no_weights_is_refused(backbone, tuned):
    with pytest.raises(MethodError, match="have no weights of linear maps"):
        regmean_adapters(tuned("ia3"), backbone)


# -- AdaMerging --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["lora", "full", "ia3"])
@pytest.mark.parametrize("scaled", [0.3, -0.7])
def test_the_linear_form_is_the_sum(backbone, tuned, method, scaled):
    own = tuned(method)
    bodies = bodies_of(own, backbone)
    body = linear_form(bodies).body(torch.tensor([[scaled], [0.5]]))
    expected = bodies.combined([scaled, 0.5])
    assert body.method == expected.method
    for name, tensor in expected.tensors.items():
        if name.endswith((".A", ".B")):
            continue
        close(body.tensors[name], tensor, 16, what=name)
    for name in (name for name in expected.tensors if name.endswith(".B")):
        a = name.removesuffix("B") + "A"
        found, there = (own.tensors[name] @ own.tensors[a] for own in (body, expected))
        close(found, there, 16, what=name)


@pytest.mark.parametrize(("method", "coefficients"), [("lora", "layer"), ("full", "layer"), ("ia3", "task")])
def test_coefficients_are_learned_that_lower_the_entropy(backbone, tuned, method, coefficients):
    own = tuned(method)
    settings = AdaMergingSettings(coefficients=coefficients, learning_rate=0.05, steps=5, batch_size=8, batches=1)
    found = adamerging(own, backbone, settings=settings, split="train")
    assert sum(after for _, after in found.entropy.values()) < sum(before for before, _ in found.entropy.values())
    assert found.merged.adapters.keys() == found.transductive.keys() == found.inductive.keys() == own.keys()
    for row in found.coefficients.values():
        assert (len(row) == 1) == (coefficients == "task")
        assert any(abs(value - 0.3) > 1e-3 for value in row.values())
    for name, adapter in found.merged.adapters.items():
        assert torch.equal(adapter.tensors["head.classifier.weight"], own[name].tensors["head.classifier.weight"])


def test_what_is_saved_says_what_was_learned(backbone, tuned, tmp_path):
    own = tuned("lora")
    settings = AdaMergingSettings(coefficients="task", learning_rate=0.05, steps=5, batch_size=4)
    found = adamerging(own, backbone, settings=settings, split="train")
    mix = [found.coefficients[name]["all"] for name in own]
    expected = merge_adapters(own, backbone, coefficients=mix, heads="keep").adapters["mood"]
    one, other = (weights_of(a, backbone) for a in (found.merged.adapters["mood"], expected))
    for name, tensor in other.items():
        close(one[name], tensor, 16, what=name)


def test_gradients_are_those_of_the_entropy_of_a_saved_merge(backbone, tuned):
    """One step of Adam moves each coefficient by the learning rate against the gradient, which is measured here by two
    merges."""
    own = tuned("ia3")
    settings = AdaMergingSettings(coefficients="task", steps=1, batch_size=100, batches=1, learning_rate=1e-3)
    found = adamerging(own, backbone, settings=settings, split="train")
    rows = {name: rows_of(adapter, backbone, "train", labelled=False) for name, adapter in own.items()}
    order = {n: torch.randperm(len(r), generator=source_for(0)).tolist() for n, r in rows.items()}
    places = {name: sorted(own[: round(len(own) / 2)]) for name, own in order.items()}

    def entropy(mix):
        total = 0.0
        for name, adapter in merge_adapters(own, backbone, coefficients=mix, heads="keep").adapters.items():
            model = AdaptedModel(backbone, {"a": adapter})
            p = model(**rows[name].batch(places[name]), adapters="a").logits.softmax(dim=-1)
            model.detach()
            total += float(-(p * p.log()).sum(dim=-1).mean())
        return total

    for i, name in enumerate(own):
        up, down = ([0.3 + sign * 0.05 * (i == j) for j in range(2)] for sign in (1, -1))
        slope = entropy(up) - entropy(down)
        assert found.coefficients[name]["all"] == pytest.approx(0.3 - 1e-3 * (1 if slope > 0 else -1), abs=1e-5)


def test_interrupted_learning_goes_on_to_the_same_bits(backbone, tuned, tmp_path, monkeypatch):
    from graftwork.arithmetic.data.learnedcoefficients import _Learner

    own = tuned("lora")
    settings = AdaMergingSettings(learning_rate=0.02, steps=3, batch_size=4, seed=2**31 - 1)
    whole = adamerging(own, backbone, settings=settings, split="train")
    with monkeypatch.context() as patch:
        patch.setattr("graftwork.arithmetic.data.keeping.EVERY", 0.0)
        stop_after(patch, _Learner, "_step", 2)
        with pytest.raises(StoppedError):
            adamerging(own, backbone, settings=settings, split="train", working=tmp_path)
    with monkeypatch.context() as patch:
        count = stop_after(patch, _Learner, "_step", 100)
        again = adamerging(own, backbone, settings=settings, split="train", working=tmp_path)
    assert len(count) == 1
    assert again.coefficients == whole.coefficients


def test_vectors_are_cut_where_their_sign_is_not_elected():
    vectors = [{"w": torch.tensor([1.0, -2.0, 0.5, 3.0])}, {"w": torch.tensor([2.0, 1.0, -0.5, 1.0])}]

    def elect(given):
        return {"w": torch.tensor([1.0, -1.0, 0.0, 2.0])}

    one, other = elected(vectors, elect)
    assert one["w"].tolist() == [1.0, -2.0, 0.0, 3.0]
    assert other["w"].tolist() == [2.0, 0.0, 0.0, 1.0]


def test_what_ties_trims_from_a_vector_is_cut_though_another_has_its_sign():
    one = torch.tensor([5.0, 0.1, -4.0, 1.0])
    other = torch.tensor([0.2, 3.0, -2.0, 4.0])
    cut = [*elected([{"w": one}, {"w": other}], partial(ties, keep=0.5))]
    assert cut[0]["w"].tolist() == [5.0, 0.0, -4.0, 0.0]
    assert cut[1]["w"].tolist() == [0.0, 3.0, 0.0, 4.0]


def test_adamerging_plus_learns_on_what_is_elected(backbone, tuned):
    own = tuned("lora")

    def total(vectors):
        return {name: torch.stack([vector[name] for vector in vectors]).sum(dim=0) for name in vectors[0]}

    settings = AdaMergingSettings(coefficients="task", steps=1, batch_size=4)
    found = adamerging(own, backbone, settings=settings, elect=total, split="train")
    mix = [found.coefficients[name]["all"] for name in own]
    vectors = [*elected(bodies_of(own, backbone).vectors, total)]
    made = weights_of(found.merged.adapters["mood"], backbone)
    for name, tensor in made.items():
        close(tensor, mix[0] * vectors[0][name] + mix[1] * vectors[1][name], 16, what=name)


def test_what_has_no_entropy_or_no_sum_is_refused(backbone, tuned):
    with pytest.raises(MethodError, match="cannot be summed"):
        adamerging(tuned("houlsby"), backbone)
    numbers = make_adapter(backbone, LoRA(rank=2), kind="regression")
    with pytest.raises(MethodError, match="adapter 'n', of kind regression, have no entropy"):
        adamerging({"n": numbers, **tuned("lora")}, backbone)
    with pytest.raises(MethodError, match=r"share=1\.0: expected a number below 1"):
        AdaMergingSettings(share=1.0)


# -- other kinds of task -----------------------------------------------------------------------------------------------


def with_data(adapter, task):
    """An adapter that was tuned on that task, as far as its recipe says."""
    return replace(adapter, recipe={"task": task.model_dump(mode="json", exclude_none=True)})


@pytest.mark.parametrize("kind", ["regression", "generation", "multi-label-classification", "token-classification"])
def test_the_information_is_that_of_the_kind_of_task(kind, tmp_path):
    backbone = make_backbone("gpt2", head=True, tokenizer=True)
    fields = {"separator": " is "} if kind == "generation" else {}
    texts = ["the man sleeps", "a woman rests", "the film was dull", "a book is good"] * 3
    labels = {
        "regression": ["1.5", "0", "-2", "3"] * 3,
        "generation": ["very good", "bad", "not gripping", "dull"] * 3,
        "multi-label-classification": ["x|y", "y", "z", "x"] * 3,
        "token-classification": ["O O B-X"] * 12,
    }[kind]
    task = {"name": "t", "kind": kind, "text": "text", "data": str(tmp_path / "rows.csv"), "validation_fraction": 0.25}
    if kind == "token-classification":
        task["data"] = str(tmp_path / "rows.jsonl")
        rows = [{"text": text.split()[:3], "label": tags.split()} for text, tags in zip(texts, labels, strict=True)]
        (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)) + "\n")
    else:
        write_csv(tmp_path / "rows.csv", [{"text": t, "label": own} for t, own in zip(texts, labels, strict=True)])
    names = {"multi-label-classification": ("x", "y", "z"), "token-classification": ("O", "B-X")}.get(kind)
    own = {}
    for i, name in enumerate("ab"):
        adapter = Adapter.new(backbone, LoRA(rank=2), kind=kind, labels=names, name=name, seed=i, **fields)
        for tensor in adapter.tensors.values():
            tensor.add_(torch.randn(tensor.shape, generator=torch.Generator().manual_seed(i)) * 0.1)
        own[name] = with_data(adapter, Task.parse({**task, "labels": names, **fields}, origin="the test"))
    merged = fisher_adapters(own, backbone, fisher=FisherSettings(batch_size=4)).adapter
    a, b = (weights_of(adapter, backbone) for adapter in own.values())
    found = weights_of(merged, backbone)
    slack = 1e-5 * max(float(t.abs().max()) for t in a.values())
    apart = 0.0
    for name, tensor in found.items():
        low, high = torch.minimum(a[name], b[name]), torch.maximum(a[name], b[name])
        assert bool((tensor >= low - slack).all()), name
        assert bool((tensor <= high + slack).all()), name
        apart = max(apart, float((tensor - (a[name] + b[name]) / 2).abs().max()))
    assert apart > 100 * slack  # it is no plain mean
