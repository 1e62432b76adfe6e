"""Models of every layout: which tensors are of the head, what stands beside a bare model, and that merges load."""

import pytest
import torch
from closeness import close
from tiny import make_config
from transformers import (
    AutoModelForCausalLM,
    AutoModelForImageClassification,
    AutoModelForMaskedLM,
    AutoModelForSeq2SeqLM,
    AutoModelForSequenceClassification,
)

from graftwork.arithmetic import MergeRecipe, Weights, merge, ties

TASKS = {
    "classes": AutoModelForSequenceClassification,
    "masks": AutoModelForMaskedLM,
    "images": AutoModelForImageClassification,
    "causal": AutoModelForCausalLM,
    "seq2seq": AutoModelForSeq2SeqLM,
}
LAYOUTS = (
    *("bert", "electra", "distilbert", "albert", "deberta-v2", "modernbert", "gpt2", "llama", "phi3", "t5", "bart"),
    *("vit", "dinov2", "resnet"),
)
KINDS = [
    (kind, task) for kind in LAYOUTS for task, own in TASKS.items() if type(make_config(kind)) in own._model_mapping
]


def saved(folder, auto, kind, seed):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = auto.from_config(make_config(kind)).eval()
    model.save_pretrained(folder)
    return model


@pytest.mark.parametrize(("kind", "task"), KINDS)
def test_heads_and_bodies(kind, task, tmp_path):
    auto = TASKS[task]
    models = [saved(tmp_path / name, auto, kind, seed) for seed, name in enumerate("ab")]
    bare = models[0].base_model
    weights = Weights.open(tmp_path / "a")
    if bare is not models[0]:
        bare.save_pretrained(tmp_path / "bare")
        own = Weights.open(tmp_path / "bare")
        prefix = f"{models[0].base_model_prefix}."
        beside = {name for name in weights if not name.startswith(prefix)}
        # A tied output layer is the embedding; what stands beside the bare model without being a head is body.
        assert {*weights.head} <= beside
        # The bare model may have a pooling layer of which the one with a head has none, or the other way round.
        plan = MergeRecipe(method="average", models=[str(tmp_path / "a"), str(tmp_path / "b")]).plan()
        assert {tensor.name for tensor in plan.tensors} == {*weights}
        common = [name for name in weights if name.startswith(prefix) and name.removeprefix(prefix) in own]
        vector = weights.only(common) - own.only([name.removeprefix(prefix) for name in common])
        assert {*vector} == {*common}
        if {name.removeprefix(prefix) for name in weights if name.startswith(prefix)} == {*own}:
            given = {"method": "arithmetic", "models": [str(tmp_path / "a")], "base": str(tmp_path / "bare")}
            plan = MergeRecipe(**given, heads="keep").plan()
            head = {tensor.name for tensor in plan.tensors if tensor.role == "head"}
            assert head == {name for name in weights if not name.startswith(prefix)}
            assert head <= {*plan.named("kept")}
    recipe = MergeRecipe(method={"name": "ties"}, models=[str(tmp_path / "b")], base=str(tmp_path / "a"))
    merge(recipe, tmp_path / "out")
    _, report = auto.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    a, b = (Weights.open(tmp_path / name) for name in "ab")
    name = next(name for name in a if a.shapes[name] and a.source.floating(name))
    expected = a[name] + ties([b - a])[name]
    close(Weights.open(tmp_path / "out")[name], expected, units=2)
