"""How much each operand counts in heads and buffers, which are averaged beside a merge: by its weight there, and not at
all where that is 0 or below."""

from dataclasses import replace

import pytest
import torch
from arithmetic.models import save_classifier, save_tensors, tensors_in
from closeness import close
from tiny import make_adapter, make_backbone, make_config, make_model, randomised
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForImageClassification

from graftwork.adapters import Adapter
from graftwork.arithmetic import MergeRecipe, Weights, emr, merge, merge_adapters, slerp, task_arithmetic
from graftwork.arithmetic.merging.adaptermethods import AdapterOperands, run_on_adapters
from graftwork.arithmetic.merging.method import make_merge_method
from graftwork.arithmetic.values.filters import as_number
from graftwork.errors import AdapterError, RecipeError
from graftwork.heads import LanguageHead
from graftwork.methods import LoRA

STATISTICS = ("running_mean", "running_var")


def network(folder, seed):
    """A ResNet's folder, with statistics of its own."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        config = make_config("resnet", num_labels=2)
        model = randomised(AutoModelForImageClassification.from_config(config), seed=seed)
        for name, buffer in model.named_buffers():
            if name.endswith(STATISTICS):
                buffer.copy_(torch.rand(buffer.shape) + 0.5)
        model.config.id2label = {0: f"no {seed}", 1: f"{seed}"} if seed > 1 else {0: "no", 1: "yes"}
        model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def networks(tmp_path_factory):
    where = tmp_path_factory.mktemp("networks")
    return {name: network(where / name, seed) for seed, name in enumerate(("a", "b", "pre"))}


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """Two classifiers of one bare model."""
    where = tmp_path_factory.mktemp("models")
    make_model("bert", seed=9).save_pretrained(where / "bare")
    return {"a": save_classifier(where / "a", 0), "b": save_classifier(where / "b", 1), "bare": where / "bare"}


def merged(folders, output, method, names="ab", weights=(), base=None, **more):
    """The tensors of a merge."""
    operands = [
        {"model": str(folders[name]), **({"weight": weights[i]} if weights else {})} for i, name in enumerate(names)
    ]
    merge(MergeRecipe(method=method, models=operands, base=base and str(folders[base]), **more), output)
    return tensors_in(output)


def near(found, expected):
    """Assert that what was computed in float32 is what float64 says."""
    close(found.double(), expected.double(), precision=torch.float32)


def buffers(tensors):
    found = {name: own for name, own in tensors.items() if name.endswith(STATISTICS)}
    assert found
    return found


# -- models ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["interpolate", "slerp"])
@pytest.mark.parametrize("t", [0.0, 1.0])
def test_a_way_between_two_networks_ends_at_them_statistics_included(networks, tmp_path, method, t):
    end = tensors_in(networks["b" if t else "a"])
    found = merged(networks, tmp_path / "two", {"name": method, "t": t})
    assert all(torch.equal(found[name], own) for name, own in end.items() if own.is_floating_point())
    from_base = merged(networks, tmp_path / "one", {"name": method, "t": t}, "b", base="a")
    assert all(torch.equal(from_base[name], own) for name, own in end.items() if own.is_floating_point())


def test_statistics_lie_on_a_straight_line(networks, tmp_path):
    a, b = (buffers(tensors_in(networks[name])) for name in "ab")
    for method in ("interpolate", "slerp"):
        found = buffers(merged(networks, tmp_path / method, {"name": method, "t": 0.25}))
        for name, own in found.items():
            near(own, 0.75 * a[name].double() + 0.25 * b[name].double())
    by_python = slerp([Weights.open(networks[name]) for name in "ab"], t=0.25)
    for name, own in found.items():
        near(by_python[name], own)


@pytest.mark.parametrize(
    ("weights", "shares"),
    [((), (0.5, 0.5)), ((3.0, 1.0), (0.75, 0.25)), ((1.0, -2.0), (1.0, 0.0)), ((0.0, 2.0), (0.0, 1.0))],
)
@pytest.mark.parametrize("method", ["arithmetic", "ties", "dare"])
def test_statistics_are_averaged_by_weights_above_0(networks, tmp_path, method, weights, shares):
    own = [buffers(tensors_in(networks[name])) for name in "ab"]
    found = buffers(merged(networks, tmp_path / "out", {"name": method}, weights=weights, base="pre", heads="base"))
    for name, tensor in found.items():
        near(tensor, sum(share * one[name].double() for share, one in zip(shares, own, strict=True)))


def test_what_is_forgotten_leaves_the_statistics_of_the_base(networks, tmp_path):
    own = buffers(tensors_in(networks["pre"]))
    found = merged(networks, tmp_path / "out", "arithmetic", "a", weights=(-1.0,), base="pre", heads="base")
    assert all(torch.equal(found[name], tensor) for name, tensor in own.items())


def test_a_soup_has_the_statistics_of_those_that_are_taken(networks):
    from graftwork.arithmetic.merging.merging import merged as planned_merge

    recipe = MergeRecipe(method="soup", models=[str(networks[name]) for name in "ab"], tasks=("rte",))
    a, b = (buffers(tensors_in(networks[name])) for name in "ab")
    key = next(iter(a))
    # The score is how near a network's statistics are to the second's: only that one is taken.
    found = planned_merge(
        recipe.plan(), recipe.find_method(), score=lambda own: -float((own[key] - b[key]).abs().sum())
    )
    assert all(torch.equal(found[name], tensor) for name, tensor in b.items())


def test_statistics_move_with_their_units(networks, tmp_path, caplog):
    from arithmetic.test_rebasin import shuffled

    other = shuffled(networks["a"], tmp_path / "other", 3)
    assert any(not torch.equal(t, tensors_in(networks["a"])[n]) for n, t in buffers(tensors_in(other)).items())
    with caplog.at_level("INFO"):
        found = merged({"a": networks["a"], "b": other}, tmp_path / "out", "rebasin")
    for name, own in tensors_in(networks["a"]).items():
        if own.is_floating_point():
            near(found[name], own)


def test_heads_that_the_base_lacks_are_averaged_by_weights(models, tmp_path):
    a, b = (tensors_in(models[name])["classifier.weight"].double() for name in "ab")
    cases = [
        ((3.0, 1.0), 0.75 * a + 0.25 * b),
        ((1.0, -1.0), a),
        ((-1.0, -1.0), (a + b) / 2),
        (((1.0, 0.0), (0.0, 3.0)), b),  # behind the last layer
        ((({"filter": "encoder", "value": 0.0}, {"value": 3.0}), 1.0), 0.75 * a + 0.25 * b),
    ]
    for number, (weights, expected) in enumerate(cases):
        found = merged(models, tmp_path / f"{number}", "arithmetic", weights=weights, base="bare")
        near(found["classifier.weight"], expected)


def test_a_filter_for_no_tensor_at_all_is_refused(models, tmp_path):
    weights = (({"filter": "nothing", "value": 2.0}, {"value": 1.0}), 1.0)
    with pytest.raises(RecipeError, match="'nothing' of --weights matches no tensor"):
        merged(models, tmp_path / "out", "arithmetic", weights=weights, base="bare")


def test_emr_is_the_model_of_its_task(networks, tmp_path):
    b = tensors_in(networks["b"])
    found = merged(networks, tmp_path / "out", {"name": "emr", "task": 1}, base="pre")
    for name, own in b.items():
        if name.startswith("classifier") or name.endswith(STATISTICS):
            assert torch.equal(found[name], own), name
    assert AutoConfig.from_pretrained(tmp_path / "out").id2label == AutoConfig.from_pretrained(networks["b"]).id2label
    assert "heads: keep" in (tmp_path / "out" / "recipe.yaml").read_text()


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"heads": "average"}, "--heads average does not suit emr"),
        ({"method": {"name": "emr", "task": 2}}, "there is no task 2"),
        ({"sweep": {"task": [0, 1]}, "tasks": ["rte"]}, "results for different tasks"),
    ],
)
def test_emr_refuses_what_would_be_of_several_tasks(networks, more, said):
    recipe = {"method": "emr", "models": [str(networks[name]) for name in "ab"], "base": str(networks["pre"]), **more}
    with pytest.raises(RecipeError, match=said):
        MergeRecipe(**recipe).plan()


def test_vectors_that_are_subtracted_have_no_say_in_statistics():
    vectors = [{"b.running_var": torch.full((3,), own)} for own in (1.0, 5.0)]
    from graftwork.arithmetic import ties

    assert torch.equal(ties(vectors, weights=[2.0, -1.0])["b.running_var"], torch.full((3,), 1.0))
    assert torch.equal(ties(vectors, weights=[-2.0, -1.0])["b.running_var"], torch.zeros(3))
    assert task_arithmetic(vectors)["b.running_var"][0] == 6.0


@pytest.mark.parametrize("method", ["interpolate", "slerp", "average", "rebasin"])
def test_no_variance_is_below_0(networks, tmp_path, method):
    how = {"name": method, "t": 2.0} if method in ("interpolate", "slerp") else method
    weights = () if isinstance(how, dict) else (-1.0, 1.5)
    found = merged(networks, tmp_path / "out", how, weights=weights)
    for name, own in buffers(found).items():
        assert (own > 0).all(), name
    model = AutoModelForImageClassification.from_pretrained(tmp_path / "out").eval()
    assert model(torch.ones(1, 3, 32, 32)).logits.isfinite().all()


def test_filters_can_name_what_is_averaged(models, networks, tmp_path):
    a, b = (tensors_in(models[name])["classifier.weight"].double() for name in "ab")
    own = ({"filter": "bert", "value": 1.0}, {"filter": "classifier", "value": 3.0})
    found = merged(models, tmp_path / "head", "arithmetic", weights=(own, 1.0), base="bare")
    near(found["classifier.weight"], 0.75 * a + 0.25 * b)
    with pytest.raises(RecipeError, match="no filter of --weights matches the tensor 'classifier"):
        merged(models, tmp_path / "no", "arithmetic", weights=(own[:1], 1.0), base="bare")
    a, b = (buffers(tensors_in(networks[name])) for name in "ab")
    t = ({"filter": "running_mean", "value": 0.25}, {"value": 0.75})
    for method in ("slerp", "interpolate"):
        found = merged(networks, tmp_path / method, {"name": method, "t": t})
        for name, tensor in buffers(found).items():
            share = 0.25 if name.endswith("running_mean") else 0.75
            near(tensor, (1 - share) * a[name].double() + share * b[name].double())


@pytest.mark.parametrize(
    ("method", "weights", "said"),
    [
        (
            {"name": "slerp", "t": ({"filter": "weight", "value": 0.5}, {"filter": "bias", "value": 0.5})},
            (),
            "--method.t",
        ),
        ("rebasin", (1.0, -1.0), "the weights of a mean add up to 0"),
    ],
)
def test_a_plan_refuses_what_the_merge_would(networks, method, weights, said):
    operands = [
        {"model": str(networks[name]), **({"weight": weights[i]} if weights else {})} for i, name in enumerate("ab")
    ]
    with pytest.raises(RecipeError, match=said):
        MergeRecipe(method=method, models=operands).plan()


def test_emr_has_the_buffers_of_its_task_in_python_too(networks):
    base, *each = (Weights.open(networks[name]) for name in ("pre", "a", "b"))
    found = base + emr([own - base for own in each]).vector(1)
    for name, own in buffers(dict(each[1])).items():
        near(found[name], own)


def test_a_tied_head_that_is_stored_beside_the_body_stays_tied(tmp_path):
    for number, name in enumerate("ab"):
        model = AutoModelForCausalLM.from_config(make_config("gpt2", tie_word_embeddings=True))
        randomised(model, seed=number)
        model.save_pretrained(tmp_path / name)
        file = tmp_path / name / "model.safetensors"
        own = tensors_in(tmp_path / name)
        save_tensors(file, {**own, "lm_head.weight": own["transformer.wte.weight"].clone()})
    make_model("gpt2", seed=9).save_pretrained(tmp_path / "bare")
    folders = {name: tmp_path / name for name in ("a", "b", "bare")}
    found = merged(folders, tmp_path / "out", {"name": "arithmetic", "scale": 0.7}, base="bare")
    assert torch.equal(found["lm_head.weight"], found["transformer.wte.weight"])


# -- adapters ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def adapters(backbone):
    return {name: make_adapter(backbone, LoRA(rank=3), trained=True, seed=i) for i, name in enumerate("ab")}


def head(adapter: Adapter):
    return adapter.tensors["head.classifier.weight"].double()


def heads_of(backbone, adapters, method, weights, **settings):
    chosen = make_merge_method(method, settings)
    found = run_on_adapters(chosen, AdapterOperands(adapters=adapters, backbone=backbone, weights=weights))
    return {name: head(own) for name, own in found.merged.adapters.items()}


@pytest.mark.parametrize(
    "method", ["average", "arithmetic", "ties", "dare", "breadcrumbs", "della", "sce", "iso-c", "knots"]
)
def test_heads_of_adapters_are_averaged_by_weights(backbone, adapters, method):
    a, b = (head(own) for own in adapters.values())
    for weights, expected in {(3.0, 1.0): {"a+b": 0.75 * a + 0.25 * b}, (1.0, -0.5): {"a": a}}.items():
        found = heads_of(backbone, adapters, method, weights)
        assert found.keys() == expected.keys()
        for name, own in found.items():
            near(own, expected[name])


def test_heads_of_adapters_have_the_weight_behind_the_last_layer(backbone, adapters):
    a, b = (head(own) for own in adapters.values())
    near(heads_of(backbone, adapters, "average", [(0.0, 3.0), (5.0, 1.0)])["a+b"], 0.75 * a + 0.25 * b)
    near(heads_of(backbone, adapters, "interpolate", None, t=(0.9, 0.25))["a+b"], 0.75 * a + 0.25 * b)
    near(heads_of(backbone, adapters, "slerp", None, t=0.25)["a+b"], 0.75 * a + 0.25 * b)


def test_filters_can_name_the_heads_of_adapters(backbone, adapters):
    a, b = (head(own) for own in adapters.values())
    own = as_number([{"filter": "layers", "value": 1.0}, {"filter": "head", "value": 3.0}])
    for method in ("average", "ties"):
        near(heads_of(backbone, adapters, method, [own, 1.0])["a+b"], 0.75 * a + 0.25 * b)
    layers = as_number([{"filter": "layers", "value": 1.0}])
    with pytest.raises(RecipeError, match=r"no filter of --weights, or --method\.t matches the tensor 'head"):
        heads_of(backbone, adapters, "ties", [layers, 1.0])
    one = {"a": adapters["a"]}  # of which nothing is averaged
    assert torch.equal(heads_of(backbone, one, "interpolate", None, t=layers)["a"], a)


def test_heads_that_are_the_backbone_s_count_like_others():
    backbone = make_backbone("gpt2", head=True)
    own = {
        "cls": make_adapter(backbone, LoRA(rank=2), trained=True, seed=0),
        "gen": make_adapter(backbone, LoRA(rank=2), trained=True, seed=1, head=LanguageHead(shifted=True)),
    }
    assert [*merge_adapters(own, backbone).members.values()] == [("cls",), ("gen",)]
    with pytest.raises(AdapterError, match="cannot be averaged"):
        merge_adapters(own, backbone, heads="average")
    two = {name: replace(own["gen"], task=own["gen"].task.model_copy(update={"name": name})) for name in ("x", "y")}
    assert [*merge_adapters(two, backbone).members.values()] == [("x", "y")]
    assert [*merge_adapters(two, backbone, coefficients=[1.0, -1.0]).members.values()] == [("x",)]


def test_emr_of_adapters_has_the_head_of_its_task(backbone, adapters):
    found = heads_of(backbone, adapters, "emr", None, task=1)
    assert torch.equal(found["b"], head(adapters["b"]))
    with pytest.raises(RecipeError, match="--heads keep does not suit emr"):
        run_on_adapters(
            make_merge_method("emr", {}), AdapterOperands(adapters=adapters, backbone=backbone, heads="keep")
        )
    with pytest.raises(RecipeError, match="there is no task 2"):
        heads_of(backbone, adapters, "emr", None, task=2)
