"""The graft puts site modules in the place of a backbone's own and takes them out again without a trace."""

from itertools import permutations

import pytest
import torch
from closeness import PASS, close
from tiny import ENCODERS, SAMPLES, batch_for, bits, make_adapter, make_backbone

from graftwork.errors import AdapterError, BackboneError, SiteError
from graftwork.grafting import Graft, SiteModule
from graftwork.methods import HeadOnly, Houlsby, LoRA
from graftwork.model import AdaptedModel
from graftwork.ops import Dense, KeyValue, LowRank, Op

NESTED = ("layers.0.attention.kv", "layers.0.attention.query", "layers.0.attention.norm", "layers.1.attention.value")


class Broken(Op):
    kinds = frozenset({"linear"})

    def around(self, forward, place):
        raise ValueError("inside an op")


def modules_of(backbone) -> list:
    """Every module of the model with its path: the very objects, in their order."""
    return [(path, id(module)) for path, module in backbone.model.named_modules()]


def outputs(backbone, batch) -> torch.Tensor:
    with torch.no_grad():
        return backbone.model(**batch).last_hidden_state


def site_modules(backbone) -> list[str]:
    return [path for path, module in backbone.model.named_modules() if isinstance(module, SiteModule)]


@pytest.mark.parametrize("kind", ENCODERS)
def test_detaching_leaves_no_trace(kind):
    backbone = make_backbone(kind)
    batch = batch_for(backbone, 7, 4)
    before = modules_of(backbone), bits(backbone.model), outputs(backbone, batch)
    graft = Graft(backbone)
    graft.attach(backbone.sites)
    assert len(site_modules(backbone)) == len({site.path for site in backbone.sites.values()} - {""})
    assert modules_of(backbone) != before[0]
    assert torch.equal(outputs(backbone, batch), before[2])
    graft.detach()
    assert modules_of(backbone) == before[0]
    assert list(bits(backbone.model).items()) == list(before[1].items())
    assert torch.equal(outputs(backbone, batch), before[2])


@pytest.mark.parametrize("order", [*permutations(NESTED[:3]), (*NESTED[1:], NESTED[0])])
@pytest.mark.parametrize("at_once", [True, False])
def test_sites_inside_one_another_attach_in_any_order(order, at_once):
    backbone = make_backbone("bert")
    before = modules_of(backbone), bits(backbone.model)
    graft = Graft(backbone)
    for names in [order] if at_once else [[name] for name in order]:
        graft.attach(names)
    assert len(site_modules(backbone)) == len(order)
    inside = backbone.model.encoder.layer[0].attention.self
    assert isinstance(inside, SiteModule)
    assert isinstance(inside.inner.query, SiteModule)
    assert inside.inner.query.inner is backbone.modules[backbone.sites["layers.0.attention.query"].path]
    graft.detach()
    assert (modules_of(backbone), bits(backbone.model)) == (before[0], before[1])


@pytest.mark.parametrize("order", [NESTED[:2], NESTED[1::-1]])
def test_ops_act_at_sites_inside_one_another(order):
    backbone = make_backbone("bert", dtype=torch.float64)
    batch = batch_for(backbone, 6, 6)
    generator = torch.Generator().manual_seed(0)
    W = torch.randn(32, 32, generator=generator, dtype=torch.float64)
    rows = torch.randn(2, 4, 3, 8, generator=generator, dtype=torch.float64)
    plain = outputs(backbone, batch)
    graft = Graft(backbone)
    graft.attach(order)
    acting = {NESTED[0]: [KeyValue(keys=rows[0], values=rows[1])], NESTED[1]: [Dense(differences={"weight": W})]}
    found = {}
    for names in (order, order[:1], order[1:]):
        with graft.run({name: acting[name] for name in names}):
            found[frozenset(names)] = outputs(backbone, batch)
    both, first, second = found.values()
    assert not any(torch.equal(a, b) for a, b in [(both, first), (both, second), (first, second), (both, plain)])
    assert torch.equal(outputs(backbone, batch), plain)

    # The same with the difference in the weight itself.
    graft.detach()
    query = backbone.model.encoder.layer[0].attention.self.query
    query.weight.data = query.weight.data + W
    graft.attach(NESTED[:1])
    with graft.run({NESTED[0]: acting[NESTED[0]]}):
        close(both, outputs(backbone, batch), PASS)


