"""Parts with a layer norm behind their bottleneck, as generated ones have, in compositions: against the formula."""

import pytest
import torch
from closeness import PASS, close
from methods.test_compositions import Lone, attention, doubled, ops_of, part_outputs, parts_on, states_of
from tiny import WIDTH, inputs_for, make_adapter, make_backbone

from graftwork.errors import MethodError
from graftwork.methods import (
    IA3,
    Average,
    BiHNet,
    DoRA,
    Fuse,
    Gate,
    Houlsby,
    HyperFormer,
    HyperGrid,
    LayerNormTuning,
    Pfeiffer,
)
from graftwork.model import AdaptedModel

COMMON = {"norms": "none", "activation": "relu"}
NORMED = Houlsby(bottleneck=6, layer_norm="output", **COMMON)
SMALL = Houlsby(bottleneck=3, layer_norm="output", scale=2.0, norms="none", activation="tanh")
PLAIN = Houlsby(bottleneck=4, **COMMON)
PARTS = {"normed": NORMED, "plain": PLAIN, "small": SMALL}
SITE = "layers.1.ffn.result"


def by_hand(tensors, name, method, h):
    """s · LN_{γ,β}(U σ(D h + b_D) + b_U)."""
    u = part_outputs(tensors, name, SITE, h, method.activation)
    if method.layer_norm == "none":
        return u
    gain, bias = (tensors[f"parts.{name}.{SITE}.{n}"] for n in ("norm_gain", "norm_bias"))
    return torch.nn.functional.layer_norm(u, u.shape[-1:], method.scale * gain, method.scale * bias)


def combined(method, tensors, h, u):
    """What the parts add, (N, B, T, d), in the way of each composition."""
    if isinstance(method, Fuse):
        return attention(tensors, SITE, h, u)[0]
    if isinstance(method, Gate):
        g = torch.sigmoid(h @ tensors[f"gate.{SITE}.weight"].T + tensors[f"gate.{SITE}.bias"])
        return sum(g[..., n, None] * own for n, own in enumerate(u))
    return sum(w * own for w, own in zip(method.weights, u, strict=True))


@pytest.mark.parametrize(
    "method",
    [Fuse(parts=PARTS, attention_dropout=0.0), Gate(parts=PARTS), Average(parts=PARTS, weights=(0.2, 1.5, -0.4))],
    ids=["fuse", "gate", "average"],
)
def test_the_norm_is_that_of_each_part_and_so_are_its_gradients(method):
    backbone = make_backbone("bert", dtype=torch.float64)
    adapter = make_adapter(backbone, method, trained=True)
    tensors = {name: tensor.requires_grad_() for name, tensor in doubled(adapter).items()}
    generator = torch.Generator().manual_seed(3)
    h = torch.randn(2, 5, WIDTH, generator=generator, dtype=torch.float64)
    [op] = ops_of(backbone, adapter, tensors)[SITE]
    found = op.around(lambda x: x, Lone(training=True))(h)
    u = torch.stack([by_hand(tensors, name, own, h) for name, own in PARTS.items()])
    expected = h + combined(method, tensors, h, u)
    close(found, expected)
    with torch.no_grad():  # where units are divided in place
        [resting] = ops_of(backbone, adapter, tensors)[SITE]
        close(resting.around(lambda x: x, Lone())(h), expected)
    own = [name for name in tensors if SITE in name and not name.endswith("key_bias")]
    direction = torch.randn(found.shape, generator=generator, dtype=torch.float64)
    gradients = [torch.autograd.grad((y * direction).sum(), [tensors[n] for n in own]) for y in (found, expected)]
    assert sum("norm_gain" in name for name in own) == 2
    largest = max(float(gradient.abs().max()) for gradient in gradients[1])
    for name, mine, theirs in zip(own, *gradients, strict=True):
        close(mine, theirs, what=name, scale=largest)


