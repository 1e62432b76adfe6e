"""Matching: a planted permutation is found to the last bit, and small cases are solved as by trying all of them."""

from itertools import permutations, product

import pytest
import torch
from arithmetic.networks import cnn, mlp
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import CONFIGS, GENERATORS, make_backbone, randomised
from torch import nn

from graftwork.arithmetic.alignment.matching import mean, merge_many, weight_matching
from graftwork.arithmetic.alignment.permutations import Permutations, Specification
from graftwork.arithmetic.alignment.settings import MatchingSettings
from graftwork.arithmetic.alignment.specifications import sequential_specification, specification_of
from graftwork.arithmetic.alignment.straightthrough import StraightThroughSettings
from graftwork.errors import MethodError, WeightsError

ATTENTION = Specification.of(
    {
        "query": (("heads", "query_units"), None),
        "key": (("heads", "query_units"), None),
        "value": (("heads", "value_units"), None),
        "output": (None, ("heads", "value_units")),
    },
    dict.fromkeys(("query", "key", "value", "output"), (4, 4)),
    sizes={"heads": 2, "query_units": 2, "value_units": 2},
    within={"query_units": "heads", "value_units": "heads"},
)


def random_tensors(specification, seed):
    generator = torch.Generator().manual_seed(seed)
    return {
        name: torch.randn(shape, generator=generator, dtype=torch.float64)
        for name, shape in specification.shapes.items()
    }


def distance(a, b):
    return float(sum(((a[name] - b[name]) ** 2).sum() for name in a))


@pytest.mark.parametrize("kind", CONFIGS)
def test_a_planted_permutation_of_a_backbone_is_found_to_the_last_bit(kind):
    backbone = make_backbone(kind, head=kind in GENERATORS)
    specification = specification_of(backbone)
    own = backbone.model.state_dict()
    planted = specification.random(seed=3)
    other = planted.apply(own)
    assert any(not torch.equal(other[name], own[name]) for name in own)
    found = weight_matching(specification, own, other)
    assert found == planted.inverse()
    assert all(torch.equal(tensor, own[name]) for name, tensor in found.apply(other).items())


@pytest.mark.parametrize("make", [mlp, cnn])
@pytest.mark.parametrize("seed", range(3))
def test_a_planted_permutation_of_a_chain_is_found_to_the_last_bit(make, seed):
    network = make(seed)
    specification = sequential_specification(network)
    planted = specification.random(seed=seed)
    found = weight_matching(specification, network.state_dict(), planted.apply(network.state_dict()))
    assert found == planted.inverse()


def test_a_permuted_chain_computes_the_same():
    for network, x in ((mlp(), torch.randn(5, 6)), (cnn(), torch.randn(5, 1, 8, 8))):
        network, x = network.double(), x.double()
        before = network(x)
        specification = sequential_specification(network)
        network.load_state_dict(specification.random(seed=4).apply(network.state_dict()))
        assert (network(x) - before).abs().max() <= 1e-12 * before.abs().max()


@pytest.mark.parametrize("seed", range(5))
def test_one_hidden_layer_is_matched_as_by_trying_every_permutation(seed):
    specification = Specification.of({"in": ("h", None), "out": (None, "h")}, {"in": (5, 3), "out": (2, 5)})
    a, b = random_tensors(specification, seed), random_tensors(specification, seed + 100)
    found = weight_matching(specification, a, b)
    tried = (Permutations(specification, {"h": torch.tensor(order)}) for order in permutations(range(5)))
    assert distance(a, found.apply(b)) == pytest.approx(min(distance(a, own.apply(b)) for own in tried), rel=1e-12)


@pytest.mark.parametrize("seed", range(5))
def test_an_attention_is_matched_as_by_trying_every_permutation(seed):
    a, b = random_tensors(ATTENTION, seed), random_tensors(ATTENTION, seed + 100)
    found = weight_matching(ATTENTION, a, b)
    two = [[0, 1], [1, 0]]
    tried = [
        Permutations(
            ATTENTION,
            {
                "heads": torch.tensor(heads),
                "query_units": torch.tensor([q0, q1]),
                "value_units": torch.tensor([v0, v1]),
            },
        )
        for heads, q0, q1, v0, v1 in product(two, repeat=5)
    ]
    assert distance(a, found.apply(b)) == pytest.approx(min(distance(a, own.apply(b)) for own in tried), rel=1e-12)


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 1000), other=st.integers(0, 1000))
def test_permutations_are_a_group(seed, other):
    P, Q = ATTENTION.random(seed), ATTENTION.random(other)
    weights = random_tensors(ATTENTION, seed)
    one = Q.apply(P.apply(weights))
    both = P.then(Q).apply(weights)
    assert all(torch.equal(one[name], both[name]) for name in weights)
    assert P.then(P.inverse()) == ATTENTION.identity() == P.inverse().then(P)
    assert ATTENTION.identity().apply(weights).keys() == weights.keys()


@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 1000))
def test_matching_does_not_depend_on_the_order_of_units_of_either(seed):
    """The distance after matching is the same whatever order the networks come in, with one hidden layer."""
    specification = Specification.of({"in": ("h", None), "out": (None, "h")}, {"in": (6, 3), "out": (2, 6)})
    a, b = random_tensors(specification, seed), random_tensors(specification, seed + 1)
    moved = specification.random(seed).apply(b)
    first, second = (distance(a, weight_matching(specification, a, own).apply(own)) for own in (b, moved))
    assert first == pytest.approx(second, rel=1e-12)


