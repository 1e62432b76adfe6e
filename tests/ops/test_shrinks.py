"""Low-rank ops that are given one input shrink it together, and add in place; nothing that they say changes."""

import pytest
import torch
import torch.nn as nn
from beside import states
from tiny import make_adapter, make_backbone

from graftwork.grafting import Graft
from graftwork.methods import LoRA
from graftwork.ops import LowRank, routing
from graftwork.ops.shrinks import with_joint_shrinks

D, R, B, T = 6, 2, 4, 5
EXACT = {"rtol": 0, "atol": 1e-12}
NAMES = [f"layers.0.attention.{name}" for name in ("query", "key", "value")]


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def separate(names, out=D, dropout=0.0, ranks=(R, R, R)):
    return {
        name: [LowRank(A=random(rank, D, seed=i), B=random(out, rank, seed=i + 9), dropout=dropout)]
        for i, (name, rank) in enumerate(zip(names, ranks, strict=False))
    }


@pytest.fixture
def linear():
    made = nn.Linear(D, D).double().requires_grad_(False)
    made.weight.copy_(random(D, D, seed=30))
    return made


@pytest.fixture
def products(monkeypatch):
    """How wide each shrink is that is computed."""
    widths, compute = [], routing.linear
    monkeypatch.setattr(routing, "linear", lambda x, W, **of: (widths.append(W.shape[-2]), compute(x, W, **of))[1])
    return widths


def test_one_product_serves_query_key_and_value(linear, products, make_place):
    x, ops = random(B, T, D, seed=5), separate(NAMES)
    joint, place = with_joint_shrinks(ops), make_place(linear)
    for name in NAMES:
        [own], [op] = ops[name], joint[name]
        found = op.around(linear, place)(x)
        torch.testing.assert_close(found, linear(x) + x @ own.A.T @ own.B.T, **EXACT)
    assert products == [3 * R]
    assert not place.memory


def test_an_op_that_is_given_another_input_computes_its_own(linear, products, make_place):
    x, other, ops = random(B, T, D, seed=5), random(B, T, D, seed=6), separate(NAMES)
    joint, place = with_joint_shrinks(ops), make_place(linear)
    for name, given in zip(NAMES, (x, other, x), strict=True):
        [own] = ops[name]
        found = joint[name][0].around(linear, place)(given)
        torch.testing.assert_close(found, linear(given) + given @ own.A.T @ own.B.T, **EXACT)
    assert products == [3 * R] * 3


def test_no_layer_uses_products_of_another_in_whatever_order_its_sites_run(linear, make_place):
    # A decoder's layers are all given one tensor of the encoder's states.
    x, place = random(B, T, D, seed=5), make_place(linear)
    for layer in (0, 1):
        names = [f"layers.{layer}.cross_attention.{name}" for name in ("key", "value")]
        ops = {name: [LowRank(A=random(R, D, seed=layer + 5), B=random(D, R, seed=layer))] for name in names}
        joint = with_joint_shrinks(ops)
        for name in reversed(names):
            [own], [op] = ops[name], joint[name]
            torch.testing.assert_close(op.around(linear, place)(x), linear(x) + x @ own.A.T @ own.B.T, **EXACT)
        assert not place.memory


def test_what_has_other_ranks_or_no_neighbour_stays_by_itself():
    for ops in (separate(NAMES, ranks=(2, 3, 2)), separate(NAMES[:1]), separate(["layers.0.ffn.up", NAMES[0]])):
        assert with_joint_shrinks(ops) == ops


def test_dropout_is_drawn_for_each_site_by_itself(linear, make_place):
    x, ops = random(B, T, D, seed=5), separate(NAMES, dropout=0.5)
    torch.manual_seed(0)
    place = make_place(linear, training=True)
    expected = [ops[name][0].around(linear, place)(x) for name in NAMES]
    torch.manual_seed(0)
    joint = with_joint_shrinks(ops)
    for name, own in zip(NAMES, expected, strict=True):
        torch.testing.assert_close(joint[name][0].around(linear, place)(x), own, **EXACT)