@pytest.mark.parametrize("kind", ["bert", "distilbert"])
@pytest.mark.parametrize("name", SAMPLES)
def test_a_model_leaves_the_backbone_as_it_was(kind, name):
    backbone = make_backbone(kind)
    batch = batch_for(backbone, 7, 4)
    before = modules_of(backbone), bits(backbone.model), outputs(backbone, batch)
    model = AdaptedModel(backbone)
    model.add("a", make_adapter(backbone, SAMPLES[name], trained=True), trainable=True)
    model.train()
    model(**batch, labels=torch.tensor([0, 2])).loss.backward()
    assert model.detach() is backbone
    assert modules_of(backbone) == before[0]
    assert list(bits(backbone.model).items()) == list(before[1].items())
    assert torch.equal(outputs(backbone, batch), before[2])
    assert not any(module.training for module in backbone.model.modules())
    assert not any(p.requires_grad or p.grad is not None for p in backbone.model.parameters())


def test_detaching_twice_and_after_an_exception_inside_run():
    backbone = make_backbone("bert")
    before = modules_of(backbone), bits(backbone.model)
    graft = Graft(backbone)
    graft.attach(NESTED)
    with pytest.raises(ValueError, match="inside an op"), graft.run({NESTED[1]: [Broken()]}):
        outputs(backbone, batch_for(backbone, 5))
    assert not graft.running.ops
    graft.detach()
    graft.detach()
    assert (modules_of(backbone), bits(backbone.model)) == before


def test_run_restores_what_ran_before():
    backbone = make_backbone("bert")
    graft = Graft(backbone)
    graft.attach(NESTED)
    ops = [{NESTED[1]: [LowRank(A=torch.zeros(2, 32), B=torch.zeros(32, 2))]} for _ in range(2)]
    with graft.run(ops[0]):
        outer = graft.running
        assert outer.ops == ops[0]
        with graft.run(ops[1]):
            assert graft.running.ops == ops[1]
        assert graft.running is outer
        with pytest.raises(ValueError, match="inside"), graft.run(ops[1]):
            raise ValueError("inside")
        assert graft.running is outer
    assert not graft.running.ops


def test_run_again_is_what_ran_then():
    backbone = make_backbone("bert")
    graft = Graft(backbone)
    graft.attach(NESTED[1:2])
    batch = batch_for(backbone, 5)
    op = Dense(differences={"weight": torch.randn(32, 32, generator=torch.Generator().manual_seed(0))})
    with graft.run({NESTED[1]: [op]}):
        expected = outputs(backbone, batch)
        again = graft.run_again()
    plain = outputs(backbone, batch)
    with again:
        assert torch.equal(outputs(backbone, batch), expected)
    assert torch.equal(outputs(backbone, batch), plain)
    assert not torch.equal(plain, expected)


def test_attaching_again_wraps_nothing_twice():
    backbone = make_backbone("distilbert")
    graft = Graft(backbone)
    graft.attach(["layers.0.attention.output"])
    graft.attach(["layers.0.attention.output", "layers.0.attention.result"])
    assert site_modules(backbone) == ["transformer.layer.0.attention.out_lin"]
    module = backbone.model.get_submodule("transformer.layer.0.attention.out_lin")
    assert tuple(site.name for site in module.sites) == ("layers.0.attention.output", "layers.0.attention.result")


def test_an_unknown_site_is_an_error():
    backbone = make_backbone("bert")
    before = modules_of(backbone)
    with pytest.raises(SiteError, match=r"no site is named 'layers\.9\.ffn\.up'"):
        Graft(backbone).attach(["layers.0.ffn.up", "layers.9.ffn.up"])
    assert modules_of(backbone) == before


def test_a_second_model_on_the_same_sites_is_refused():
    backbone = make_backbone("bert")
    adapter = make_adapter(backbone, LoRA(rank=2, targets="query"))
    model = AdaptedModel(backbone, {"a": adapter})
    with pytest.raises(BackboneError, match=r"'tiny-bert' is in use by another AdaptedModel.*\n.*\n.*call detach\(\)"):
        AdaptedModel(backbone, {"b": adapter})
    model.detach()
    AdaptedModel(backbone, {"b": adapter}).detach()


