"""Whatever is wrong in a call from Python gets one clear error that names the setting."""

import pytest
import torch
from tiny import make_adapter, make_backbone

import graftwork as gw
from graftwork.errors import AdapterError, DataError, MethodError, RecipeError, SiteError
from graftwork.training import Recipe
from graftwork.training.planning import count

SETTINGS = {
    "unknown key of a task": (lambda: gw.Task(name="t", text="text", lable="x"), RecipeError, ["lable", "label"]),
    "unknown training key": (lambda: gw.TrainingSettings(lr=3), RecipeError, ["unknown key 'lr'", "learning_rate"]),
    "training value": (lambda: gw.TrainingSettings(seed="x"), RecipeError, ["seed='x'"]),
    "unknown key of a method": (lambda: gw.LoRA(rnak=3), MethodError, ["unknown key 'rnak'", "--method.rnak"]),
    "two sizes": (lambda: gw.Houlsby(bottleneck=3, reduction=3), MethodError, ["reduction=3: either bottleneck"]),
    "text without its init": (
        lambda: gw.PromptTuning(text="a"),
        MethodError,
        ["init='text' needs text"],
    ),
    "member without a name": (lambda: gw.Union(methods=[{"rank": 3}]), MethodError, ["{'rank': 3}", "name"]),
    "network that is not there": (
        lambda: gw.PrefixTuning(reparametrise=False, encoder_hidden_size=8),
        MethodError,
        ["encoder_hidden_size=8 would do nothing", "--method.encoder_hidden_size"],
    ),
    "LSTM that is not there": (
        lambda: gw.FeatureExtraction(hidden_size=8),
        MethodError,
        ["hidden_size=8 would do nothing", "--method.hidden_size"],
    ),
    "sharing with nobody": (
        lambda: gw.Pfeiffer(share_positions=True),
        MethodError,
        ["share_positions=True would do nothing", "--method.share_positions"],
    ),
    "seed of no subset": (
        lambda: gw.FullFineTuning(subset_seed=3),
        MethodError,
        ["subset_seed=3 would do nothing", "--method.subset_seed"],
    ),
}


@pytest.mark.parametrize("case", SETTINGS)
def test_settings(case):
    make, error, named = SETTINGS[case]
    with pytest.raises(error) as caught:
        make()
    said = str(caught.value)
    assert not [fragment for fragment in named if fragment not in said], said
    assert "Value error" not in said
    assert "; " not in said.split("\n")[0].replace("key; ", ""), "one problem is told once"


def test_training_settings_are_checked_with_the_rest_of_a_recipe():
    with pytest.raises(RecipeError) as caught:
        Recipe.parse({"backbon": "x", "task": "sst2", "train": {"sead": 3, "seed": "x"}}, given={"train.sead"})
    assert all(part in str(caught.value) for part in ("'backbon'", "'train.sead'", "train.seed='x'"))
    assert str(caught.value).endswith("change: --train.sead, the recipe")


@pytest.mark.parametrize("method", [3, {"rank": 3}, gw.LoRA, "lorra"])
def test_tune_takes_a_method_or_its_name(method):
    with pytest.raises(MethodError, match=r"change: --method"):
        gw.tune(make_backbone(), task="movie-reviews", method=method)


def test_a_reduction_that_leaves_nothing():
    backbone = make_backbone()
    assert make_adapter(backbone, gw.Pfeiffer(reduction=32)).tensors["layers.0.ffn.result.down"].shape == (1, 32)
    with pytest.raises(MethodError, match=r"reduction of 33(.|\n)*at most 32(.|\n)*--method\.reduction"):
        make_adapter(backbone, gw.Pfeiffer(reduction=33))


def test_a_plan_refuses_the_prompts_that_tune_refuses():
    with pytest.raises(RecipeError, match=r"600 prompt tokens leave no positions(.|\n)*--method.num_virtual_tokens"):
        count("minilm", "prompt-tuning", {"num_virtual_tokens": 600})


@pytest.mark.parametrize(
    ("method", "setting"),
    [
        (gw.LoRA(targets="quary"), "targets"),
        (gw.IA3(outputs="quary"), "outputs"),
        (gw.IA3(inputs="quary"), "inputs"),
    ],
    ids=str,
)
def test_a_site_pattern_names_its_setting(method, setting):
    with pytest.raises(SiteError, match=rf"change: --method\.{setting}$"):
        method.sites(make_backbone().sites)


def test_lists_in_one_text_may_have_blanks():
    assert gw.LoRA(targets="query, value") == gw.LoRA(targets=["query", "value"])
    assert gw.Houlsby(sublayers=" ffn , attention") == gw.Houlsby(sublayers=["attention", "ffn"])
    assert gw.Task(name="t", text="text", labels="no, yes").labels == ("no", "yes")
    assert gw.IA3(inputs="").inputs == ()


def test_a_pass_needs_inputs():
    model = gw.AdaptedModel(make_backbone(), {"a": make_adapter(make_backbone(), gw.LoRA(rank=2))})
    for adapters in ("a", ["a"], None):
        with pytest.raises(AdapterError, match=r"no inputs\n  expected: input_ids or inputs_embeds"):
            model(adapters=adapters)


NO_TEXTS = {
    "mapping": ({"a": 1}, "text 1 is {'a': 1}"),
    "three": (["a", "b", "c"], r"text 1 is \['a', 'b', 'c'\]"),
    "two": (("a", "b"), "text 1 is a pair"),
}


@pytest.mark.parametrize(("text", "named"), NO_TEXTS.values(), ids=NO_TEXTS)
def test_what_is_no_text_is_said(text, named):
    backbone = make_backbone(tokenizer=True)
    model = gw.AdaptedModel(backbone, {"a": make_adapter(backbone, gw.LoRA(rank=2))})
    with pytest.raises(DataError, match=named):
        model.predict([text])


def test_labels_without_tokens_are_no_start():
    backbone = make_backbone(tokenizer=True)
    sites = backbone.sites
    method = gw.PromptTuning(init="labels", num_virtual_tokens=2)
    with pytest.raises(MethodError, match=r"' ', '\\t' have no tokens(.|\n)*--method\.init"):
        method.initial({}, method.sites(sites), backbone, [" ", "\t"], torch.Generator())
