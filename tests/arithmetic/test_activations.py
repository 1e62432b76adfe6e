"""Matching by activations and by a loss, and the statistics of merged batch norms."""

import pytest
import torch
import torch.nn.functional as F
from arithmetic.networks import cnn, mlp
from closeness import close
from tiny import inputs_for, make_backbone
from torch import nn
from torch.func import functional_call

from graftwork.arithmetic.alignment.activations import activation_matching, recompute_batch_norm
from graftwork.arithmetic.alignment.matching import mean, weight_matching
from graftwork.arithmetic.alignment.permutations import Specification
from graftwork.arithmetic.alignment.settings import MatchingSettings
from graftwork.arithmetic.alignment.specifications import sequential_specification, specification_of
from graftwork.arithmetic.alignment.straightthrough import StraightThroughSettings, straight_through
from graftwork.errors import DivergedError, WeightsError


def inputs(network, count=3, rows=40):
    shape = (rows, 1, 8, 8) if isinstance(network[0], nn.Conv2d) else (rows, 6)
    generator = torch.Generator().manual_seed(5)
    return [torch.randn(shape, generator=generator, dtype=network[0].weight.dtype) for _ in range(count)]


@pytest.mark.parametrize("by", ["correlation", "product"])
@pytest.mark.parametrize("make", [mlp, cnn])
def test_a_planted_permutation_of_a_chain_is_found_by_activations(make, by):
    network, other = make().double(), make().double()
    specification = sequential_specification(network)
    planted = specification.random(seed=6)
    other.load_state_dict(planted.apply(network.state_dict()))
    assert activation_matching(specification, network, other, inputs(network), by=by) == planted.inverse()


@pytest.mark.parametrize("kind", ["bert", "roberta", "electra", "gpt2", "llama", "qwen3", "vit", "modernbert"])
def test_a_planted_permutation_of_a_backbone_is_found_by_activations(kind):
    backbone, other = (make_backbone(kind, dtype=torch.float64) for _ in range(2))
    specification = specification_of(backbone)
    planted = specification.random(seed=7)
    other.model.load_state_dict(planted.apply(backbone.model.state_dict()))
    batches = [inputs_for(backbone.model, *[12] * 6, seed=seed) for seed in range(3)]
    batches.append(inputs_for(backbone.model, 9, 5))
    found = activation_matching(specification, backbone.model, other.model, batches)
    assert found == planted.inverse()
    assert not any(module.training for module in other.model.modules())


def test_a_permuted_resnet_is_undone_by_activations():
    """Units that a rectifier leaves at 0 are all alike, and may be in any order."""
    backbone, other = (make_backbone("resnet", dtype=torch.float64) for _ in range(2))
    specification, images = specification_of(backbone), inputs_for(backbone.model, 1, 1, 1)
    other.model.load_state_dict(specification.random(seed=7).apply(backbone.model.state_dict()))
    found = activation_matching(specification, backbone.model, other.model, [images])
    other.model.load_state_dict(found.apply(other.model.state_dict()))
    before, after = (own.model(**images).last_hidden_state for own in (backbone, other))
    close(after, before)


def test_similarities_are_those_of_a_hand_computation():
    """One hidden layer, so that the permutation is that of one assignment."""
    from scipy.optimize import linear_sum_assignment

    a, b = mlp(1, layers=1).double(), mlp(2, layers=1).double()
    specification, x = sequential_specification(a), inputs(a, count=2)
    hidden = [torch.relu(network[0](torch.cat(x))).detach() for network in (a, b)]
    z, w = (own - own.mean(0) for own in hidden)
    spread = z.pow(2).mean(0).sqrt()[:, None] * w.pow(2).mean(0).sqrt()
    correlation = torch.where(spread > 0, z.T @ w / len(z) / spread, 0.0)
    for by, S in (("correlation", correlation), ("product", hidden[0].T @ hidden[1])):
        found = activation_matching(specification, a, b, x, by=by)
        assert found["0"].tolist() == linear_sum_assignment(S.numpy(), maximize=True)[1].tolist()


def test_padding_does_not_count():
    backbone, other = (make_backbone("bert", seed=seed, dtype=torch.float64) for seed in (0, 1))
    specification = specification_of(backbone)
    short = inputs_for(backbone.model, 6, 6)
    padded = {name: F.pad(own, (0, 4)) for name, own in short.items()}
    found = [activation_matching(specification, backbone.model, other.model, [own]) for own in (short, padded)]
    # The pooling layer has one output for each of two texts, by which its units cannot be told apart.
    assert all(torch.equal(order, found[1][name]) for name, order in found[0].items() if name != "pooler")