@pytest.mark.parametrize("first", [HeadOnly(), LoRA(rank=2)])
@pytest.mark.parametrize("second", [None, HeadOnly(), LoRA(rank=2)])
def test_a_backbone_in_use_takes_no_second_model_whatever_is_on_either(first, second):
    backbone = make_backbone("bert")
    model = AdaptedModel(backbone)
    given = {} if second is None else {"b": make_adapter(backbone, second)}
    with pytest.raises(BackboneError, match="in use by another AdaptedModel"):
        AdaptedModel(backbone, given)
    model.add("a", make_adapter(backbone, first))
    model.merge("a")
    with pytest.raises(BackboneError, match="in use by another AdaptedModel"):
        AdaptedModel(backbone, given)
    assert model(**batch_for(backbone, 4), adapters="a").logits.shape == (1, 3)
    model.detach()
    AdaptedModel(backbone, given).detach()


def test_a_model_that_nobody_holds_any_more_lets_go_of_its_backbone():
    backbone = make_backbone("bert")
    before = modules_of(backbone)
    model = AdaptedModel(backbone, {"a": make_adapter(backbone, LoRA(rank=2))})
    assert modules_of(backbone) != before
    del model
    assert modules_of(backbone) == before
    # One that is held by nothing but itself is found when the next one wants the backbone.
    model = AdaptedModel(backbone, {"a": make_adapter(backbone, LoRA(rank=2))})
    model.circle = [model]
    del model
    AdaptedModel(backbone).detach()
    assert modules_of(backbone) == before


def test_a_model_that_has_let_go_says_so_and_may_take_its_backbone_again():
    backbone = make_backbone("bert")
    model = AdaptedModel(backbone, {"a": make_adapter(backbone, LoRA(rank=2))})
    model.detach()
    batch = batch_for(backbone, 4)
    with pytest.raises(BackboneError, match="no longer uses backbone 'tiny-bert'"):
        model(**batch, adapters=[None])
    other = AdaptedModel(backbone)
    with pytest.raises(BackboneError, match="in use by another"):
        model.add("a", make_adapter(backbone, LoRA(rank=2)))
    other.detach()
    model.add("a", make_adapter(backbone, LoRA(rank=2)))
    assert model(**batch).logits.shape == (1, 3)


def test_ops_without_a_site_module_are_refused():
    backbone = make_backbone("bert")
    graft = Graft(backbone)
    graft.attach(NESTED[:1])
    ops = {NESTED[1]: [LowRank(A=torch.zeros(2, 32), B=torch.zeros(32, 2))]}
    with (
        pytest.raises(SiteError, match=rf"nothing can act at {NESTED[1]}: no site module stands there"),
        graft.run(ops),
    ):
        raise AssertionError
    assert not graft.running.ops


@pytest.mark.parametrize("first", ["layers.1.attention.query", "layers.0.attention.query"])
def test_a_refused_second_model_changes_nothing(first):
    backbone = make_backbone("bert")
    before = modules_of(backbone)
    model = AdaptedModel(backbone, {"a": make_adapter(backbone, LoRA(rank=2, targets=first))})
    grafted = modules_of(backbone)
    with pytest.raises(BackboneError, match="in use by another"):
        AdaptedModel(backbone, {"b": make_adapter(backbone, LoRA(rank=2))})
    assert modules_of(backbone) == grafted
    model.detach()
    assert modules_of(backbone) == before


def test_a_model_that_could_not_be_made_changes_nothing():
    backbone = make_backbone("bert")
    other = make_backbone("bert", seed=1)
    before = modules_of(backbone)
    good, bad = make_adapter(backbone, Houlsby(bottleneck=2)), make_adapter(other, LoRA(rank=2))
    with pytest.raises(AdapterError, match="not for"):
        AdaptedModel(backbone, {"good": good, "bad": bad})
    assert modules_of(backbone) == before
    AdaptedModel(backbone, {"good": good}).detach()