@pytest.mark.parametrize("slots", [(), (2,)])
@pytest.mark.parametrize("with_bias", [True, False])
def test_gradients_of_an_addition_in_place(linear, slots, with_bias):
    bias = linear.bias if with_bias else None
    leaves = [random(B, T, D, seed=1), random(B, T, R, seed=2), random(*slots, D, R, seed=3)]
    leaves = [leaf.requires_grad_() for leaf in leaves]

    def plainly(x, s, wider):
        return routing.add_linear(torch.nn.functional.linear(x, linear.weight, bias), s, wider)

    def in_place(x, s, wider):
        return routing.linear_and(x, linear.weight, bias, s, wider)

    weights, found = random(B, T, D, seed=4), []
    for compute in (plainly, in_place):
        result = compute(*leaves)
        found.append([result.detach(), *torch.autograd.grad((result * weights).sum(), leaves)])
    for expected, own in zip(*found, strict=True):
        torch.testing.assert_close(own, expected, **EXACT)
    assert torch.autograd.gradcheck(in_place, leaves)


def test_the_frozen_input_is_not_kept_for_the_backward_pass(linear):
    x, s, wider = random(B, T, D, seed=1), random(B, T, R, seed=2).requires_grad_(), random(D, R, seed=3)
    result = routing.linear_and(x, linear.weight, linear.bias, s, wider)
    assert all(saved is not x for saved in result.grad_fn.saved_tensors)


@pytest.mark.parametrize("blocks", [None, (1, 3)])
def test_only_what_a_gradient_needs_is_kept(linear, blocks):
    """Of a product with a frozen slab, or of a frozen input, and of an addition in place with either."""
    x, s, W, U = random(B, T, D, seed=1), random(B, T, R, seed=2), random(2, R, D, seed=3), random(2, D, R, seed=4)

    def kept(compute, *given, trained):
        given[trained].requires_grad_()
        saved = compute(*given).grad_fn.saved_tensors
        given[trained].requires_grad_(False)
        return [place for place, tensor in enumerate(given) for own in saved if own is tensor]

    def product(x, W):
        return routing.linear(x, W, blocks=blocks)

    def in_place(s, U):
        return routing.linear_and(x, linear.weight, linear.bias, s, U, blocks)

    assert kept(product, x, W, trained=0) == [1]
    assert kept(product, x, W, trained=1) == [0]
    assert kept(in_place, s, U, trained=0) == [1]
    assert kept(in_place, s, U, trained=1) == [0]


def test_a_hook_on_the_frozen_module_is_called(linear, make_place):
    called = []
    linear.register_forward_hook(lambda *_: called.append(1))
    [op] = separate(NAMES[:1])[NAMES[0]]
    x = random(B, T, D, seed=5)
    torch.testing.assert_close(op.around(linear, make_place(linear))(x), linear(x) + x @ op.A.T @ op.B.T, **EXACT)
    assert len(called) == 2


def test_a_step_under_autocast(make_place):
    inner = nn.Linear(D, D).requires_grad_(False)
    A, B = (random(*shape, seed=7).float().requires_grad_() for shape in ((R, D), (D, R)))
    x = random(2, T, D, seed=5).float()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = LowRank(A=A, B=B).around(inner, make_place(inner))(x)
    assert found.dtype == torch.bfloat16
    torch.testing.assert_close(found.float(), inner(x) + x @ A.T @ B.T, rtol=0.05, atol=0.1)
    found.float().sum().backward()
    assert A.grad is not None
    assert B.grad is not None


@pytest.mark.parametrize("kind", ["bert", "gpt2", "llama", "t5", "bart", "modernbert", "deberta-v2"])
def test_a_backbone_says_the_same_with_joint_shrinks(kind):
    backbone = make_backbone(kind)
    backbone.model.double()
    ids = torch.arange(14).reshape(2, 7) + 5
    batch = {"input_ids": ids} | ({"decoder_input_ids": ids[:, :4]} if backbone.is_encoder_decoder else {})
    adapter = make_adapter(backbone, LoRA(rank=R), trained=True)
    sites = adapter.method.sites(backbone.sites)
    tensors = {name: tensor.double() for name, tensor in adapter.tensors.items()}
    apart = {site.name: adapter.method.lower(site, tensors, backbone.frozen(site)) for site in sites}
    joint, graft = with_joint_shrinks(apart), Graft(backbone)
    assert sum(op.joint is not None for [op] in joint.values()) >= 2
    graft.attach(apart)
    found = []
    for ops in (apart, joint):
        with torch.no_grad(), graft.run(ops):
            found.append(states(graft.base, batch))
    for expected, own in zip(*found, strict=True):
        torch.testing.assert_close(own, expected, rtol=0, atol=1e-11)