def test_what_cannot_be_matched_is_refused():
    network = mlp()
    specification = sequential_specification(network)
    with pytest.raises(WeightsError, match="no batches to match"):
        activation_matching(specification, network, mlp(), [])
    with pytest.raises(WeightsError, match="not finite"):
        activation_matching(specification, network, mlp(), [torch.full((2, 6), float("nan"))])
    only = Specification.of({"0.weight": ("h",), "0.bias": ("h",)}, {"0.weight": (3,), "0.bias": (3,)})
    norms = nn.Sequential(nn.LayerNorm(3))
    with pytest.raises(WeightsError, match="group 'h' are read and written by no linear map"):
        activation_matching(only, norms, norms, [torch.ones(2, 3)])


def test_statistics_of_batch_norms_are_those_of_the_data():
    network = cnn().double()
    network[1].momentum = 0.3
    network.append(nn.Dropout(0.5))
    x = torch.cat(inputs(network))
    recompute_batch_norm(network, x.split(40))
    maps = network[0](x).detach()
    close(network[1].running_mean, maps.mean((0, 2, 3)))
    parts = torch.stack([part.var((0, 2, 3)) for part in maps.split(40)])
    close(network[1].running_var, parts.mean(0))
    assert network[1].momentum == 0.3
    assert not any(module.training for module in network[:-1])
    before = {name: own.clone() for name, own in network.state_dict().items()}
    with pytest.raises(WeightsError, match="no batches to compute"):
        recompute_batch_norm(network, [])
    with pytest.raises(RuntimeError):
        recompute_batch_norm(network, [x, x[:, 0]])
    assert all(torch.equal(own, before[name]) for name, own in network.state_dict().items())
    assert network[1].momentum == 0.3
    with pytest.raises(WeightsError, match="no batch norm"):
        recompute_batch_norm(mlp(), [x])


def test_a_loss_is_never_higher_than_after_weight_matching():
    a, b = mlp(1), mlp(2)
    specification = sequential_specification(a)
    batches = [(x, torch.arange(40) % 3) for x in inputs(a)]

    def loss(tensors, batch):
        return F.cross_entropy(functional_call(a, dict(tensors), batch[0]), batch[1])

    def reached(permutations):
        middle = mean([a.state_dict(), permutations.apply(b.state_dict())])
        return float(sum(loss(middle, batch) for batch in batches))

    settings = StraightThroughSettings(num_epochs=8, learning_rate=0.3)
    matched = weight_matching(specification, a.state_dict(), b.state_dict())
    learned = straight_through(specification, a.state_dict(), b.state_dict(), loss, batches, settings=settings)
    assert reached(learned) < reached(matched)
    with pytest.raises(DivergedError, match="loss of the mean of two networks is nan"):
        straight_through(specification, a.state_dict(), b.state_dict(), lambda *_: torch.tensor(float("nan")), [0])
    with pytest.raises(WeightsError, match="no batches"):
        straight_through(specification, a.state_dict(), b.state_dict(), loss, [])


def test_statistics_of_batch_norms_are_not_learned():
    a, b = cnn(1), cnn(2)
    specification = sequential_specification(a)
    batches = [(x, torch.arange(40) % 3) for x in inputs(a)]

    def loss(tensors, batch):
        assert not tensors["1.running_mean"].requires_grad
        return F.cross_entropy(functional_call(a.train(), dict(tensors), batch[0]), batch[1])

    settings = StraightThroughSettings(num_epochs=1)
    before = {name: own.clone() for name, own in a.state_dict().items()}
    straight_through(specification, a.state_dict(), b.state_dict(), loss, batches, settings=settings)
    assert all(torch.equal(own, before[name]) for name, own in a.state_dict().items())


def test_tied_weights_are_learned_as_one():
    backbone, other = (make_backbone("gpt2", head=True, seed=seed) for seed in (0, 1))
    specification, model = specification_of(backbone), backbone.model
    own = model.state_dict()
    assert own["lm_head.weight"].data_ptr() == own["transformer.wte.weight"].data_ptr()
    batches = [inputs_for(model, 9, 9, 9, seed=seed) for seed in range(2)]

    def loss(tensors, batch):
        assert tensors["lm_head.weight"] is tensors["transformer.wte.weight"]
        logits = functional_call(model, dict(tensors), kwargs=batch).logits
        return F.cross_entropy(logits[:, :-1].flatten(0, 1), batch["input_ids"][:, 1:].flatten())

    settings = StraightThroughSettings(num_epochs=1, learning_rate=1.0)
    found = straight_through(specification, own, other.model.state_dict(), loss, batches, settings=settings)
    assert found.keys() == specification.groups.keys()


def test_a_planted_permutation_stays_found_by_the_estimator():
    network = mlp()
    specification = sequential_specification(network)
    planted = specification.random(seed=1)
    batches = [(x, torch.arange(40) % 3) for x in inputs(network)]

    def loss(tensors, batch):
        return F.cross_entropy(functional_call(network, dict(tensors), batch[0]), batch[1])

    settings = StraightThroughSettings(num_epochs=1, matching=MatchingSettings(rounds=3))
    own = network.state_dict()
    assert (
        straight_through(specification, own, planted.apply(own), loss, batches, settings=settings) == planted.inverse()
    )