def test_matching_never_moves_away_and_fixed_groups_stay():
    specification = sequential_specification(mlp())
    a, b = mlp(1).double().state_dict(), mlp(2).double().state_dict()
    for start in ("spread", "identity"):
        found = weight_matching(specification, a, b, settings=MatchingSettings(start=start))
        assert distance(a, found.apply(b)) < distance(a, b)
    found = weight_matching(specification, a, b, settings=MatchingSettings(fixed=("0",)))
    assert torch.equal(found["0"], torch.arange(12))
    assert not torch.equal(found["2"], torch.arange(12))


def test_copies_of_one_network_are_merged_into_it():
    network = mlp().double()
    specification = sequential_specification(network)
    copies = [specification.random(seed).apply(network.state_dict()) for seed in range(4)]
    merged, found = merge_many(specification, copies)
    assert found[0] == specification.identity()
    for own, undone in zip(copies, found, strict=True):
        assert all(torch.equal(tensor, copies[0][name]) for name, tensor in undone.apply(own).items())
    x = torch.randn(7, 6, dtype=torch.float64)
    before = network(x)
    network.load_state_dict(merged)
    assert all((merged[name] - tensor).abs().max() <= 1e-15 for name, tensor in copies[0].items())
    assert (network(x) - before).abs().max() <= 1e-12 * before.abs().max()


def test_of_two_the_first_stays():
    specification = sequential_specification(mlp())
    a, b = mlp(1).state_dict(), mlp(2).state_dict()
    merged, (first, second) = merge_many(specification, [a, b])
    assert first == specification.identity()
    assert second == weight_matching(specification, a, b)
    expected = mean([a, second.apply(b)])
    assert all(torch.equal(tensor, expected[name]) for name, tensor in merged.items())


def test_the_mean_of_equals_is_itself_and_counters_stay():
    own = cnn().state_dict()
    assert all(torch.equal(tensor, own[name]) for name, tensor in mean([own, own]).items())
    halves = mean([{"w": torch.tensor([1.0, 2.0], dtype=torch.bfloat16)}, {"w": torch.tensor([2.0, 4.0]).bfloat16()}])
    assert halves["w"].dtype == torch.bfloat16
    assert halves["w"].tolist() == [1.5, 3.0]


def test_wrong_tensors_are_refused_by_name():
    network = mlp()
    specification, own = sequential_specification(network), network.state_dict()
    with pytest.raises(WeightsError, match=r"second network lack the tensor '2\.bias'"):
        weight_matching(specification, own, {name: tensor for name, tensor in own.items() if name != "2.bias"})
    with pytest.raises(WeightsError, match=r"says nothing of 'more'"):
        weight_matching(specification, {**own, "more": own["2.bias"]}, own)
    with pytest.raises(WeightsError, match=r"'0\.bias' of the second network has the shape \(3,\)"):
        weight_matching(specification, own, {**own, "0.bias": torch.zeros(3)})
    with pytest.raises(WeightsError, match=r"'0\.bias' of the first network has a number that is not finite"):
        weight_matching(specification, {**own, "0.bias": own["0.bias"] * float("nan")}, own)
    with pytest.raises(WeightsError, match="'residual' is no group"):
        weight_matching(specification, own, own, settings=MatchingSettings(fixed=("residual",)))
    with pytest.raises(WeightsError, match="two or more"):
        merge_many(specification, [own])
    assert MatchingSettings(fixed="0, 2").fixed == ("0", "2")
    with pytest.raises(MethodError, match=r"invalid settings of matching: .*rounds"):
        MatchingSettings(rounds=0, start="middle")
    with pytest.raises(MethodError, match=r"straight-through estimator: .*learning_rate"):
        StraightThroughSettings(learning_rate=-1)


def test_a_batch_norm_behind_a_flattened_map_has_its_channels():
    layers = (nn.Conv2d(1, 3, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.BatchNorm1d(48), nn.Linear(48, 2))
    network = randomised(nn.Sequential(*layers), seed=0).double().eval()
    x = torch.randn(5, 1, 4, 4, dtype=torch.float64)
    before = network(x)
    specification = sequential_specification(network)
    network.load_state_dict(specification.random(seed=4).apply(network.state_dict()))
    assert (network(x) - before).abs().max() <= 1e-12 * before.abs().max()


def test_wrong_specifications_are_refused():
    with pytest.raises(WeightsError, match="'0' is a convolution in 2 groups"):
        sequential_specification(nn.Sequential(nn.Conv2d(2, 4, 1, groups=2), nn.Conv2d(4, 2, 1)))
    with pytest.raises(WeightsError, match="'1' of the chain is a LSTM"):
        sequential_specification(nn.Sequential(nn.Linear(2, 2), nn.LSTM(2, 2)))
    with pytest.raises(WeightsError, match="group 'h' has 3 units along tensor 'out'"):
        Specification.of({"in": ("h", None), "out": (None, "h")}, {"in": (5, 3), "out": (2, 3)})
    with pytest.raises(WeightsError, match="size of group 'units', which stands in products only"):
        Specification.of({"w": (("units", 2),)}, {"w": (4,)})
    with pytest.raises(WeightsError, match="'v' has 1 axes in the specification, and the shape None"):
        Specification.of({"v": ("h",)}, {"w": (4,)})
    with pytest.raises(WeightsError, match="stands outside of 'heads'"):
        Specification.of({"w": (("units",),)}, {"w": (2,)}, sizes={"units": 2}, within={"units": "heads"})