def test_compositions_with_norms_nest():
    """The norms of an inner composition's parts come before its gates, and those before the outer one's."""
    backbone = make_backbone("bert", dtype=torch.float64)
    inner = Gate(parts={"normed": NORMED, "plain": PLAIN})
    method = Average(parts={"plain": PLAIN, "inner": inner, "small": SMALL}, weights=(0.5, 2.0, 1.5))
    adapter = make_adapter(backbone, method, trained=True)
    tensors = doubled(adapter)
    h = torch.randn(2, 5, WIDTH, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    [op] = ops_of(backbone, adapter)[SITE]
    within = {name.removeprefix("parts.inner."): t for name, t in tensors.items() if name.startswith("parts.inner.")}
    u = [by_hand(within, "normed", NORMED, h), by_hand(within, "plain", PLAIN, h)]
    parts = [by_hand(tensors, "plain", PLAIN, h), combined(inner, within, h, u), by_hand(tensors, "small", SMALL, h)]
    close(op.around(lambda x: x, Lone())(h), h + combined(method, tensors, h, parts))


@pytest.mark.parametrize("composition", [Fuse, Gate, Average])
def test_in_a_mixed_batch_parts_with_norms_say_what_they_say_alone(composition):
    backbone = make_backbone("bert", dtype=torch.float64)
    adapters = {
        "a": make_adapter(backbone, composition(parts=PARTS), trained=True, seed=1),
        "b": make_adapter(backbone, composition(parts=[SMALL, SMALL]), trained=True, seed=2),
        "c": make_adapter(backbone, PLAIN, trained=True, seed=3),
    }
    batch = inputs_for(backbone.model, 7, 4, 5)
    model = AdaptedModel(backbone, adapters).to(torch.float64)
    alone = {name: model(**batch, adapters=name).logits for name in adapters}
    for names in (["a", "b", "a"], ["b", "a", "c"], ["a", None, "b"]):
        for i, (name, row) in enumerate(zip(names, model(**batch, adapters=names).rows, strict=True)):
            if name is not None:
                close(row, alone[name][i], PASS)
    model.detach()


@pytest.mark.parametrize(
    "method",
    [
        NORMED,
        HyperFormer(bottleneck=6, code_size=8),
        BiHNet(bottleneck=6, code_size=8),
        HyperGrid(grid_rows=4, grid_columns=2, code_size=5),
        HyperGrid(grid_rows=4, grid_columns=2, grids="free"),
    ],
    ids=lambda method: method.name,
)
def test_an_average_of_one_adapter_twice_is_that_adapter(method):
    backbone = make_backbone("bert", dtype=torch.float64)
    batch = inputs_for(backbone.model, 7, 4)
    [adapter] = parts_on(backbone, method)
    average = make_adapter(backbone, Average(parts=[adapter, adapter]))
    found, alone = (states_of(backbone, own, batch) for own in (average, adapter))
    for mine, theirs in zip(found, alone, strict=True):
        close(mine, theirs, PASS)


def refused(composition, *methods):
    backbone = make_backbone("bert")
    with pytest.raises(MethodError) as caught:
        AdaptedModel(backbone, {"a": make_adapter(backbone, composition(parts=list(methods)))})
    return caught.value


@pytest.mark.parametrize("composition", [Fuse, Gate])
def test_an_average_is_advised_only_where_there_is_one(composition):
    for method in (IA3(), LayerNormTuning(), HyperFormer(bottleneck=6, code_size=8), HyperGrid(grid_rows=4)):
        error = refused(composition, method, method)
        assert "cannot be gated" in error.problem
        assert error.change == "--kind average, or the parts"
        backbone = make_backbone("bert")
        AdaptedModel(backbone, {"a": make_adapter(backbone, Average(parts=[method, method]))})
    # Of the trained norms there is an average, and of these bottlenecks there is none.
    for settings in ({"layer_norm": "input"}, {"depth": 2}, {"interaction": "multiply"}):
        own = Houlsby(bottleneck=4, **settings)
        assert refused(composition, own, own).change == "the parts"
        assert refused(Average, own, own).change == "the parts"


def test_a_product_and_a_sum_at_one_site_have_no_average():
    """DoRA's magnitudes multiply what its low-rank product has changed, and Pfeiffer's bottleneck reads the norm."""
    for method, said in ((DoRA(rank=2), "LowRank"), (Pfeiffer(bottleneck=4, norms="layers"), "Bottleneck")):
        error = refused(Average, method, method)
        assert f"changes what the part's {said} op gives at the same site" in error.problem
        assert refused(Fuse, method, method).change == "the parts"


def test_grids_of_two_sizes_have_no_average():
    error = refused(Average, HyperGrid(grid_rows=4, grid_columns=2), HyperGrid(grid_rows=8, grid_columns=2))
    assert "part 'hypergrid-2'" in error.problem
    assert "(8, 2) is not of the size of part 'hypergrid', (4, 2)" in error.problem
