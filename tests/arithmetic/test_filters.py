"""Numbers that differ from tensor to tensor."""

import pytest
from arithmetic.models import random_tensors
from closeness import close
from pydantic import TypeAdapter

from graftwork.arithmetic import Weights, average, interpolate, ties
from graftwork.arithmetic.values.filters import Number, as_number, resolved
from graftwork.arithmetic.values.roles import layers_of
from graftwork.errors import RecipeError

NAMES = [
    "model.embed_tokens.weight",
    *(f"model.layers.{i}.{part}" for i in range(5) for part in ("self_attn.q_proj.weight", "mlp.up_proj.weight")),
    "model.norm.weight",
    "lm_head.weight",
]


def at(number, name):
    found = resolved(as_number(number), NAMES, "keep")
    return found if isinstance(found, float) else found[name]


def test_layers_are_known_by_their_numbers():
    assert layers_of(NAMES)["model.layers.3.mlp.up_proj.weight"] == (3, 5)
    assert layers_of(["encoder.layer.0.a", "decoder.layer.2.a", "0.weight"]) == {
        "encoder.layer.0.a": (0, 1),
        "decoder.layer.2.a": (2, 3),
    }


def test_numbers_run_from_the_first_layer_to_the_last():
    number = [0.0, 1.0, 0.5]
    assert [at(number, f"model.layers.{i}.mlp.up_proj.weight") for i in range(5)] == [0.0, 0.5, 1.0, 0.75, 0.5]
    assert at(number, "model.embed_tokens.weight") == 0.0
    assert at(number, "model.norm.weight") == at(number, "lm_head.weight") == 0.5
    assert at([0.3], "model.layers.2.mlp.up_proj.weight") == 0.3


def test_the_first_filter_that_matches_decides():
    rules = [
        {"filter": "layers.[0-2].mlp", "value": 0.1},
        {"filter": "mlp", "value": [0.0, 1.0]},
        {"filter": "layers.[34].*", "value": 0.7},
        {"value": 0.2},
    ]
    assert at(rules, "model.layers.1.mlp.up_proj.weight") == 0.1
    assert at(rules, "model.layers.4.mlp.up_proj.weight") == 1.0
    assert at(rules, "model.layers.3.self_attn.q_proj.weight") == 0.7
    assert at(rules, "model.layers.0.self_attn.q_proj.weight") == at(rules, "lm_head.weight") == 0.2


def test_a_filter_is_of_whole_parts_of_names():
    with pytest.raises(RecipeError, match=r"filter 'ml' of keep matches no tensor"):
        at([{"filter": "ml", "value": 1.0}, {"value": 0.5}], "lm_head.weight")
    with pytest.raises(RecipeError, match=r"no filter of keep matches the tensor 'model\.embed_tokens\.weight'"):
        at([{"filter": "layers.*", "value": 1.0}], "lm_head.weight")


def test_recipes_and_python_mean_the_same():
    plain = [{"filter": "mlp", "value": [0.1, 0.2]}, {"value": 1}]
    assert TypeAdapter(Number).validate_python(plain) == as_number(plain)
    assert TypeAdapter(Number).validate_python([1, 2.5]) == as_number([1, 2.5])
    for wrong in ("much", [], [1, {"value": 2}], True):
        with pytest.raises(RecipeError, match="is no number"):
            as_number(wrong)


def test_every_number_of_an_operation_may_differ():
    a, b = random_tensors(0), random_tensors(1)
    found = interpolate([a, b], t=[{"filter": "layers.0", "value": 0.0}, {"value": 1.0}])
    close(found["layers.0.weight"], a["layers.0.weight"])
    close(found["last"], b["last"])
    shares = [1.0, [{"filter": "last", "value": 3.0}, {"value": 1.0}]]
    found = average([Weights.of(a), Weights.of(b)], weights=shares)
    close(found["last"], (a["last"] + 3 * b["last"]) / 4)
    close(found["norm"], (a["norm"] + b["norm"]) / 2)
    found = ties([a, b], keep=[{"filter": "layers", "value": 0.0}, {"value": 1.0}], scope="tensor")
    assert not found["layers.0.weight"].any()
    assert found["last"].any()
